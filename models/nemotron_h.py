"""Nemotron-H (NVIDIA 2025): every layer is one of Mamba 2's, or attends without positions, or is a feed-forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import blocks, llama, mamba2_layer
from lutra.models.mamba2_layer import Mixer
from lutra.models.weights import Names
from lutra.runtime import ops
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

LAYER = "backbone.layers.{}"
KINDS = {  # a layer's, by each of its names: in hybrid_override_pattern, in releases, in transformers 5
    **dict.fromkeys(("M", "mamba", "linear_attention"), "remembers"),
    **dict.fromkeys(("*", "attention", "full_attention"), "attends"),
    **dict.fromkeys(("-", "mlp"), "feeds"),
    **dict.fromkeys(("E", "moe"), "chooses"),
}
KEYS = ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel")
TINY = llama.TINY | {
    "model_type": "nemotron_h",
    "num_hidden_layers": 4,
    "hybrid_override_pattern": "M*-M",
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 18,
}


@dataclass(frozen=True)
class Config(blocks.Config):
    """Llama's, what each layer does, of KINDS, and the sizes of those that remember."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "vocab_size": 131072,
        "hidden_size": 4096,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "layer_norm_epsilon": 1e-5,
        "mlp_hidden_act": "relu2",
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "time_step_min": 0.001,
    }

    kinds: tuple[str, ...]
    mixer: Mixer

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        kinds = _kinds(config)
        known = {"num_hidden_layers": len(kinds), "layer_types": None, "sliding_window": None}
        known |= {"hidden_act": config["mlp_hidden_act"], "rms_norm_eps": config["layer_norm_epsilon"]}
        c = blocks.Config.read(config | known)
        if c.activation not in blocks.UNGATED:
            raise UnsupportedModelError(f"lutra has no {c.activation!r} without a gate")
        least = config["time_step_min"] if config["time_step_min"] is not None else 0.0
        limits = {"time_step_limit": [least, float("inf")], "hidden_act": config.get("mamba_hidden_act", "silu")}
        attending = {"attending": tuple(i for i, kind in enumerate(kinds) if kind == "attends")}
        return cls(**vars(c) | attending, kinds=kinds, mixer=Mixer.read(config | limits, KEYS, eps=c.eps))

    @property
    def recurrent_floats(self) -> int:
        """Floats that recurrent layers remember."""
        return self.kinds.count("remembers") * self.mixer.floats


def _kinds(config: dict[str, Any]) -> tuple[str, ...]:
    said = config.get("layers_block_type") or config.get("layer_types") or config.get("hybrid_override_pattern")
    if not isinstance(said, (str, list)) or not {*map(str, said)} <= set(KINDS) or len(said) > 10000:
        raise CorruptModelError(f"config.json: layers_block_type is {said!r:.80}, which is no list of layers")
    kinds = tuple(KINDS[kind] for kind in said)
    if "chooses" in kinds:
        raise UnsupportedModelError("lutra does not run Nemotron-H's mixtures of experts")
    return kinds


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    found: dict[str, tuple[str, ...]] = {
        "embed": ("backbone.embeddings",),
        "layers.{}.attn_norm": (f"{LAYER}.norm",),
        "norm": ("backbone.norm_f",),
        "head": ("lm_head",),
    }
    for i, kind in enumerate(c.kinds):
        stem = f"{LAYER.format(i)}.mixer"
        own: dict[str, dict[str, tuple[str, ...]]] = {
            "remembers": mamba2_layer.names(stem, c.mixer),
            "attends": {"qkv": tuple(f"{stem}.{x}_proj" for x in "qkv"), "o": (f"{stem}.o_proj",)},
            "feeds": {"up": (f"{stem}.up_proj",), "down": (f"{stem}.down_proj",)},
        }
        found |= {f"layers.{i}.{role}": stems for role, stems in own[kind].items()}
    return found


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = blocks.shapes(c)
    found: dict[str, tuple[int, ...]] = {
        role: whole[role] for role in ("embed", "layers.{}.attn_norm", "norm", "head") if role in whole
    }
    own: dict[str, dict[str, tuple[int, ...]]] = {
        "remembers": mamba2_layer.shapes(c.mixer, c.hidden),
        "attends": {role: whole[f"layers.{{}}.{role}"] for role in ("qkv", "o")},
        "feeds": {"up": (c.intermediate, c.hidden), "down": (c.hidden, c.intermediate)},
    }
    for i, kind in enumerate(c.kinds):
        found |= {f"layers.{i}.{role}": shape for role, shape in own[kind].items()}
    return found


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    x = ops.embed(ids, w.embed)
    for i, (layer, kind) in enumerate(zip(w.layers, c.kinds, strict=True)):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        if kind == "remembers":
            at = c.kinds[:i].count(kind) * c.mixer.floats
            h = c.mixer(layer, ops.linear(h, layer.mixer_in), state, at)
        elif kind == "attends":
            h = ops.linear(blocks.attend(c, ops.linear(h, layer.qkv), None, state, i), layer.o)
        else:
            h = blocks.ungated(c, layer, h)
        x = ops.add(x, h)
    return ops.linear(ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps), w.head)

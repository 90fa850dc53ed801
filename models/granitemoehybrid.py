"""Granite 4 (IBM 2025): most layers are Mamba 2's, the others attend, often without positions.

All have a feed-forward, the larger models a mixture of experts beside it. Granite's factors are as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import blocks, granitemoe, mamba2_layer, mixtral, qwen3_moe
from lutra.models.mamba2_layer import Mixer
from lutra.models.weights import Names
from lutra.runtime import ops
from lutra.runtime.errors import UnsupportedModelError

ATTENDING = ("layers.{}.qkv", "layers.{}.o")
EXPERTS = ("layers.{}.router", "layers.{}.experts_gate_up", "layers.{}.experts_down")
KEYS = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")
TINY = granitemoe.TINY | {
    "model_type": "granitemoehybrid",
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "shared_intermediate_size": 72,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 18,
}


@dataclass(frozen=True)
class Config(granitemoe.Config):
    """Granite's mixtures', and that of the layers which remember.

    Layers that do not attend remember, as ``mixer`` says. mixed: whether there are experts.
    shared_intermediate: width of the feed-forward beside them. joined: whether its gates and what is up are one tensor.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = granitemoe.Config.DEFAULTS | {
        "shared_intermediate_size": 1024,
        "shared_mlp_joined": True,
        "position_embedding_type": None,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_head": "auto",
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "logits_scaling": 1.0,
    }

    mixer: Mixer
    mixed: bool
    shared_intermediate: int
    joined: bool

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As granitemoe.Config.read."""
        config = cls.DEFAULTS | config
        mixed = config["num_local_experts"] not in (0, None)
        known: dict[str, Any] = {"layer_types": None}
        if not mixed:
            known |= {"num_local_experts": 1, "num_experts_per_tok": 1, "intermediate_size": 1}
        if (kind := config["position_embedding_type"]) not in (None, "rope", "nope"):
            raise UnsupportedModelError(f"lutra has no Granite 4 with positions of type {kind!r:.40}")
        c = granitemoe.Config.read(config | known)
        if config["mamba_d_head"] == "auto":
            inner = blocks.size(config, "mamba_expand") * c.hidden
            config["mamba_d_head"] = inner // blocks.size(config, "mamba_n_heads")
        return cls(
            **vars(c) | {"rotated": (kind == "rope",) * c.layers, "attending": _attending(config, c.layers)},
            mixer=Mixer.read(config, KEYS, eps=c.eps),
            mixed=mixed,
            shared_intermediate=blocks.size(config, "shared_intermediate_size"),
            joined=bool(config["shared_mlp_joined"]),
        )

    @property
    def recurrent_floats(self) -> int:
        """Floats that recurrent layers remember."""
        return (self.layers - len(self.attending)) * self.mixer.floats


def _attending(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    """The layers that attend, which releases and transformers 5 call by different names."""
    said = config.get("layer_types") or config.get("layers_block_type") or ["mamba"] * layers
    kinds = blocks.layer_kinds(said, layers, ("mamba", "linear_attention", "attention", "full_attention"))
    return tuple(i for i, kind in enumerate(kinds) if kind in ("attention", "full_attention"))


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    left_out = ATTENDING if c.mixed else (*ATTENDING, *EXPERTS)
    found = {role: stems for role, stems in granitemoe.names(c).items() if role not in left_out}
    parts = ("input_linear",) if c.joined else ("gate_proj", "up_proj")
    found["layers.{}.shared_gate_up"] = tuple(f"model.layers.{{}}.shared_mlp.{part}" for part in parts)
    found["layers.{}.shared_down"] = ("model.layers.{}.shared_mlp.output_linear",)
    for i in range(c.layers):
        if i in c.attending:
            own = {role: tuple(stem.format(i) for stem in blocks.LLAMA_NAMES[role]) for role in ATTENDING}
        else:
            mixer = mamba2_layer.names(f"model.layers.{i}.mamba", c.mixer)
            own = {f"layers.{{}}.{role}": stems for role, stems in mixer.items()}
        found |= {role.format(i): stems for role, stems in own.items()}
    return found


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = mixtral.shapes(c)
    left_out = ATTENDING if c.mixed else (*ATTENDING, *EXPERTS)
    found = {role: shape for role, shape in whole.items() if role not in left_out}
    found["layers.{}.shared_gate_up"] = (2 * c.shared_intermediate, c.hidden)
    found["layers.{}.shared_down"] = (c.hidden, c.shared_intermediate)
    remembering = {f"layers.{{}}.{role}": shape for role, shape in mamba2_layer.shapes(c.mixer, c.hidden).items()}
    for i in range(c.layers):
        own = {role: whole[role] for role in ATTENDING} if i in c.attending else remembering
        found |= {role.format(i): shape for role, shape in own.items()}
    return found


def feed_forward(c: Config, layer: Any, x: Any) -> Any:
    """What a layer adds behind what it remembers or attends to."""
    y = qwen3_moe.shared(c, layer, x)
    return ops.add(qwen3_moe.mixture(c, layer, x), y) if c.mixed else y


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.scale(ops.embed(ids, w.embed), factor=c.embed_scale)
    remembering = 0
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        if i in c.attending:
            h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, scale=c.score_scale)
            h = ops.linear(h, layer.o)
        else:
            h = c.mixer(layer, ops.linear(h, layer.mixer_in), state, remembering * c.mixer.floats)
            remembering += 1
        x = ops.add(x, ops.scale(h, factor=c.branch_scale))
        h = feed_forward(c, layer, ops.rms_norm(x, layer.mlp_norm, eps=c.eps))
        x = ops.add(x, ops.scale(h, factor=c.branch_scale))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(ops.scale(x, factor=c.head_scale), w.head)

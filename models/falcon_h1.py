"""Falcon-H1 (TII 2025): every layer attends, and remembers as Mamba 2 does, side by side; constants scale all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, llama, mamba2_layer
from lutra.models.granitemoehybrid import KEYS
from lutra.models.mamba2_layer import Mixer
from lutra.models.weights import Names
from lutra.runtime import ops
from lutra.runtime.errors import CorruptModelError

LAYER = "model.layers.{}"
SCALES = {  # of embeddings, keys, what attention and the mixer see and give, and logits
    "embed_scale": "embedding_multiplier",
    "key_scale": "key_multiplier",
    "attention_in": "attention_in_multiplier",
    "attention_out": "attention_out_multiplier",
    "mixer_in": "ssm_in_multiplier",
    "mixer_out": "ssm_out_multiplier",
    "head_scale": "lm_head_multiplier",
}
TINY = llama.TINY | {
    "model_type": "falcon_h1",
    "mamba_d_ssm": 128,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 18,
    "embedding_multiplier": 5.0,
    "key_multiplier": 0.5,
    "attention_out_multiplier": 0.9,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.25,
    "lm_head_multiplier": 0.1,
    "mlp_multipliers": [0.9, 0.5],
    "ssm_multipliers": [0.35, 0.25, 0.18, 0.5, 0.35],
}


@dataclass(frozen=True)
class Config(blocks.Config):
    """Llama's, and the layer that remembers.

    Constants scale what SCALES says, ``parts`` of the mixer's projection, and a feed-forward's gate and result.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "rms_norm_eps": 1e-5,
        "mamba_d_ssm": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_head": "auto",
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_rms_norm": False,
        "mamba_norm_before_gate": True,
    }

    mixer: Mixer
    embed_scale: float
    key_scale: float
    attention_in: float
    attention_out: float
    mixer_in: float
    mixer_out: float
    head_scale: float
    parts: tuple[float, ...]
    gate_scale: float
    down_scale: float

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        c = blocks.Config.read(config | {"layer_types": None})
        if config["mamba_d_head"] == "auto":
            own = config["mamba_d_ssm"] is not None
            inner = blocks.size(config, "mamba_d_ssm") if own else blocks.size(config, "mamba_expand") * c.hidden
            config["mamba_d_head"] = inner // blocks.size(config, "mamba_n_heads")
        eps, gate_first = c.eps if config["mamba_rms_norm"] else None, not config["mamba_norm_before_gate"]
        scales: dict[str, Any] = {name: blocks.factor(config, key) for name, key in SCALES.items()}
        gate_scale, down_scale = _numbers(config, "mlp_multipliers", 2)
        return cls(
            **vars(c),
            mixer=Mixer.read(config, KEYS, eps=eps, gate_first=gate_first),
            **scales,
            parts=_numbers(config, "ssm_multipliers", 5),
            gate_scale=gate_scale,
            down_scale=down_scale,
        )

    @property
    def recurrent_floats(self) -> int:
        """Floats that recurrent layers remember."""
        return self.layers * self.mixer.floats

    @property
    def part_scales(self) -> np.ndarray:
        """Of the columns of the mixer's projection: float32 [gate | x | b | c | steps]."""
        m = self.mixer
        widths = (m.inner, m.inner, m.groups * m.dim, m.groups * m.dim, m.heads)
        return np.repeat(np.array(self.parts, np.float32), widths)


def _numbers(config: dict[str, Any], key: str, n: int) -> tuple[float, ...]:
    said = config.get(key)
    if said is None:
        return (1.0,) * n
    if not isinstance(said, list) or len(said) != n:
        raise CorruptModelError(f"config.json: {key} is {said!r:.80}, which are no {n} numbers")
    return tuple(blocks.factor({key: number}, key) for number in said)


def names(c: Config) -> Names:
    """Role -> tensors."""
    mixer = mamba2_layer.names(f"{LAYER}.mamba", c.mixer)
    return (
        blocks.LLAMA_NAMES
        | {
            "layers.{}.mlp_norm": (f"{LAYER}.pre_ff_layernorm",),
            "layers.{}.gate_up": (f"{LAYER}.feed_forward.gate_proj", f"{LAYER}.feed_forward.up_proj"),
            "layers.{}.down": (f"{LAYER}.feed_forward.down_proj",),
            "norm": ("model.final_layernorm",),
        }
        | {f"layers.{{}}.{role}": stems for role, stems in mixer.items()}
    )


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    mixer = mamba2_layer.shapes(c.mixer, c.hidden)
    return blocks.shapes(c) | {f"layers.{{}}.{role}": shape for role, shape in mixer.items()}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    score_scale = c.head_dim**-0.5 * c.key_scale
    x = ops.scale(ops.embed(ids, w.embed), factor=c.embed_scale)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        projected = ops.linear(ops.scale(h, factor=c.mixer_in), layer.mixer_in)
        projected = ops.scale_columns(projected, c.part_scales)
        remembered = ops.scale(c.mixer(layer, projected, state, i * c.mixer.floats), factor=c.mixer_out)
        qkv = ops.linear(ops.scale(h, factor=c.attention_in), layer.qkv)
        attended = ops.linear(blocks.attend(c, qkv, angles, state, i, scale=score_scale), layer.o)
        x = ops.add(x, ops.add(remembered, ops.scale(attended, factor=c.attention_out)))
        h = ops.linear(ops.rms_norm(x, layer.mlp_norm, eps=c.eps), layer.gate_up)
        gate, up = ops.split(h, c.intermediate, c.intermediate)
        h = blocks.ACTIVATIONS[c.activation](ops.scale(gate, factor=c.gate_scale), up)
        x = ops.add(x, ops.scale(ops.linear(h, layer.down), factor=c.down_scale))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.scale(ops.linear(x, w.head), factor=c.head_scale)

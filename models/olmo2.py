"""OLMo 2 (2024): norms behind each block instead of before it, and of whole queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, gemma2, llama, qwen3
from lutra.runtime import ops

NAMES = {
    role: stems for role, stems in qwen3.NAMES.items() if role not in ("layers.{}.attn_norm", "layers.{}.mlp_norm")
}
NAMES |= {role: gemma2.NAMES[role] for role in ("layers.{}.attn_out_norm", "layers.{}.mlp_out_norm")}
TINY = llama.TINY | {"model_type": "olmo2"}


@dataclass(frozen=True)
class Config(blocks.Config):
    """OLMo's. local_frequency: that of layers with windows, float32 [pairs]."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"rms_norm_eps": 1e-5}

    local_frequency: np.ndarray

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read. What scales rotary frequencies is not meant for layers with windows."""
        config = cls.DEFAULTS | config
        c = blocks.Config.read(config)
        theta = config.get("rope_local_base_freq") or config.get("rope_theta")
        return cls(**vars(c), local_frequency=blocks.rope_of({"rope_theta": theta}, c.head_dim).frequency)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    found = blocks.shapes(c) | {
        "layers.{}.q_norm": (c.heads * c.head_dim,),
        "layers.{}.k_norm": (c.kv_heads * c.head_dim,),
        "layers.{}.attn_out_norm": (c.hidden,),
        "layers.{}.mlp_out_norm": (c.hidden,),
    }
    return {role: shape for role, shape in found.items() if role in NAMES}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    everywhere = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    nearby = ops.rope_angles(ids, c.local_frequency, state, magnitude=1.0)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        angles = nearby if c.windows[i] else everywhere
        h = blocks.attend(c, ops.linear(x, layer.qkv), angles, state, i, (layer.q_norm, layer.k_norm))
        x = ops.add(x, ops.rms_norm(ops.linear(h, layer.o), layer.attn_out_norm, eps=c.eps))
        x = ops.add(x, ops.rms_norm(blocks.feed_forward(c, layer, i, x), layer.mlp_out_norm, eps=c.eps))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)

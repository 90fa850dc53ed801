"""Gemma 3 (2025), text: Gemma 2 with norms of queries and keys, other angles in local layers, and no caps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, gemma2
from lutra.runtime import ops

NAMES = gemma2.NAMES | {
    "layers.{}.q_norm": ("model.layers.{}.self_attn.q_norm",),
    "layers.{}.k_norm": ("model.layers.{}.self_attn.k_norm",),
}
TINY = gemma2.TINY | {
    "model_type": "gemma3_text",
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}


@dataclass(frozen=True)
class Config(gemma2.Config):
    """Gemma 2's, and the local layers' frequencies: float32 [pairs]."""

    DEFAULTS: ClassVar[dict[str, Any]] = gemma2.Config.DEFAULTS | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "final_logit_softcapping": None,
    }

    local_frequency: np.ndarray

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As gemma2.Config.read."""
        config = cls.DEFAULTS | config | {"attn_logit_softcapping": None}  # which transformers does not apply here
        c = gemma2.Config.read(config)
        local = {"rope_theta": blocks.factor(config, "rope_local_base_freq", 1e4)}
        return cls(**vars(c), local_frequency=blocks.rope_of(local, c.head_dim).frequency)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    return gemma2.shapes(c) | {"layers.{}.q_norm": (c.head_dim,), "layers.{}.k_norm": (c.head_dim,)}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    everywhere = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    nearby = ops.rope_angles(ids, c.local_frequency, state, magnitude=1.0)
    x = ops.scale(ops.embed(ids, w.embed), factor=c.embed_scale)
    for i, layer in enumerate(w.layers):
        norms = c.weight(layer.q_norm), c.weight(layer.k_norm)
        h = ops.linear(c.norm(x, layer.attn_norm), layer.qkv)
        h = blocks.attend(c, h, nearby if c.windows[i] else everywhere, state, i, norms, scale=c.score_scale)
        x = ops.add(x, c.norm(ops.linear(h, layer.o), layer.attn_out_norm))
        h = blocks.feed_forward(c, layer, i, c.norm(x, layer.mlp_norm))
        x = ops.add(x, c.norm(h, layer.mlp_out_norm))
    logits = ops.linear(c.norm(ops.tail(x, state), w.norm), w.head)
    return ops.soft_cap(logits, cap=c.logit_cap) if c.logit_cap else logits

"""Qwen3 (Yang et al. 2025): Llama with a norm of each head's queries and keys."""

from __future__ import annotations

from typing import Any

from lutra.models import blocks, llama, qwen2
from lutra.runtime import ops

Config = qwen2.Config
NAMES = blocks.LLAMA_NAMES | {
    "layers.{}.q_norm": ("model.layers.{}.self_attn.q_norm",),
    "layers.{}.k_norm": ("model.layers.{}.self_attn.k_norm",),
}
TINY = llama.TINY | {"model_type": "qwen3", "head_dim": 24, "rope_theta": 1e6}


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    return blocks.shapes(c) | {"layers.{}.q_norm": (c.head_dim,), "layers.{}.k_norm": (c.head_dim,)}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, (layer.q_norm, layer.k_norm))
        x = ops.add(x, ops.linear(h, layer.o))
        x = ops.add(x, blocks.feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)

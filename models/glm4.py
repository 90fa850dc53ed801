"""GLM-4 0414 (Zhipu 2025): GLM with norms before and behind each block."""

from __future__ import annotations

from typing import Any

from lutra.models import blocks, glm
from lutra.runtime import ops

Config = glm.Config
NAMES = glm.NAMES | {
    "layers.{}.attn_out_norm": ("model.layers.{}.post_self_attn_layernorm",),
    "layers.{}.mlp_out_norm": ("model.layers.{}.post_mlp_layernorm",),
}
TINY = glm.TINY | {"model_type": "glm4"}


def shapes(c: blocks.Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    return glm.shapes(c) | {"layers.{}.attn_out_norm": (c.hidden,), "layers.{}.mlp_out_norm": (c.hidden,)}


def forward(c: blocks.Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i)
        x = ops.add(x, ops.rms_norm(ops.linear(h, layer.o), layer.attn_out_norm, eps=c.eps))
        h = blocks.feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps))
        x = ops.add(x, ops.rms_norm(h, layer.mlp_out_norm, eps=c.eps))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)

"""Llama (Touvron et al. 2023) and what is shaped like it: Llama 2 and 3, TinyLlama, SmolLM, Falcon3, Falcon-E."""

from __future__ import annotations

from typing import Any

from lutra.models import blocks
from lutra.runtime import ops

Config = blocks.Config
NAMES = blocks.LLAMA_NAMES
shapes = blocks.shapes
TINY = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i)
        x = ops.add(x, ops.linear(h, layer.o))
        x = ops.add(x, blocks.feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)

"""BitNet b1.58 2B4T (Ma et al. 2025): Llama with a norm before o and down as well, squared ReLU, tied embeddings."""

from __future__ import annotations

from typing import Any

from lutra.models import blocks
from lutra.runtime import ops

Config = blocks.Config
NAMES = blocks.LLAMA_NAMES | {
    "layers.{}.attn_sub_norm": ("model.layers.{}.self_attn.attn_sub_norm",),
    "layers.{}.mlp_sub_norm": ("model.layers.{}.mlp.ffn_sub_norm",),
}
TINY = {
    "model_type": "bitnet",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    sub_norms = {"layers.{}.attn_sub_norm": (c.heads * c.head_dim,), "layers.{}.mlp_sub_norm": (c.intermediate,)}
    return blocks.shapes(c) | sub_norms


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i)
        h = ops.rms_norm(h, layer.attn_sub_norm, eps=c.eps)
        x = ops.add(x, ops.linear(h, layer.o))
        h = ops.rms_norm(x, layer.mlp_norm, eps=c.eps)
        h = blocks.gated(c, ops.linear(h, layer.gate_up))
        h = ops.rms_norm(h, layer.mlp_sub_norm, eps=c.eps)
        x = ops.add(x, ops.linear(h, layer.down))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)

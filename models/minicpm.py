"""MiniCPM (Hu et al. 2024) and BitCPM: Llama with embeddings, residual branches and logits scaled by constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lutra.models import blocks, llama
from lutra.runtime import ops

NAMES = blocks.LLAMA_NAMES
shapes = blocks.shapes
TINY = llama.TINY | {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}


@dataclass(frozen=True)
class Config(blocks.Config):
    """Llama's, and the factors of the embeddings, of what every block adds, of what the head sees, and of scores."""

    embed_scale: float
    branch_scale: float
    head_scale: float
    score_scale: float

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read; CorruptModelError also for factors that are no positive numbers."""
        c = blocks.Config.read(config)
        base = blocks.factor(config, "dim_model_base", c.hidden)
        return cls(
            **vars(c),
            embed_scale=blocks.factor(config, "scale_emb"),
            branch_scale=blocks.factor(config, "scale_depth", math.sqrt(c.layers)) / math.sqrt(c.layers),
            head_scale=base / c.hidden,
            score_scale=c.head_dim**-0.5,
        )


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.scale(ops.embed(ids, w.embed), factor=c.embed_scale)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, scale=c.score_scale)
        x = ops.add(x, ops.scale(ops.linear(h, layer.o), factor=c.branch_scale))
        h = blocks.feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps))
        x = ops.add(x, ops.scale(h, factor=c.branch_scale))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(ops.scale(x, factor=c.head_scale), w.head)

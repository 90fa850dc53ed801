"""OneBit's Llama (Xu et al. 2024): what each matrix gives is normalized."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from lutra.models import blocks, llama
from lutra.runtime import ops
from lutra.runtime.errors import UnsupportedModelError

EPS = 1e-5
NAMES = llama.NAMES
shapes = llama.shapes
TINY = llama.TINY | {"model_type": "bitllama", "num_key_value_heads": 4}


class Config(blocks.Config):
    """Llama's, without biases: they would come behind the norms."""

    @classmethod
    def read(cls, config: dict[str, Any]) -> blocks.Config:
        """As blocks.Config.read."""
        if config.get("attention_bias"):
            raise UnsupportedModelError("lutra runs no OneBit models with biases (attention_bias)")
        return super().read(config)


@cache
def _plain(width: int) -> np.ndarray:
    """A layer norm's weight of ones and bias of zeros."""
    return np.repeat(np.array([1, 0], np.float32), width)


def _normed(y: Any, *widths: int) -> Any:
    """The outputs of matrices of so many rows, each normalized by itself."""
    parts = [ops.layer_norm(part, _plain(part.shape[1]), eps=EPS) for part in ops.split(y, *widths)]
    return parts[0] if len(parts) == 1 else ops.concat(*parts)


def forward(c: blocks.Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = _normed(ops.linear(ops.rms_norm(x, layer.attn_norm, eps=c.eps), layer.qkv), q, kv, kv)
        x = ops.add(x, _normed(ops.linear(blocks.attend(c, h, angles, state, i), layer.o), c.hidden))
        h = ops.linear(ops.rms_norm(x, layer.mlp_norm, eps=c.eps), layer.gate_up)
        h = blocks.gated(c, _normed(h, c.intermediate, c.intermediate))
        x = ops.add(x, _normed(ops.linear(h, layer.down), c.hidden))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)

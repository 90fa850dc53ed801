"""StableLM 3B and 2 (Stability AI 2023, 2024): Llama with layer norms, part of each head rotated.

The largest has attention and feed-forward side by side, and norms of each head's queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, llama, starcoder2
from lutra.models.weights import Names
from lutra.runtime import ops

TINY = llama.TINY | {"model_type": "stablelm", "partial_rotary_factor": 0.25, "qk_layernorm": True}


@dataclass(frozen=True)
class Config(starcoder2.Config):
    """StableLM's. parallel: whether attention and feed-forward see the same. head_norms: whether heads have norms."""

    EPS: ClassVar[str] = "layer_norm_eps"
    DEFAULTS: ClassVar[dict[str, Any]] = starcoder2.Config.DEFAULTS | {
        "hidden_act": "silu",
        "partial_rotary_factor": 0.25,
    }

    parallel: bool
    head_norms: bool

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        return cls(
            **vars(starcoder2.Config.read(config | {starcoder2.Config.EPS: config.get(cls.EPS)})),
            parallel=bool(config.get("use_parallel_residual", False)),
            head_norms=bool(config.get("qk_layernorm", False)),
        )


def names(c: Config) -> Names:
    """Role -> tensors."""
    found = starcoder2.with_biases(blocks.LLAMA_NAMES)
    if c.parallel:
        del found["layers.{}.mlp_norm"]
    for x, heads in (("q", c.heads), ("k", c.kv_heads)) if c.head_norms else ():
        norms = f"model.layers.{{}}.self_attn.{x}_layernorm.norms"
        found[f"layers.{{}}.{x}_norm"] = tuple(f"{norms}.{head}" for head in range(heads))
    return found


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    found = blocks.shapes(c) | {role: (2 * c.hidden,) for role in starcoder2.NORMS}
    if c.parallel:
        del found["layers.{}.mlp_norm"]
    if c.head_norms:
        found |= {"layers.{}.q_norm": (c.heads * c.head_dim,), "layers.{}.k_norm": (c.kv_heads * c.head_dim,)}
    return found


def attend(
    c: blocks.Config, layer: Any, x: Any, angles: Any, state: Any, i: int, norms: Sequence[np.ndarray] = ()
) -> Any:
    """The i-th layer's attention. norms: weights of layer norms of all heads' queries, and of their keys."""
    qkv = ops.linear(x, layer.qkv)
    if norms:
        q, k, v = ops.split(qkv, c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
        plain = np.repeat(np.array([1, 0], np.float32), c.head_dim)
        q, k = (
            ops.scale_columns(ops.layer_norm(x, plain, eps=c.eps), weight)
            for x, weight in zip((q, k), norms, strict=True)
        )
        qkv = ops.concat(q, k, v)
    return ops.linear(blocks.attend(c, qkv, angles, state, i), layer.o)


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = c.norm(x, layer.attn_norm)
        norms = (layer.q_norm, layer.k_norm) if c.head_norms else ()
        x = ops.add(x, attend(c, layer, h, angles, state, i, norms))
        x = ops.add(x, blocks.feed_forward(c, layer, i, h if c.parallel else c.norm(x, layer.mlp_norm)))
    return ops.linear(c.norm(ops.tail(x, state), w.norm), w.head)

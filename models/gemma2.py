"""Gemma 2 (2024): norms before and after each block, GELU, soft caps, a sliding window in every other layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks
from lutra.runtime import ops
from lutra.runtime.errors import UnsupportedModelError

NAMES = blocks.LLAMA_NAMES | {
    "layers.{}.attn_out_norm": ("model.layers.{}.post_attention_layernorm",),
    "layers.{}.mlp_norm": ("model.layers.{}.pre_feedforward_layernorm",),
    "layers.{}.mlp_out_norm": ("model.layers.{}.post_feedforward_layernorm",),
}
TINY = {
    "model_type": "gemma2",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "intermediate_size": 160,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "sliding_window": 5,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Config(blocks.Config):
    """A Gemma's.

    embed_scale: of embeddings. score_scale: of attention's scores. score_cap, logit_cap: what these and the logits are
    soft-capped to, 0: not. norm_offset: what is added to a norm's stored weight, which is how far it is from 1; 0 where
    a container (GGUF) stores the weight itself.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "norm_offset": 1,
    }

    embed_scale: float
    score_scale: float
    score_cap: float
    logit_cap: float
    norm_offset: float

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        if config.get("use_bidirectional_attention"):
            raise UnsupportedModelError("lutra has no attention to later tokens (use_bidirectional_attention)")
        c = blocks.Config.read(config | {"hidden_act": config["hidden_activation"]})
        caps = ("attn_logit_softcapping", "final_logit_softcapping")
        score_cap, logit_cap = (blocks.factor(config, key) if config.get(key) else 0.0 for key in caps)
        return cls(
            **vars(c),
            embed_scale=math.sqrt(c.hidden),
            score_scale=blocks.factor(config, "query_pre_attn_scalar") ** -0.5,
            score_cap=score_cap,
            logit_cap=logit_cap,
            norm_offset=blocks.factor(config, "norm_offset") if config["norm_offset"] else 0.0,
        )

    def norm(self, x: Any, weight: np.ndarray) -> Any:
        """x normalized, with a weight as it is stored."""
        return ops.rms_norm(x, self.weight(weight), eps=self.eps)

    def weight(self, stored: np.ndarray) -> np.ndarray:
        """A norm's weight."""
        return stored + np.float32(self.norm_offset)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    return blocks.shapes(c) | {"layers.{}.attn_out_norm": (c.hidden,), "layers.{}.mlp_out_norm": (c.hidden,)}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.scale(ops.embed(ids, w.embed), factor=c.embed_scale)
    for i, layer in enumerate(w.layers):
        h = ops.linear(c.norm(x, layer.attn_norm), layer.qkv)
        h = blocks.attend(c, h, angles, state, i, scale=c.score_scale, cap=c.score_cap)
        x = ops.add(x, c.norm(ops.linear(h, layer.o), layer.attn_out_norm))
        h = blocks.feed_forward(c, layer, i, c.norm(x, layer.mlp_norm))
        x = ops.add(x, c.norm(h, layer.mlp_out_norm))
    logits = ops.linear(c.norm(ops.tail(x, state), w.norm), w.head)
    return ops.soft_cap(logits, cap=c.logit_cap) if c.logit_cap else logits

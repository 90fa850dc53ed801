"""Command R and Aya (Cohere 2024): attention and feed-forward side by side, behind one layer norm without a bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, llama, stablelm
from lutra.models.weights import Names
from lutra.runtime import ops
from lutra.runtime.formats import to_float32

TINY = llama.TINY | {"model_type": "cohere", "use_qk_norm": True, "logit_scale": 0.25, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Config(blocks.Config):
    """Command R's. logit_scale: of logits. head_norms: whether each head's queries and keys have norms."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rope_interleaved": True,
        "logit_scale": 0.0625,
    }

    logit_scale: float
    head_norms: bool

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        return cls(
            **vars(blocks.Config.read(config | {"rms_norm_eps": blocks.factor(config, "layer_norm_eps", 1e-5)})),
            logit_scale=blocks.factor(config, "logit_scale"),
            head_norms=bool(config.get("use_qk_norm", False)),
        )

    def norm(self, x: Any, weight: np.ndarray) -> Any:
        """x normalized, run by run of as many columns as the weight has."""
        return ops.layer_norm(x, np.concatenate([weight, np.zeros_like(weight)]), eps=self.eps)


def names(c: Config) -> Names:
    """Role -> tensors."""
    found = {role: stems for role, stems in blocks.LLAMA_NAMES.items() if role != "layers.{}.mlp_norm"}
    if c.head_norms:
        found |= {f"layers.{{}}.{x}_norm": (f"model.layers.{{}}.self_attn.{x}_norm",) for x in "qk"}
    return found


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    found = {role: shape for role, shape in blocks.shapes(c).items() if role != "layers.{}.mlp_norm"}
    if c.head_norms:
        found |= {"layers.{}.q_norm": (c.heads, c.head_dim), "layers.{}.k_norm": (c.kv_heads, c.head_dim)}
    return found


def attend(c: Config, layer: Any, x: Any, angles: Any, state: Any, i: int) -> Any:
    """The i-th layer's attention."""
    norms = [to_float32(norm.matrix).ravel() for norm in (layer.q_norm, layer.k_norm)] if c.head_norms else []
    return stablelm.attend(c, layer, x, angles, state, i, norms)


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = c.norm(x, layer.attn_norm)
        x = ops.add(ops.add(x, attend(c, layer, h, angles, state, i)), blocks.feed_forward(c, layer, i, h))
    x = ops.scale(c.norm(ops.tail(x, state), w.norm), factor=c.logit_scale)
    return ops.linear(x, w.head)

"""StarCoder2 (Lozhkov et al. 2024): layer norms and biases, GELU between two matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import arcee, blocks, llama
from lutra.models.weights import Names
from lutra.runtime import ops

NORMS = ("layers.{}.attn_norm", "layers.{}.mlp_norm", "norm")
TINY = llama.TINY | {"model_type": "starcoder2", "sliding_window": 7, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Config(blocks.Config):
    """StarCoder2's. norm_offset: what is added to a norm's stored weight, which may be how far it is from 1."""

    EPS: ClassVar[str] = "norm_epsilon"  # under which it is said what is added to variances
    DEFAULTS: ClassVar[dict[str, Any]] = {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-5, "norm_offset": 0}

    norm_offset: float

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        eps = blocks.factor(config, cls.EPS, blocks.factor(config, "rms_norm_eps"))
        offset = blocks.factor(config, "norm_offset") if config["norm_offset"] else 0.0
        return cls(**vars(blocks.Config.read(config | {"rms_norm_eps": eps})), norm_offset=offset)

    def norm(self, x: Any, weight: np.ndarray) -> Any:
        """x normalized, with a weight and a bias as they are stored."""
        offset = np.repeat(np.array([self.norm_offset, 0], np.float32), len(weight) // 2)
        return ops.layer_norm(x, weight + offset, eps=self.eps)


def with_biases(names: Names) -> dict[str, Any]:
    """The same for layer norms: a norm's weight and bias are one vector."""
    return {role: (*stems, f"{stems[0]}.bias") if role in NORMS else stems for role, stems in names.items()}


NAMES = with_biases(arcee.NAMES) | {
    "layers.{}.up": ("model.layers.{}.mlp.c_fc",),
    "layers.{}.down": ("model.layers.{}.mlp.c_proj",),
}


def shapes(c: blocks.Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    return arcee.shapes(c) | {role: (2 * c.hidden,) for role in NORMS}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = c.norm(x, layer.attn_norm)
        x = ops.add(x, ops.linear(blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i), layer.o))
        x = ops.add(x, blocks.ungated(c, layer, c.norm(x, layer.mlp_norm)))
    return ops.linear(c.norm(ops.tail(x, state), w.norm), w.head)

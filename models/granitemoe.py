"""Granite 3's mixtures of experts (IBM 2024): Granite whose feed-forwards are mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import blocks, granite, mixtral, qwen3_moe
from lutra.models.weights import Names
from lutra.runtime import ops

TINY = mixtral.TINY | granite.TINY | {"model_type": "granitemoe", "intermediate_size": 40}
shapes = mixtral.shapes


@dataclass(frozen=True)
class Config(granite.Config, mixtral.Config):
    """Granite's and Mixtral's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"num_local_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As those of both."""
        config = cls.DEFAULTS | config
        return cls(**vars(mixtral.Config.read(config | {"sliding_window": None})) | vars(granite.Config.read(config)))


def names(c: Config) -> Names:
    """Role -> tensors."""
    found = mixtral.names_in(c, mixtral.MOE, ("gate_proj", "up_proj", "down_proj"))
    return found | {"layers.{}.router": (f"{mixtral.MOE}.router.layer",)}


def forward(c: Config, w: Any, ids: Any, state: Any, mixture: Any = qwen3_moe.mixture) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.scale(ops.embed(ids, w.embed), factor=c.embed_scale)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, scale=c.score_scale)
        x = ops.add(x, ops.scale(ops.linear(h, layer.o), factor=c.branch_scale))
        h = mixture(c, layer, ops.rms_norm(x, layer.mlp_norm, eps=c.eps))
        x = ops.add(x, ops.scale(h, factor=c.branch_scale))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(ops.scale(x, factor=c.head_scale), w.head)

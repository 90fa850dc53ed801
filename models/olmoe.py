"""OLMoE (Muennighoff et al. 2024): a mixture of experts in every layer, with norms of whole queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import qwen3_moe
from lutra.runtime.errors import UnsupportedModelError

TINY = {
    key: value for key, value in qwen3_moe.TINY.items() if key not in ("mlp_only_layers", "moe_intermediate_size")
} | {
    "model_type": "olmoe",
    "head_dim": 16,
    "intermediate_size": 40,
}
names = qwen3_moe.names
forward = qwen3_moe.forward


@dataclass(frozen=True)
class Config(qwen3_moe.Config):
    """OLMoE's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "rms_norm_eps": 1e-5,
        "intermediate_size": 2048,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As qwen3_moe.Config.read; an expert has the width that is said of all."""
        config = cls.DEFAULTS | config
        if config.get("clip_qkv") is not None:
            raise UnsupportedModelError("lutra does not clip queries, keys and values (clip_qkv)")
        return cls(**vars(qwen3_moe.Config.read(config | {"moe_intermediate_size": config["intermediate_size"]})))


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    norms = {"layers.{}.q_norm": (c.heads * c.head_dim,), "layers.{}.k_norm": (c.kv_heads * c.head_dim,)}
    return qwen3_moe.shapes(c) | norms

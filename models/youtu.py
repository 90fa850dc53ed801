"""Youtu-LLM (Tencent 2025): DeepSeek-V3 without mixtures."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, deepseek_v2, deepseek_v3

names = deepseek_v3.names
shapes = deepseek_v3.shapes
forward = deepseek_v3.forward
NO_MIXTURES = {"n_routed_experts": 1, "num_experts_per_tok": 1, "n_shared_experts": 0, "n_group": 1, "topk_group": 1}
TINY = {key: value for key, value in deepseek_v3.TINY.items() if key not in NO_MIXTURES} | {"model_type": "youtu"}


class Config(deepseek_v3.Config):
    """Youtu's."""

    DEFAULTS: ClassVar[dict[str, Any]] = deepseek_v3.Config.DEFAULTS | {
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> deepseek_v2.Config:
        """As shared_experts.Config.read."""
        return super().read(config | NO_MIXTURES | {"first_k_dense_replace": blocks.depth(config)})

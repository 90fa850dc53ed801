"""Granite 3 (IBM 2024): MiniCPM with other names for its factors, and one of attention's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutra.models import blocks, llama, minicpm

NAMES = minicpm.NAMES
shapes = minicpm.shapes
forward = minicpm.forward
TINY = llama.TINY | {
    "model_type": "granite",
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
    "logits_scaling": 4.0,
}


@dataclass(frozen=True)
class Config(minicpm.Config):
    """MiniCPM's."""

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As minicpm.Config.read."""
        return cls(
            **vars(blocks.Config.read(config)),
            embed_scale=blocks.factor(config, "embedding_multiplier"),
            branch_scale=blocks.factor(config, "residual_multiplier"),
            head_scale=1 / blocks.factor(config, "logits_scaling"),
            score_scale=blocks.factor(config, "attention_multiplier"),
        )

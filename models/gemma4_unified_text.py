"""Gemma 4 12B (2026), text: Gemma 4 without vectors for each layer and without experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import gemma4_text

names = gemma4_text.names
shapes = gemma4_text.shapes
forward = gemma4_text.forward
TINY = gemma4_text.TINY | {"model_type": "gemma4_unified_text"}


@dataclass(frozen=True)
class Config(gemma4_text.Config):
    """Gemma 4's."""

    DEFAULTS: ClassVar[dict[str, Any]] = gemma4_text.Config.DEFAULTS | {
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As gemma4_text.Config.read."""
        c = super().read(config | {"hidden_size_per_layer_input": 0, "enable_moe_block": False})
        return cls(**vars(c))

"""Command R7B and Command A (Cohere 2024, 2025): Command R with windows, and no positions in layers without one."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import cohere, llama

names = cohere.names
shapes = cohere.shapes
forward = cohere.forward
TINY = llama.TINY | {"model_type": "cohere2", "num_hidden_layers": 4, "sliding_window": 5, "tie_word_embeddings": True}


class Config(cohere.Config):
    """Command R's."""

    DEFAULTS: ClassVar[dict[str, Any]] = cohere.Config.DEFAULTS | {
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        c = cohere.Config.read(cls.DEFAULTS | config)
        return cls(**vars(c) | {"rotated": tuple(window > 0 for window in c.windows)})

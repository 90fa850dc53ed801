"""SmolLM3 (2025): Llama in which every fourth layer knows no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from lutra.models import blocks, llama

NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "smollm3", "no_rope_layer_interval": 2, "rope_theta": 1e5}


class Config(blocks.Config):
    """SmolLM3's: windows, if there are any, are those of the layers without positions."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "no_rope_layer_interval": 4,
        "rope_theta": 2e6,
        "use_sliding_window": False,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> blocks.Config:
        """As blocks.Config.read."""
        c = super().read(config)
        if config.get("layer_types") is not None:
            return c
        windows = zip(c.windows, c.rotated, strict=True)
        return replace(c, windows=tuple(0 if rotated else window for window, rotated in windows))

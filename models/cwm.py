"""CWM (Meta 2025): Llama whose layers have a sliding window, but every fourth."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, llama

NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "cwm", "sliding_window": 5}


class Config(blocks.Config):
    """CWM's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": 8192}

    @classmethod
    def read(cls, config: dict[str, Any]) -> blocks.Config:
        """As blocks.Config.read. Where layers are not listed, the first of four sees everything."""
        if config.get("layer_types") is None:
            layers = range(blocks.depth(config))
            config = config | {"layer_types": [f"{'sliding' if i % 4 else 'full'}_attention" for i in layers]}
        return super().read(config)

"""OLMo 3 (2025): OLMo 2 with windows in three of four layers."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import olmo2

NAMES = olmo2.NAMES
shapes = olmo2.shapes
forward = olmo2.forward
TINY = olmo2.TINY | {"model_type": "olmo3", "sliding_window": 3, "sliding_window_pattern": 2}


class Config(olmo2.Config):
    """OLMo 3's."""

    DEFAULTS: ClassVar[dict[str, Any]] = olmo2.Config.DEFAULTS | {"sliding_window": 4096, "sliding_window_pattern": 4}

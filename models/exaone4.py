"""EXAONE 4 (LG 2025): OLMo 2 with norms of each head; where some layers have windows, the others know no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from lutra.models import olmo2

NAMES = olmo2.NAMES
forward = olmo2.forward
TINY = olmo2.TINY | {"model_type": "exaone4", "sliding_window": 5, "sliding_window_pattern": 2}


class Config(olmo2.Config):
    """EXAONE's."""

    DEFAULTS: ClassVar[dict[str, Any]] = olmo2.Config.DEFAULTS | {"sliding_window": 4096, "sliding_window_pattern": 4}

    @classmethod
    def read(cls, config: dict[str, Any]) -> olmo2.Config:
        """As blocks.Config.read. A pattern may be a text: L for a window, G for none."""
        config = cls.DEFAULTS | config
        pattern = config["sliding_window_pattern"]
        if isinstance(pattern, str) or not config["sliding_window"]:
            config["sliding_window_pattern"] = (
                (str(pattern).find("G") + 1 or None) if config["sliding_window"] else None
            )
        c = super().read(config)
        return replace(c, rotated=tuple(map(bool, c.windows))) if config["sliding_window"] else c


def shapes(c: olmo2.Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    return olmo2.shapes(c) | {"layers.{}.q_norm": (c.head_dim,), "layers.{}.k_norm": (c.head_dim,)}

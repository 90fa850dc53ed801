"""Granite's mixtures of experts with one that all tokens share (IBM 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from lutra.models import blocks, granitemoe, qwen3_moe
from lutra.models.weights import Names
from lutra.runtime import ops

SHARED = "model.layers.{}.shared_mlp"
TINY = granitemoe.TINY | {"model_type": "granitemoeshared", "shared_intermediate_size": 72}


@dataclass(frozen=True)
class Config(granitemoe.Config):
    """Granite's. shared_intermediate: width of the shared expert, 0: there is none."""

    shared_intermediate: int

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As granitemoe.Config.read."""
        key = "shared_intermediate_size"
        shared = blocks.size(config, key, 1024) if config.get(key) != 0 else 0
        return cls(**vars(granitemoe.Config.read(config)), shared_intermediate=shared)


def names(c: Config) -> Names:
    """Role -> tensors."""
    shared = {
        "layers.{}.shared_gate_up": (f"{SHARED}.input_linear",),
        "layers.{}.shared_down": (f"{SHARED}.output_linear",),
    }
    return dict(granitemoe.names(c)) | (shared if c.shared_intermediate else {})


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    shared = {
        "layers.{}.shared_gate_up": (2 * c.shared_intermediate, c.hidden),
        "layers.{}.shared_down": (c.hidden, c.shared_intermediate),
    }
    return granitemoe.shapes(c) | (shared if c.shared_intermediate else {})


def mixture(c: Config, layer: Any, x: Any) -> Any:
    """What the chosen experts and the shared one make of each row."""
    chosen = qwen3_moe.mixture(c, layer, x)
    if not c.shared_intermediate:
        return chosen
    return ops.add(chosen, qwen3_moe.shared(c, layer, x))


forward = partial(granitemoe.forward, mixture=mixture)

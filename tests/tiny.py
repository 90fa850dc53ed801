"""Random models in memory, of any architecture's TINY shape, in any formats: for tests that need no checkpoint."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

import lutra.models
from lutra import native
from lutra.models.weights import is_kept
from lutra.runtime import formats
from lutra.runtime.formats import Coded, Factored, Planes, experts
from lutra.runtime.formats._planes import BinaryPlanes
from lutra.runtime.model import Model
from lutra.runtime.ops import State


def architectures() -> list[ModuleType]:
    """Every module of lutra.models that has a forward()."""
    names = [m.name for m in pkgutil.iter_modules(lutra.models.__path__) if not m.ispkg]
    modules = [import_module(f"lutra.models.{name}") for name in names]
    return [module for module in modules if hasattr(module, "forward")]


def model(arch: ModuleType, format: str = "t5", head: str = "f32", seed: int = 0, **options: Any) -> Model:
    """A model of the architecture's TINY configuration with random weights."""
    rng = np.random.default_rng(seed)
    config = arch.Config.read(arch.TINY)
    weights: dict[str, Any] = {}
    for pattern, shape in arch.shapes(config).items():
        for layer in range(config.layers) if "{}" in pattern else (0,):
            stored = head if is_kept(pattern) else format
            if len(shape) == 3 and not formats.codec(format).KERNEL:
                stored = head  # experts have formats with kernels of their own
            weights[pattern.format(layer)] = _random(rng, stored, shape)
    return Model(arch, config, weights, **options)


def _random(rng: np.random.Generator, format: str, shape: tuple[int, ...]) -> Any:
    if len(shape) == 1:
        return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 3:
        return experts.stacked((_random(rng, format, shape[1:]) for _ in range(shape[0])), shape[0])
    codes = rng.integers(-1, 2, shape).astype(np.int8)
    ternary = Coded(codes, rng.uniform(0.05, 0.2, (shape[0], 1)).astype(np.float32))
    if formats.codec(format).ACT_GROUP == 0:
        return formats.pack(ternary, format)
    if isinstance(formats.codec(format), BinaryPlanes):
        return formats.pack(_planes(rng, formats.codec(format), shape), format)
    if not formats.codec(format).KERNEL:
        return formats.pack(factored(rng, format, shape), format)
    return formats.pack((0.1 * rng.standard_normal(shape)).astype(np.float32), format)


def factored(rng: np.random.Generator, format: str, shape: tuple[int, ...]) -> Factored:
    """Random factors of a format made of others."""
    codec = formats.codec(format)
    links = codec.links(*shape)

    def matrix(link: Any) -> Any:
        if link.format == "f32":
            return (rng.standard_normal((link.rows, link.cols)) * 0.01).astype(np.float32)
        signs = rng.choice(np.array([-1, 1], np.int8), (link.rows, link.cols))
        return Coded(signs, (rng.standard_normal((link.rows, 1)) * 0.1).astype(np.float32))

    def scale(link: Any) -> Any:
        return rng.standard_normal(link.cols).astype(np.float32) if link.scaled else None

    return Factored(tuple(tuple((scale(link), matrix(link)) for link in chain) for chain in links))


def _planes(rng: np.random.Generator, codec: BinaryPlanes, shape: tuple[int, ...]) -> Planes:
    bits = rng.integers(0, 2, (codec.planes, *shape), dtype=np.uint8)
    scale = rng.uniform(0.02, 0.1, (codec.planes, shape[0], -(-shape[1] // codec.ACT_GROUP))).astype(np.float32)
    return Planes(bits, scale, codec.ACT_GROUP, None, codec.zero)


def head_format(format: str) -> str:
    """The format itself, if an embedding can be stored in it; else another."""
    return format if f"embed_{formats.codec(format).KERNEL}_scalar" in native.kernels() else "q8"


def numpy_logits(m: Model, ids: list[int]) -> np.ndarray:
    """The model's own forward() on arrays: the reference of its plan. float32 [len(ids), vocab]."""
    state = State(m.kv_type)
    state.n_outputs = len(ids)
    return m.arch.forward(m.config, m.by_layer, np.array(ids, np.int32)[:, None], state)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())

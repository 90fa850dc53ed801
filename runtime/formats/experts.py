"""experts: the matrices of a mixture's experts, all in one format. Each row of activations meets those it has chosen.

experts-q4g32 of shape [experts, out, in] has the parts of q4g32, each with an axis of experts before its own. So an
expert's bytes lie together, and it has the kernels of its format, or those of its rows' formats. Made as it is needed,
so no variant is typical.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Packed, Stacked, codec

TYPICAL = None
PREFIX = "experts-"
MOST = 1024  # LT_MAX_EXPERTS in native/api.h


@dataclass(frozen=True)
class Experts:
    """One format of the family. format: that of every expert's matrix."""

    format: str

    @property
    def KERNEL(self) -> str:
        """The kernels of its matrices."""
        return str(codec(self.format).KERNEL)

    @property
    def ACT_GROUP(self) -> int | None:
        """As its matrices take activations."""
        group: int | None = codec(self.format).ACT_GROUP
        return group

    def layout(self, *shape: int) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The parts of [experts, rows, cols] matrices. CorruptModelError for another shape: a file may name it."""
        if len(shape) != 3 or not 1 <= shape[0] <= MOST:
            raise CorruptModelError(f"{PREFIX}{self.format:.80} stores no weight of shape {shape}")
        count, rows, cols = shape
        return {part: (dtype, (count, *own)) for part, (dtype, own) in codec(self.format).layout(rows, cols).items()}

    def unpack(self, *shape_and_parts: Any) -> Stacked:
        """The matrices, one above the other."""
        *shape, parts = shape_and_parts
        packed = Packed(f"{PREFIX}{self.format}", tuple(shape), parts)
        return Stacked(tuple(expert.matrix for expert in packed.experts))

    def stack(self, packed: Packed) -> list[Packed]:
        """For experts with rows of several formats: the experts of each of these. For any others []."""
        count, _, cols = packed.shape
        return [
            Packed(
                PREFIX + format,
                (count, own, cols),
                {part: packed.parts[f"{i}.{part}"] for part in codec(format).layout(own, cols)},
            )
            for i, (own, format) in enumerate(_rows(self.format))
        ]

    def experts(self, packed: Packed) -> list[Packed]:
        """Each expert's matrix."""
        count, rows, cols = packed.shape
        return [
            Packed(
                self.format,
                (rows, cols),
                {name: part[e] for name, part in packed.parts.items()},
                None if packed.bias is None else packed.bias[e],
            )
            for e in range(count)
        ]


def name_of(format: str, role: str) -> str:
    """The format of experts with matrices in this one. UnsupportedModelError if kernels are lacking for it."""
    if not all(codec(own).KERNEL for _, own in _rows(format) or ((0, format),)):
        raise UnsupportedModelError(f"{role}: lutra runs no experts in the format {format:.80}")
    return PREFIX + format


def _rows(format: str) -> tuple[tuple[int, str], ...]:
    """How many rows are in which formats, where there are several; () where there is one."""
    each: tuple[tuple[int, str], ...] = getattr(codec(format), "each", ())
    return each


def stacked(experts: Iterable[Packed], count: int) -> Packed:
    """So many matrices of one format and shape as one weight. They are taken one by one."""
    whole: Packed | None = None
    for e, expert in enumerate(experts):
        if whole is None:
            format, shape = PREFIX + expert.format, (count, *expert.shape)
            layout = codec(format).layout(*shape)
            parts = {name: np.empty(own, dtype) for name, (dtype, own) in layout.items()}
            whole = Packed(format, shape, parts, None if expert.bias is None else np.empty(shape[:-1], np.float32))
        for name, part in expert.parts.items():
            whole.parts[name][e] = part
        if whole.bias is not None:
            whole.bias[e] = expert.bias
    assert whole is not None
    return whole


def variant(suffix: str) -> Experts | None:
    """The format experts + suffix. Experts have no experts."""
    inner = suffix.removeprefix("-")
    return Experts(inner) if suffix.startswith("-") and inner and not inner.startswith("experts") else None

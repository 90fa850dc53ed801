"""Weight formats: how a matrix becomes bytes that every kernel reads in place.

A loader says what a matrix *is*: a float array, or ``Coded``. A format, one module here per format and
named as the format, says how it is *stored*: ``Packed``. N loaders and M formats meet in between.

A format module has

- ``INT8``: whether its linear takes int8 activations (``ops.quantize``) or floats;
- ``layout(rows, cols)``: its parts, name -> (dtype, shape);
- ``pack(matrix)``: the parts of a matrix, as a dict of arrays;
- ``unpack(rows, cols, parts)``: the matrix again, Coded or float32: what the numpy reference uses;
- ``accepts(matrix)``: whether ``pack`` loses nothing.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from types import ModuleType

import numpy as np

from lutra.runtime.errors import CorruptModelError

__all__ = ["BF16", "Coded", "Packed", "codec", "names", "pack", "to_float32"]


class BF16(np.ndarray):
    """bfloat16 numbers as their uint16 bit patterns: make one with ``bits.view(BF16)``.

    numpy has no bfloat16, so a value is the upper half of a float32. The class marks the bits
    through slicing and reshaping; arithmetic on it is integer arithmetic: use ``to_float32``.
    """


@dataclass(frozen=True)
class Coded:
    """A matrix of small integers with scales: W[o, i] = codes[o, i] * scale[o].

    codes: int8 [out, in]; scale: float32 [out].
    """

    codes: np.ndarray
    scale: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.codes.shape  # type: ignore[return-value]


Matrix = np.ndarray | Coded


def to_float32(x: Matrix) -> np.ndarray:
    """The values of ``x`` as a float32 array of its shape; a float32 array comes back as is."""
    if isinstance(x, Coded):
        return x.codes * x.scale[:, None]
    if isinstance(x, BF16):
        return (x.view(np.ndarray).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(x, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight matrix in one of our formats, ready for its kernels.

    shape: (out, in). parts: the format's arrays, usually views of a mapped file. bias: float32 [out],
    added to a linear's result, or None.
    """

    format: str
    shape: tuple[int, int]
    parts: dict[str, np.ndarray]
    bias: np.ndarray | None = field(default=None)

    @property
    def codec(self) -> ModuleType:
        """The format's module."""
        return codec(self.format)

    @property
    def nbytes(self) -> int:
        """Bytes a linear reads, the bias aside."""
        return sum(part.nbytes for part in self.parts.values())

    @cached_property
    def matrix(self) -> Matrix:
        """The matrix these parts store: Coded, or float32 [out, in]. For the numpy reference."""
        return self.codec.unpack(*self.shape, self.parts)

    def with_bias(self, bias: np.ndarray | None) -> Packed:
        """The same weights with another bias."""
        return replace(self, bias=bias)

    def check(self, name: str) -> Packed:
        """Itself, if its parts are what its format lays out for its shape; else CorruptModelError."""
        layout = self.codec.layout(*self.shape)
        if set(layout) != set(self.parts):
            raise CorruptModelError(f"{name}: {self.format} needs {sorted(layout)}, found {sorted(self.parts)}")
        for part, (dtype, shape) in layout.items():
            found = self.parts[part]
            if found.dtype != dtype or found.shape != shape:
                raise CorruptModelError(
                    f"{name}.{part}: {self.format} of {self.shape} needs {np.dtype(dtype)} {shape}, "
                    f"found {found.dtype} {found.shape}"
                )
        return self


def names() -> list[str]:
    """The formats there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def codec(name: str) -> ModuleType:
    """The module of a format; CorruptModelError for a name that is none."""
    if name not in names():
        raise CorruptModelError(f"unknown weight format {name!r}", f"lutra knows {', '.join(names())}")
    return import_module(f"{__name__}.{name}")


def pack(matrix: Matrix, format: str) -> Packed:
    """Store a matrix in a format. ValueError when the format cannot hold it at all."""
    return Packed(format, tuple(matrix.shape), codec(format).pack(matrix))  # type: ignore[arg-type]

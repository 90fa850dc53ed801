"""Weight formats: how a matrix becomes bytes that every kernel reads in place.

A loader says what a matrix *is*: a float array, or ``Coded``. A format, one module here per format and
named as the format, says how it is *stored*: ``Packed``. N loaders and M formats meet in between.

A format has

- ``KERNEL``: what its kernels are named by, as in linear_<KERNEL>;
- ``ACT_GROUP``: how its linear takes activations: None: floats; n: int8 with a scale per n columns; 0: int8 with one
  scale per token;
- ``layout(rows, cols)``: its parts, name -> (dtype, shape);
- ``pack(matrix)``: the parts of a matrix, as a dict of arrays;
- ``unpack(rows, cols, parts)``: the matrix again, Coded or float32: what the numpy reference uses;
- ``accepts(matrix)``: whether ``pack`` loses nothing;
- ``chains(packed)``, ``stack(packed)`` or ``rotation(packed)``, if it has no kernels of its own: products of matrices
  in other formats, such matrices one above the other, or one behind a rotation;
- ``experts(packed)``, if it is one matrix for each expert.

A module either is a format, or has ``variant(suffix)`` that makes one, and ``TYPICAL``, the name of one: "q4g128" is
q4's variant "g128".
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, reduce
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from lutra import native
from lutra.runtime.errors import CorruptModelError

__all__ = [
    "BF16",
    "E4M3",
    "Codebook",
    "Coded",
    "Factored",
    "Nested",
    "Packed",
    "Planes",
    "Rotated",
    "Scaled",
    "Stacked",
    "Unread",
    "codec",
    "names",
    "pack",
    "ternary",
    "to_float32",
    "walsh_hadamard",
]


class BF16(np.ndarray):
    """bfloat16 numbers as their uint16 bit patterns: make one with ``bits.view(BF16)``.

    numpy has no bfloat16, so a value is the upper half of a float32. The class marks the bits
    through slicing and reshaping; arithmetic on it is integer arithmetic: use ``to_float32``.
    """


class E4M3(np.ndarray):
    """8-bit floats (E4M3: Micikevicius et al. 2022) as their uint8 bit patterns, marked as BF16's are.

    A sign, four bits of exponent, three of fraction; no infinities, and one NaN of each sign.
    """


def _e4m3() -> np.ndarray:
    """What every pattern means: float32 [256]."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    values = np.where(exponent, 8 + fraction, 2 * fraction) * 2.0 ** (exponent - 10)
    values[codes & 127 == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


_E4M3 = _e4m3()


@dataclass(frozen=True, eq=False)
class Coded:
    """A matrix of small integers on grids: W[o, i] = (codes[o, i] - zero[o, g]) * scale[o, g], g = i // group.

    codes: int8 or uint8 [out, in], or an object that numpy makes such an array of (native.InBlocks). scale, zero:
    float32 or float16 [out, groups]; zero None: 0. group: columns that share a scale, 0: all of a row.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None = None
    group: int = 0

    def __post_init__(self) -> None:
        rows, cols = self.codes.shape
        shape = (rows, -(-cols // self.group) if self.group else 1)
        for grid in (self.scale, self.zero):
            if grid is not None and grid.shape != shape:
                raise ValueError(
                    f"codes of {self.codes.shape} in groups of {self.group} need {shape}, not {grid.shape}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.codes.shape  # type: ignore[return-value]

    def __getitem__(self, rows: Any) -> Coded:
        return replace(self, codes=self.codes[rows], scale=self.scale[rows], zero=_rows(self.zero, rows))

    def regrouped(self, group: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and zero with one value per ``group`` columns. ValueError if groups of that size straddle its own."""
        if group == self.group:
            return self.scale, self.zero
        if not group or self.group % group:
            raise ValueError(f"groups of {self.group or 'a whole row'} cannot be stored in groups of {group}")
        own = (
            np.arange(0, self.codes.shape[1], group) // self.group
            if self.group
            else [0] * -(-self.codes.shape[1] // group)
        )
        return self.scale[:, own], _rows(self.zero, (slice(None), own))


@dataclass(frozen=True, eq=False)
class Nested:
    """A matrix of small integers on grids whose scales are small integers, too, times a float per super-block.

    W[o, i] = codes[o, i] * scale[0, o, g] * unit[0, o, b] + scale[1, o, g] * unit[1, o, b], g = i // group,
    b = i // block. The second product is the groups' offset, which they may be without (GGUF's k-quants).

    codes: int8 or uint8 [out, in]. scale: int8 [1 or 2, out, groups]. unit: float32 or float16 [1 or 2, out, blocks].
    """

    codes: np.ndarray
    scale: np.ndarray
    unit: np.ndarray
    group: int
    block: int

    def __post_init__(self) -> None:
        rows, cols = self.codes.shape
        scale, unit = ((len(self.scale), rows, -(-cols // n)) for n in (self.group, self.block))
        if len(self.scale) not in (1, 2) or self.scale.shape != scale or self.unit.shape != unit:
            raise ValueError(f"codes of {self.codes.shape} need scales of {scale} and units of {unit}")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.codes.shape  # type: ignore[return-value]

    def __getitem__(self, rows: Any) -> Nested:
        return replace(self, codes=self.codes[rows], scale=self.scale[:, rows], unit=self.unit[:, rows])

    @cached_property
    def scales(self) -> np.ndarray:
        """Scales, and offsets if there are any: float32 [1 or 2, out, groups]."""
        own = np.arange(self.scale.shape[2]) * self.group // self.block
        return self.unit.astype(np.float32)[:, :, own] * self.scale


@dataclass(frozen=True, eq=False)
class Planes:
    """A matrix that is a sum of binary ones: W[o, i] = offset[o, g] + sum_p (bits[p, o, i] - zero) * scale[p, o, g].

    bits: uint8 0 or 1 [planes, out, in]. scale: float32 [planes, out, groups]. offset: float32 [out, groups], or None:
    0. zero: 1/2 for planes of -1 and 1 (scale is twice their alpha), 0 for planes of 0 and 1. group: columns that share
    a scale; g = i // group.
    """

    bits: np.ndarray
    scale: np.ndarray
    group: int
    offset: np.ndarray | None = None
    zero: float = 0.5

    def __post_init__(self) -> None:
        planes, rows, cols = self.bits.shape
        shape = (rows, -(-cols // self.group))
        if self.scale.shape != (planes, *shape) or (self.offset is not None and self.offset.shape != shape):
            raise ValueError(f"planes of {self.bits.shape} in groups of {self.group} need scales of {(planes, *shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.bits.shape[1:]  # type: ignore[return-value]

    def __getitem__(self, rows: Any) -> Planes:
        return replace(self, bits=self.bits[:, rows], scale=self.scale[:, rows], offset=_rows(self.offset, rows))


def _rows(x: np.ndarray | None, rows: Any) -> np.ndarray | None:
    return None if x is None else x[rows]


@dataclass(frozen=True, eq=False)
class Codebook:
    """A matrix of looked-up elements: W[o, i] = values[codes[o, i]] * scale[o, i // group] * unit[o, i // block].

    codes: uint8 [out, in], or an object that numpy makes such an array of (native.InBlocks). values: float32 [8] or
    [16]. scale: float32, float16, int8 or E4M3 [out, groups]. group: columns that share a scale. own: float32
    [out, groups], the value of the one code whose value is NaN; None: there is none. unit: float32 or float16
    [out, super-blocks], None: 1. block: columns of a super-block, 0: all.
    """

    codes: np.ndarray
    values: np.ndarray
    scale: np.ndarray
    group: int
    own: np.ndarray | None = None
    unit: np.ndarray | None = None
    block: int = 0

    def __post_init__(self) -> None:
        rows, cols = self.codes.shape
        shape, units = (rows, -(-cols // self.group)), (rows, -(-cols // (self.block or cols)))
        known = not isinstance(self.codes, np.ndarray) or self.codes.max(initial=0) < len(self.values)
        fits = known and len(self.values) in (8, 16) and (self.unit is None or self.unit.shape == units)
        if self.scale.shape != shape or not fits or (self.own is not None and self.own.shape != shape):
            raise ValueError(f"codes of {self.codes.shape} need 8 or 16 values for all of them, and scales of {shape}")
        if np.isnan(self.values).sum() != (self.own is not None):
            raise ValueError("a value of the groups' own is one code's")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.codes.shape  # type: ignore[return-value]

    def __getitem__(self, rows: Any) -> Codebook:
        own, unit = _rows(self.own, rows), _rows(self.unit, rows)
        return replace(self, codes=self.codes[rows], scale=self.scale[rows], own=own, unit=unit)

    @cached_property
    def scales(self) -> np.ndarray:
        """What every group's values are multiplied by: float32 [out, groups]."""
        scale = to_float32(self.scale)
        if self.unit is None:
            return scale
        own = np.arange(scale.shape[1]) * self.group // (self.block or self.shape[1])
        return scale * to_float32(self.unit)[:, own]

    @cached_property
    def looked_up(self) -> np.ndarray:
        """Every code's value, unscaled: float32 [out, in]."""
        found = np.take(self.values, np.asarray(self.codes))
        if self.own is None:
            return found
        return np.where(np.isnan(found), self.own[:, np.arange(found.shape[1]) // self.group], found)


@dataclass(frozen=True, eq=False)
class Scaled:
    """A matrix of floats that are too small for their range: W[o, i] = values[o, i] * scale[o, i // group].

    values: E4M3 [out, in]. scale: float32 [out, groups]. group: columns that share a scale, 0: all of a row.
    """

    values: np.ndarray
    scale: np.ndarray
    group: int = 0

    def __post_init__(self) -> None:
        rows, cols = self.values.shape
        shape = (rows, -(-cols // (self.group or cols)))
        if self.scale.shape != shape:
            raise ValueError(f"values of {self.values.shape} in groups of {self.group} need {shape} scales")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.values.shape  # type: ignore[return-value]

    def __getitem__(self, rows: Any) -> Scaled:
        return replace(self, values=self.values[rows], scale=self.scale[rows])


@dataclass(frozen=True, eq=False)
class Factored:
    """A matrix that is a sum of products: chains of links (columns, M), applied one after the other.

    columns: float32 [columns of M], a scale for each: x becomes M (columns * x). int32: their order: M x[columns].
    None: M x.
    """

    chains: tuple[tuple[tuple[np.ndarray | None, Any], ...], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        chain = self.chains[0]
        return chain[-1][1].shape[0], chain[0][1].shape[1]

    def __getitem__(self, rows: Any) -> Factored:
        return Factored(tuple((*chain[:-1], (chain[-1][0], chain[-1][1][rows])) for chain in self.chains))


@dataclass(frozen=True, eq=False)
class Stacked:
    """A matrix whose rows are those of others, one above the other: as many columns, but not the same kind."""

    matrices: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return sum(m.shape[0] for m in self.matrices), self.matrices[0].shape[1]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return to_float32(self)[rows]


@dataclass(frozen=True, eq=False)
class Rotated:
    """A matrix behind a rotation of what it meets: W x = M walsh_hadamard(signs * x[order]).

    matrix: M, of any kind. signs: float32 [in], 1 and -1. order: int32 [in], or None: as they are.
    """

    matrix: Any
    signs: np.ndarray
    block: int
    order: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.matrix.shape  # type: ignore[no-any-return]

    def __getitem__(self, rows: Any) -> Rotated:
        return replace(self, matrix=self.matrix[rows])


def walsh_hadamard(x: np.ndarray, block: int) -> np.ndarray:
    """Runs of ``block`` columns, each times the Walsh-Hadamard matrix of that size in Sylvester's order, over its root.

    Its own inverse. block: a power of two.
    """
    y, step = x, 1
    while step < block:
        pairs = y.reshape(-1, 2, step)
        y = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        step *= 2
    return y.reshape(x.shape) * x.dtype.type(block**-0.5)


@dataclass(frozen=True, eq=False)
class Unread:
    """A matrix that is read a few rows at a time: x[begin:end] is one of another kind. read: (begin, end) to that.

    at_once: elements that are best read together; None: whoever reads decides.
    """

    shape: tuple[int, int]
    read: Callable[[int, int], Any]
    at_once: int | None = None

    def __getitem__(self, rows: slice) -> Any:
        begin, end, _ = rows.indices(self.shape[0])
        return self.read(begin, end)


Matrix = np.ndarray | Coded | Nested | Planes | Codebook | Scaled | Factored | Stacked | Rotated | Unread


def to_float32(x: Matrix) -> np.ndarray:
    """The values of ``x`` as a float32 array of its shape; a float32 array comes back as is."""
    if isinstance(x, Coded):
        zero = np.zeros_like(x.scale) if x.zero is None else x.zero
        return native.decode(np.asarray(x.codes), x.scale, zero, x.group or max(1, x.shape[1]))
    if isinstance(x, Nested):
        own = np.arange(x.shape[1]) // x.group
        values = x.codes * x.scales[0][:, own]
        return values if len(x.scales) == 1 else values + x.scales[1][:, own]
    if isinstance(x, Planes):
        own = np.arange(x.shape[1]) // x.group
        values = ((x.bits - np.float32(x.zero)) * x.scale[:, :, own]).sum(axis=0)
        return values if x.offset is None else values + x.offset[:, own]
    if isinstance(x, Codebook):
        return x.looked_up * np.repeat(x.scales, x.group, axis=1)[:, : x.shape[1]]
    if isinstance(x, Scaled):
        values, group = to_float32(x.values), x.group or x.shape[1]
        for g, begin in enumerate(range(0, x.shape[1], group)):
            values[:, begin : begin + group] *= x.scale[:, g, None]
        return values
    if isinstance(x, Factored):
        return sum(map(_product, x.chains))  # type: ignore[return-value]
    if isinstance(x, Rotated):
        values = walsh_hadamard(to_float32(x.matrix), x.block) * x.signs
        return values if x.order is None else values[:, np.argsort(x.order)]
    if isinstance(x, Unread):
        return to_float32(x[:])
    if isinstance(x, Stacked):
        return np.concatenate([to_float32(m) for m in x.matrices])
    if isinstance(x, BF16):
        return native.widen_bf16(x.view(np.ndarray))
    if isinstance(x, E4M3):
        return _E4M3[x.view(np.ndarray)]
    return np.asarray(x, dtype=np.float32)


def _product(links: Any) -> np.ndarray:
    return reduce(lambda product, factor: factor @ product, (_factor(*link) for link in links))


def _factor(columns: np.ndarray | None, matrix: Any) -> np.ndarray:
    values = to_float32(matrix)
    if columns is None:
        return values
    return values * columns if columns.dtype == np.float32 else values[:, np.argsort(columns)]


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight matrix in one of our formats, ready for its kernels.

    shape: (out, in), or (experts, out, in). parts: the format's arrays, usually views of a mapped file. bias: float32
    [out], or [experts, out], added to a linear's result, or None.
    """

    format: str
    shape: tuple[int, ...]
    parts: dict[str, np.ndarray]
    bias: np.ndarray | None = field(default=None)

    @property
    def codec(self) -> Any:
        """The format itself."""
        return codec(self.format)

    @property
    def nbytes(self) -> int:
        """Bytes a linear reads, the bias aside."""
        return sum(part.nbytes for part in self.parts.values())

    @cached_property
    def matrix(self) -> Matrix:
        """The matrix these parts store: Coded, or float32 [out, in]. For the numpy reference."""
        return self.codec.unpack(*self.shape, self.parts)

    @cached_property
    def chains(self) -> list[list[tuple[np.ndarray | None, Packed]]]:
        """The links of every chain, for a format that is made of others; [] for one with kernels of its own."""
        return self.codec.chains(self) if hasattr(self.codec, "chains") else []

    @cached_property
    def stack(self) -> list[Packed]:
        """The matrices that lie one above the other, for a format that is made of such; [] for any other."""
        return self.codec.stack(self) if hasattr(self.codec, "stack") else []

    @cached_property
    def rotation(self) -> tuple[np.ndarray, np.ndarray | None, Packed] | None:
        """Signs, order and what is behind them, for a format of rotated matrices; None for any other."""
        return self.codec.rotation(self) if hasattr(self.codec, "rotation") else None

    @cached_property
    def experts(self) -> list[Packed]:
        """Each expert's matrix, for a format of such; [] for any other."""
        return self.codec.experts(self) if hasattr(self.codec, "experts") else []

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
        if self.bias is not None and (self.bias.dtype != np.float32 or self.bias.shape != self.shape[:-1]):
            raise CorruptModelError(f"{name}.bias is {self.bias.dtype} {self.bias.shape} beside {self.shape}")
        return self


def names() -> list[str]:
    """Every format, and of each family of them a typical one."""
    found = (getattr(module, "TYPICAL", base) for base, module in modules().items())
    return [name for name in found if name]


@cache
def codec(name: str) -> Any:
    """The format of that name; CorruptModelError for a name that is none."""
    for base in _bases():
        if not name.startswith(base):  # and is not even imported
            continue
        module = _module(base)
        if name == base and not hasattr(module, "variant"):
            return module
        if hasattr(module, "variant") and (made := module.variant(name[len(base) :])):
            return made
    raise CorruptModelError(f"unknown weight format {name!r:.80}", f"lutra knows {', '.join(names())} and the like")


def ternary() -> str:
    """The ternary format that this CPU runs best: t5's bytes are fewer, but need products of whole bytes."""
    return "t5" if {"avxvnni", "avx512vnni", "dotprod"} & set(native.cpu_features()) else "t2"


def modules() -> dict[str, ModuleType]:
    """Every file here that is a format, or a family of such, by its name."""
    return {base: _module(base) for base in _bases()}


def _bases() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))


def _module(base: str) -> ModuleType:
    return import_module(f"{__name__}.{base}")


def pack(matrix: Matrix, format: str) -> Packed:
    """Store a matrix in a format. ValueError when the format cannot hold it at all."""
    return Packed(format, tuple(matrix.shape), codec(format).pack(matrix))  # type: ignore[arg-type]

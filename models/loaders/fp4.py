"""Matrices of four-bit floats, E2M1, as compressed-tensors and ModelOpt store them: MXFP4 and NVFP4.

``weight_packed`` uint8 [out, in / 2], a byte's lower half first. MXFP4: ``weight_scale`` uint8 [out, in / 32],
exponents plus 127. NVFP4: ``weight_scale`` float8 [out, in / 16], and ``weight_global_scale``, one float by which those
are divided. ModelOpt's NVFP4: ``weight``, and ``weight_scale_2``, by which they are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lutra import native
from lutra.models.loaders import mxfp4
from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.fp8 import FLOAT8
from lutra.models.loaders.grids import FLOATS, array_of, part, take_parts
from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import E4M3, Codebook, Matrix, is_finite, nvfp4, to_float32

__all__ = ["modelopt_blocks", "mx_blocks", "nv_blocks"]


def mx_blocks(source: Source, stem: str) -> Entry:
    """A matrix of MXFP4, its parts taken from the source."""
    parts = take_parts(source, stem, ("weight_packed", "weight_scale"))
    packed, scale = part(parts, stem, "weight_packed", ("U8",)), part(parts, stem, "weight_scale", ("U8",))
    rows, cols = _shape(stem, packed, scale, mxfp4.GROUP)
    exponents, blocks = array_of(scale), array_of(packed).reshape(rows, -1, mxfp4.GROUP // 2)
    format = mxfp4.format_of(exponents, blocks)

    def read(begin: int = 0, end: int = rows) -> Matrix:
        matrix = mxfp4.codebook(_codes(packed, mxfp4.GROUP, begin, end), exponents[begin:end])
        return to_float32(matrix) if format == "F32" else matrix

    return Entry(format, (rows, cols), read, lambda: read)


def nv_blocks(source: Source, stem: str) -> Entry:
    """A matrix of NVFP4, its parts taken from the source."""
    return _nv(source, stem, "weight_packed", "weight_global_scale", lambda whole: np.float32(0.5) / whole)


def modelopt_blocks(source: Source, stem: str) -> Entry:
    """The same of ModelOpt."""
    return _nv(source, stem, "weight", "weight_scale_2", lambda whole: np.float32(0.5) * whole)


def _nv(source: Source, stem: str, codes: str, factor: str, unit_of: Callable[[np.ndarray], np.ndarray]) -> Entry:
    """unit_of: from the factor of the matrix to that of codes that are twice their values."""
    parts = take_parts(source, stem, (codes, "weight_scale", factor))
    packed, scale = part(parts, stem, codes, ("U8",)), part(parts, stem, "weight_scale", (FLOAT8,))
    rows, cols = _shape(stem, packed, scale, nvfp4.ACT_GROUP)
    whole = parts.get(factor)
    if whole is None or whole.dtype not in FLOATS or whole.shape not in ((1,), ()):
        raise CorruptModelError(f"{stem!r:.80} has no {factor} that is one number")
    values = np.array(nvfp4.VALUES, np.float32)

    def read(begin: int = 0, end: int = rows) -> Matrix:
        with np.errstate(divide="ignore", over="ignore"):
            unit = unit_of(to_float32(array_of(whole)).reshape(1, 1))
        scales = array_of(scale)[begin:end].view(E4M3)
        if not is_finite(unit) or not is_finite(scales):
            raise CorruptModelError(f"{stem!r:.80} has scales that are not finite numbers")
        units, group = np.repeat(unit, len(scales), axis=0), nvfp4.ACT_GROUP
        return Codebook(_codes(packed, group, begin, end), values, scales, group, unit=units)

    return Entry("nvfp4", (rows, cols), read, lambda: read)


def _shape(stem: str, packed: Entry, scale: Entry, group: int) -> tuple[int, int]:
    rows, half = packed.shape
    if scale.shape != (rows, 2 * half // group) or 2 * half % group:
        raise CorruptModelError(f"{stem!r:.80}: {scale.shape} scales of {packed.shape} bytes, in groups of {group}")
    return rows, 2 * half


def _codes(packed: Entry, group: int, begin: int, end: int) -> Any:
    """Where they lie."""
    data = array_of(packed)[begin:end]
    return native.InBlocks(data.reshape(len(data), -1, group // 2), (native.Field(0, group // 2, 4),))

"""Matrices of four-bit floats, E2M1, as compressed-tensors stores them: MXFP4 and NVFP4.

``weight_packed`` uint8 [out, in / 2], a byte's lower half first. MXFP4: ``weight_scale`` uint8 [out, in / 32],
exponents plus 127. NVFP4: ``weight_scale`` float8 [out, in / 16], and ``weight_global_scale``, one float by which those
are divided; no 16-bit scale holds the quotients, so the matrix is one of floats.
"""

from __future__ import annotations

import numpy as np

from lutra.models.loaders import mxfp4
from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.fp8 import E4M3, FLOAT8
from lutra.models.loaders.grids import FLOATS, array_of, part, take_parts
from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import Codebook, Matrix, to_float32
from lutra.runtime.formats._blocks import is_finite

__all__ = ["mx_blocks", "nv_blocks"]

_NV_GROUP = 16


def mx_blocks(source: Source, stem: str) -> Entry:
    """A matrix of MXFP4, its parts taken from the source."""
    parts = take_parts(source, stem, ("weight_packed", "weight_scale"))
    packed, scale = part(parts, stem, "weight_packed", ("U8",)), part(parts, stem, "weight_scale", ("U8",))
    rows, cols = _shape(stem, packed, scale, mxfp4.GROUP)
    exponents, blocks = array_of(scale), array_of(packed).reshape(rows, -1, mxfp4.GROUP // 2)
    format = mxfp4.format_of(exponents, blocks)

    def read(begin: int = 0, end: int = rows) -> Matrix:
        matrix = mxfp4.codebook(_codes(packed, begin, end), exponents[begin:end])
        return to_float32(matrix) if format == "F32" else matrix

    return Entry(format, (rows, cols), read, lambda: read)


def nv_blocks(source: Source, stem: str) -> Entry:
    """A matrix of NVFP4 as float32, its parts taken from the source."""
    parts = take_parts(source, stem, ("weight_packed", "weight_scale", "weight_global_scale"))
    packed, scale = part(parts, stem, "weight_packed", ("U8",)), part(parts, stem, "weight_scale", (FLOAT8,))
    rows, cols = _shape(stem, packed, scale, _NV_GROUP)
    whole = parts.get("weight_global_scale")
    if whole is None or whole.dtype not in FLOATS or whole.shape not in ((1,), ()):
        raise CorruptModelError(f"{stem!r:.80} has no weight_global_scale that is one number")

    def read(begin: int = 0, end: int = rows) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scales = E4M3[array_of(scale)[begin:end]] / to_float32(array_of(whole)).reshape(())
        if not is_finite(scales):
            raise CorruptModelError(f"{stem!r:.80} has scales that are not finite numbers")
        values = np.array(mxfp4.VALUES, np.float32)
        return to_float32(Codebook(_codes(packed, begin, end), values, scales, _NV_GROUP))

    return Entry("F32", (rows, cols), read, lambda: read)


def _shape(stem: str, packed: Entry, scale: Entry, group: int) -> tuple[int, int]:
    rows, half = packed.shape
    if scale.shape != (rows, 2 * half // group) or 2 * half % group:
        raise CorruptModelError(f"{stem!r:.80}: {scale.shape} scales of {packed.shape} bytes, in groups of {group}")
    return rows, 2 * half


def _codes(packed: Entry, begin: int, end: int) -> np.ndarray:
    data = array_of(packed)[begin:end]
    return np.stack([data & 15, data >> 4], axis=2).reshape(len(data), -1)

"""MXFP4, as gpt-oss's releases have their experts: four-bit floats, in 32 columns times a power of two.

Beside ``X.experts.gate_up_proj_blocks`` uint8 [experts, out, in / 32, 16], a byte's lower half first, lie their
``.._scales`` uint8 [experts, out, in / 32], exponents plus 127 (OCP Microscaling Formats 1.0, 5.4.1).
"""

from __future__ import annotations

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.expert_stacks import put_experts, stacks_of
from lutra.models.loaders.grids import array_of
from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import Codebook, Matrix, to_float32
from lutra.runtime.formats.mxfp4 import VALUES

__all__ = ["GROUP", "VALUES", "codebook", "decode", "format_of"]

GROUP = 32
LEAST, MOST, NAN = 103, 142, 255  # of exponents plus 127: those of the powers that float16 holds; what is none


def decode(source: Source) -> bool:
    """Turn every stack of blocks into experts' matrices; returns False for any other directory."""
    if source.quantization.get("quant_method") != "mxfp4":
        return False
    source.kind = "mxfp4"
    scales = {(stem, part): entry for stem, part, entry in stacks_of(source, "_scales")}
    for stem, part, blocks in stacks_of(source, "_blocks"):
        _put(source, stem, part, blocks, _matching(stem, blocks, scales.pop((stem, part), None)))
    if scales:
        raise CorruptModelError(f"{next(iter(scales))[0]!r:.80} has scales and no blocks", "is the download complete?")
    return True


def _matching(stem: str, blocks: Entry, scale: Entry | None) -> Entry:
    """The scales, if they are there and fit."""
    if scale is None:
        raise CorruptModelError(f"{stem!r:.80} has blocks and no scales", "is the download complete?")
    sound = {blocks.dtype, scale.dtype} == {"U8"} and blocks.shape == (*scale.shape, GROUP // 2)
    if not sound or len(scale.shape) != 3:
        raise CorruptModelError(f"{stem!r:.80}: blocks are {blocks.dtype} {blocks.shape}, scales {scale.shape}")
    return scale


def _put(source: Source, stem: str, part: str, blocks: Entry, scale: Entry) -> None:
    count, rows, groups = scale.shape
    format = format_of(array_of(scale), array_of(blocks))

    def read(e: int, some: slice) -> Matrix:
        data = array_of(blocks)[e][some]
        codes = np.stack([data & 15, data >> 4], axis=3).reshape(len(data), -1)
        matrix = codebook(codes, array_of(scale)[e][some])
        return to_float32(matrix) if format == "F32" else matrix

    put_experts(source, stem, part, format, (count, rows, groups * GROUP), read)


def format_of(exponents: np.ndarray, blocks: np.ndarray) -> str:
    """ "mxfp4" where float16 holds all scales, but those of blocks of zeros; else "F32". blocks: [.., bytes]."""
    beyond = _beyond(exponents)
    return "F32" if beyond.any() and (blocks[beyond] & 0x77).any() else "mxfp4"


def codebook(codes: np.ndarray, exponents: np.ndarray) -> Codebook:
    """The matrix of codes uint8 [out, in] and exponents plus 127, uint8 [out, in / 32]. A block of zeros may have any
    scale: it has 1 then. Raises CorruptModelError for a scale that is no number."""
    if (exponents == NAN).any():
        raise CorruptModelError("a matrix of type MXFP4 has scales that are no numbers", "Download the model again.")
    scale = np.exp2(exponents.astype(np.float32) - 127)
    beyond = _beyond(exponents)
    if beyond.any():
        scale[beyond & ~(np.asarray(codes).reshape(*exponents.shape, GROUP) & 7).any(axis=2)] = 1
    return Codebook(codes, np.array(VALUES, np.float32), scale, GROUP)


def _beyond(exponents: np.ndarray) -> np.ndarray:
    return (exponents < LEAST) | (exponents > MOST)

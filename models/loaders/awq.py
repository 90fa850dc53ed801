"""AWQ checkpoints (Lin et al. 2024) in AutoAWQ's layout "gemm": 4 bits, packed along outputs.

In a matrix's place: ``qweight`` int32 [in, out / 8], ``qzeros`` int32 [groups, out / 8], ``scales`` [groups, out].
A word's nibbles, lowest first, are those of outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight.
"""

from __future__ import annotations

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, WORDS, Grid, array_of, group_of, part, stems_of, take_parts
from lutra.models.loaders.words import unpack_words
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import to_float32

__all__ = ["decode"]

AUTO_ROUND = ("auto_round:auto_awq", "auto_round:awq")  # AutoRound's names of the layout
PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of each of eight outputs in its word


def decode(source: Source) -> bool:
    """Turn every quantized matrix into one on a grid; returns False for any other directory."""
    settings = source.quantization
    rounded = "auto-round" in str(settings.get("quant_method")) and settings.get("packing_format") in AUTO_ROUND
    if settings.get("quant_method") != "awq" and not rounded:
        return False
    version, bits = str(settings.get("version", "gemm")).lower(), settings.get("bits", settings.get("w_bit", 4))
    stems = stems_of(source, ".qweight")
    if version != "gemm" or bits != 4 or not stems:
        raise UnsupportedModelError(
            f"{source.path} stores its weights in awq's layout {version!r:.40} at {bits!r:.20} bits",
            "lutra reads the layout gemm at 4 bits.",
        )
    source.kind = "awq"
    group = settings.get("group_size", settings.get("q_group_size"))
    for stem in stems:
        source.entries[f"{stem}.weight"] = _entry(source, stem, group)
    return True


def _entry(source: Source, stem: str, said: object) -> Entry:
    parts = take_parts(source, stem, ("qweight", "qzeros", "scales"))
    weight, zeros = (part(parts, stem, name, WORDS) for name in ("qweight", "qzeros"))
    scales = part(parts, stem, "scales", FLOATS)
    (groups, rows), cols = scales.shape, weight.shape[0]
    if rows % 8 or weight.shape[1] != rows // 8 or zeros.shape != (groups, rows // 8):
        raise CorruptModelError(
            f"{stem!r:.80}: qweight {weight.shape}, qzeros {zeros.shape} and scales {scales.shape} do not fit together"
        )

    def codes(some: slice) -> np.ndarray:
        first, last = some.start // 8, -(-some.stop // 8)  # words of eight rows
        found = _unpack(array_of(weight)[:, first:last], 8 * (last - first))
        return np.ascontiguousarray(found[:, some.start - 8 * first : some.stop - 8 * first].T)

    def zero() -> np.ndarray:
        return np.ascontiguousarray(_unpack(array_of(zeros), rows).T.astype(np.float32))

    def scale() -> np.ndarray:
        return np.ascontiguousarray(to_float32(scales.read()).T)

    group = group_of(stem, cols, groups, said)
    return Grid(stem, 4, (rows, cols), group, codes, scale, zero, half=scales.dtype == "F16").entry()


def _unpack(words: np.ndarray, rows: int) -> np.ndarray:
    """uint8 [n, rows], the outputs in order."""
    return unpack_words(words, 4, rows).reshape(-1, rows // 8, 8)[:, :, PLACES].reshape(-1, rows)

"""FBI-LLM checkpoints (Ma et al. 2024): binary matrices with a scale and an offset per input.

Beside every latent ``weight`` [out, in] lie ``wscale`` and ``wbias``, float [1, in]:
W = wscale * sign(weight) + wbias. A latent weight of exactly 0, to which small types round tiny ones, has the sign 0.
"""

from __future__ import annotations

import numpy as np

from lutra import native
from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, part, stems_of, take_parts
from lutra.models.loaders.latent import look_at
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Coded, Factored, is_finite, to_float32

__all__ = ["decode", "has_zeros", "signs"]


def decode(source: Source) -> bool:
    """Turn every binarized matrix into one in the format fbi; returns False for any other directory."""
    stems = stems_of(source, ".wscale")
    if not stems or source.quantization:
        return False
    source.kind = "fbi-llm"
    for stem in stems:
        source.entries[f"{stem}.weight"] = _entry(source, stem)
    return True


def _entry(source: Source, stem: str) -> Entry:
    parts = take_parts(source, stem, ("weight", "wscale", "wbias"))
    weight, scale, offset = (part(parts, stem, name, FLOATS) for name in ("weight", "wscale", "wbias"))
    cols = weight.shape[1]
    if scale.shape != (1, cols) or offset.shape != (1, cols):
        raise UnsupportedModelError(
            f"{stem!r:.80} has scales {scale.shape} and offsets {offset.shape}, not one for each of {cols} inputs"
        )

    def read() -> Factored:
        columns, offsets = to_float32(scale.read())[0], to_float32(offset.read())
        if not is_finite(columns) or not is_finite(offsets):
            raise CorruptModelError(f"{stem!r:.80} has scales or offsets that are not finite numbers")
        rows = weight.shape[0]
        binary = Coded(signs(stem, weight), np.ones((rows, 1), np.float32))
        return Factored((((columns, binary),), ((None, offsets), (None, np.ones((rows, 1), np.float32)))))

    return Entry("fbi-q2" if has_zeros(weight) else "fbi", weight.shape, read)


def has_zeros(latent: Entry) -> bool:
    """Whether any weight is exactly 0. All are looked at."""
    found: list[bool] = []
    look_at(latent.read(), lambda _, block: found.append(not block.all()))
    return any(found)


def signs(stem: str, latent: Entry) -> np.ndarray:
    """The signs of latent weights: int8 [out, in], -1, 0 or 1. CorruptModelError for weights that are no numbers."""
    codes = np.empty(latent.shape, np.int8)

    def look(rows: slice, block: np.ndarray) -> None:
        if np.isnan(block).any():
            raise CorruptModelError(f"{stem!r:.80} has weights that are not numbers")
        codes[rows] = native.signs(block)

    look_at(latent.read(), look)
    return codes

"""ParetoQ checkpoints (Liu et al. 2025; MobileLLM-ParetoQ): latent weights, and the value each row is clipped at.

Beside every latent ``weight`` lies ``weight_clip_val`` [out, 1], a row's alpha. ``w_bits`` of the configuration says
what grid it spans, activations being as they are:

    1       alpha {-1, 1}, and 0 where a latent weight is exactly 0
    0       alpha {-2/3, 0, 2/3}: ternary
    2       alpha {-3/4, -1/4, 1/4, 3/4}
    3, 4    alpha times the integers of so many bits
"""

from __future__ import annotations

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.fbi import has_zeros, signs
from lutra.models.loaders.grids import FLOATS, part, stems_of, take_parts
from lutra.models.loaders.latent import look_at
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Coded, is_finite, to_float32

__all__ = ["decode"]

FORMATS = {0: "q2", 1: "b1", 2: "q2", 3: "q3", 4: "q4"}  # by w_bits
LEAST, INSIDE = np.float32(1e-5), np.float32(0.99)  # an alpha's least; how far within it a weight is clipped


def decode(source: Source) -> bool:
    """Turn every matrix with a clip value into codes on its grid; returns False for a directory without any."""
    stems = stems_of(source, ".weight_clip_val")
    if not stems or source.quantization:
        return False
    bits = source.config.get("w_bits")
    if type(bits) is not int or bits not in FORMATS:
        raise UnsupportedModelError(
            f"{source.path} has ParetoQ's clip values, but its w_bits is {bits!r:.40}; lutra reads {sorted(FORMATS)}"
        )
    source.kind = "paretoq"
    for stem in stems:
        source.entries[f"{stem}.weight"] = _entry(source, stem, bits)
    return True


def _entry(source: Source, stem: str, bits: int) -> Entry:
    parts = take_parts(source, stem, ("weight", "weight_clip_val"))
    weight, clip = (part(parts, stem, name, FLOATS) for name in ("weight", "weight_clip_val"))
    if clip.shape != (weight.shape[0], 1):
        raise CorruptModelError(f"{stem!r:.80}: clip values {clip.shape} do not fit a matrix of {weight.shape}")

    def read() -> Coded:
        alpha = np.maximum(to_float32(clip.read()), LEAST)
        if not is_finite(alpha):
            raise CorruptModelError(f"{stem!r:.80} has clip values that are not finite numbers")
        if bits == 1:
            return Coded(signs(stem, weight), alpha)
        codes = np.empty(weight.shape, np.uint8 if bits == 2 else np.int8)

        def look(rows: slice, latent: np.ndarray) -> None:
            inside = latent / alpha[rows]
            if np.isnan(inside).any():
                raise CorruptModelError(f"{stem!r:.80} has weights that are not numbers")
            codes[rows] = _codes(inside, bits)

        look_at(weight.read(), look)
        if bits == 2:
            return Coded(codes, alpha / 2, np.full_like(alpha, 1.5))
        return Coded(codes, alpha * np.float32(2 / 3) if bits == 0 else alpha)

    return Entry("q2" if bits == 1 and has_zeros(weight) else FORMATS[bits], weight.shape, read)


def _codes(latent: np.ndarray, bits: int) -> np.ndarray:
    """The nearest codes of weights that are given in units of their row's alpha."""
    if bits == 0:
        return np.rint(np.clip(latent, -INSIDE, INSIDE) * np.float32(1.5))
    if bits == 2:
        return np.rint(np.clip(latent, -INSIDE, INSIDE) * 2 - np.float32(0.5)) + 2
    return np.clip(np.rint(latent), -(1 << bits - 1), (1 << bits - 1) - 1)

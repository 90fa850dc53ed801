"""OneBit checkpoints (Xu et al. 2024): binary matrices with a scale for every input and one for every output.

Beside each ``weight``, int8 [out, in / 8], whose bits from the lowest on say which signs are minus, lie
``input_factor`` [in] and ``weight_scale`` [out]: W = diag(weight_scale) sign diag(input_factor).
"""

from __future__ import annotations

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, array_of, part, stems_of, take_parts
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Coded, Factored, is_finite, to_float32

__all__ = ["decode"]


def decode(source: Source) -> bool:
    """Turn every binary matrix into one in the format onebit; returns False for any other directory."""
    stems = stems_of(source, ".input_factor")
    if not stems or source.quantization:
        return False
    source.kind = "onebit"
    for stem in stems:
        source.entries[f"{stem}.weight"] = _entry(source, stem)
    return True


def _entry(source: Source, stem: str) -> Entry:
    parts = take_parts(source, stem, ("weight", "input_factor", "weight_scale"))
    if "weight" in parts and parts["weight"].dtype in FLOATS:
        raise UnsupportedModelError(
            f"{stem!r:.80} has OneBit's latent weights, of which lutra reads only the signs, packed",
            "OneBit's convert_llama_to_infer_ckpt.py packs them.",
        )
    weight = part(parts, stem, "weight", ("I8", "U8"))
    inputs, outputs = (part(parts, stem, name, FLOATS, 1) for name in ("input_factor", "weight_scale"))
    shape = weight.shape[0], 8 * weight.shape[1]
    if outputs.shape + inputs.shape != shape:
        raise CorruptModelError(f"{stem!r:.80} has {outputs.shape} and {inputs.shape} scales for a matrix of {shape}")

    def read() -> Factored:
        columns, scale = to_float32(inputs.read()), to_float32(outputs.read())
        if not is_finite(columns) or not is_finite(scale):
            raise CorruptModelError(f"{stem!r:.80} has scales that are not finite numbers")
        minus = np.unpackbits(array_of(weight).view(np.uint8), axis=1, bitorder="little").view(np.int8)
        return Factored((((columns, Coded(np.int8(1) - np.int8(2) * minus, scale[:, None])),),))

    return Entry("onebit", shape, read)

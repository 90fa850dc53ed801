"""compressed-tensors checkpoints (vLLM's llm-compressor) in the format "pack-quantized": 2, 3, 4 or 8 bits.

In a matrix's place: ``weight_packed`` int32 [out, in * bits / 32], a stream of codes along each row; ``weight_shape``
int64 (out, in); ``weight_scale`` [out, groups]; ``weight_zero_point`` int32 [out * bits / 32, groups], a stream down
each column, or none: the middle code; ``weight_g_idx`` int32 [in], each input's group, or none.
"""

from __future__ import annotations

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, WORDS, Grid, array_of, group_of, order_of, part, stems_of, take_parts
from lutra.models.loaders.words import unpack_words
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import to_float32

__all__ = ["decode"]

PARTS = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")


def decode(source: Source) -> bool:
    """Turn every packed matrix into one on a grid; returns False for any other directory."""
    settings = source.quantization
    if settings.get("quant_method") != "compressed-tensors":
        return False
    stems = stems_of(source, ".weight_packed")
    if settings.get("format") != "pack-quantized" or not stems:
        raise UnsupportedModelError(
            f"{source.path} stores its weights as compressed-tensors of the format {settings.get('format')!r:.40}",
            "lutra reads the format pack-quantized.",
        )
    source.kind = "compressed-tensors"
    sizes = _group_sizes(source)
    for stem in stems:
        source.entries[f"{stem}.weight"] = _entry(source, stem, sizes)
    return True


def _group_sizes(source: Source) -> list[int]:
    """The sizes of groups that the configuration names, for one matrix or another."""
    groups = source.quantization.get("config_groups") or {}
    found = [g for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    if any(g.get("input_activations") for g in found):
        raise UnsupportedModelError(f"{source.path} quantizes activations in a way that lutra does not follow")
    sizes = [g["weights"].get("group_size") for g in found if isinstance(g.get("weights"), dict)]
    return [size for size in sizes if type(size) is int and size > 0]


def _entry(source: Source, stem: str, sizes: list[int]) -> Entry:
    parts = take_parts(source, stem, PARTS)
    packed, scales = part(parts, stem, "weight_packed", WORDS), part(parts, stem, "weight_scale", FLOATS)
    claim = np.asarray(array_of(part(parts, stem, "weight_shape", ("I64", "I32"), rank=1))).tolist()
    rows, groups = scales.shape
    cols = claim[1] if len(claim) == 2 else 0
    bits = next((b for b in (2, 3, 4, 8) if -(-cols * b // 32) == packed.shape[1]), 0)
    if claim != [rows, cols] or packed.shape[0] != rows or not bits or cols < 32 or (bits == 3 and cols % 32):
        raise CorruptModelError(f"{stem!r:.80}: {packed.shape} packed words and {scales.shape} scales of {claim!r:.60}")
    zeros = part(parts, stem, "weight_zero_point", WORDS) if "weight_zero_point" in parts else None
    if zeros and (zeros.shape != (-(-rows * bits // 32), groups) or (bits == 3 and rows % 32)):
        raise CorruptModelError(f"{stem!r:.80}: {zeros.shape} words of zeros beside {scales.shape} scales")
    index = array_of(part(parts, stem, "weight_g_idx", WORDS, rank=1)) if "weight_g_idx" in parts else None
    group = group_of(stem, cols, groups, next((n for n in sizes if -(-cols // n) == groups), None))
    order = order_of(stem, None if index is None or (index == -1).all() else index, cols, group)

    def zero() -> np.ndarray:
        if zeros is None:
            return np.full((rows, groups), 1 << bits - 1, np.float32)
        return np.ascontiguousarray(unpack_words(array_of(zeros).T, bits, rows).T.astype(np.float32))

    return Grid(
        stem,
        bits,
        (rows, cols),
        group,
        codes=lambda some: unpack_words(array_of(packed)[some], bits, cols),
        scale=lambda: to_float32(scales.read()),
        zero=zero,
        order=order,
        half=scales.dtype == "F16",
    ).entry()

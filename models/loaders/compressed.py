"""compressed-tensors checkpoints (vLLM's llm-compressor): integers of 2, 3, 4 or 8 bits, or floats of 4 or 8.

In a matrix's place, in the format "pack-quantized": ``weight_packed`` int32 [out, in * bits / 32], a stream of codes
along each row; ``weight_shape`` int64 (out, in); ``weight_scale`` [out, groups]; ``weight_zero_point`` int32
[out * bits / 32, groups], a stream down each column, or none: the middle code; ``weight_g_idx`` int32 [in], each
input's group, or none. Four-bit floats: fp4.py. In other formats: ``weight`` int8 or float8 [out, in], ``weight_scale``
as above or one for all, ``weight_zero_point`` int8 like it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.fp4 import mx_blocks, nv_blocks
from lutra.models.loaders.fp8 import FLOAT8, drop_scales_of_activations, scaled
from lutra.models.loaders.grids import FLOATS, WORDS, Grid, array_of, group_of, order_of, part, stems_of, take_parts
from lutra.models.loaders.words import unpack_words
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import to_float32

__all__ = ["decode"]

FP4 = {"mxfp4-pack-quantized": mx_blocks, "nvfp4-pack-quantized": nv_blocks}
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", *FP4)
PARTS = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")


def decode(source: Source) -> bool:
    """Turn every packed matrix into one on a grid; returns False for any other directory."""
    settings = source.quantization
    if settings.get("quant_method") != "compressed-tensors":
        return False
    stems = stems_of(source, ".weight_scale")
    if settings.get("format") not in FORMATS or not stems:
        raise UnsupportedModelError(
            f"{source.path} stores its weights as compressed-tensors of the format {settings.get('format')!r:.40}",
            f"lutra reads the formats {', '.join(FORMATS)}.",
        )
    source.kind = "compressed-tensors"
    drop_scales_of_activations(source)
    sizes, block = _group_sizes(source), _block(source)
    for stem in stems:
        weight = source.entries.get(f"{stem}.weight")
        if weight is None and settings["format"] in FP4:
            source.entries[f"{stem}.weight"] = FP4[settings["format"]](source, stem)
        elif weight is None:
            source.entries[f"{stem}.weight"] = _entry(source, stem, sizes)
        elif weight.dtype == FLOAT8:
            source.entries[f"{stem}.weight"] = scaled(source, stem, block)
        else:
            source.entries[f"{stem}.weight"] = _bytes(source, stem, sizes)
    return True


def _group_sizes(source: Source) -> list[int]:
    """The sizes of groups that the configuration names, for one matrix or another."""
    return [size for size in _said(source, "group_size") if type(size) is int and size > 0]


def _block(source: Source) -> object:
    """Rows and columns that share a scale, where the configuration names them."""
    sizes = [[1, size] for size in _group_sizes(source)]
    return next((block for block in _said(source, "block_structure") if block), sizes[0] if sizes else None)


def _said(source: Source, key: str) -> list[Any]:
    """What each of the configuration's groups says of its weights."""
    groups = source.quantization.get("config_groups") or {}
    found = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    return [weights.get(key) for weights in found if isinstance(weights, dict)]


def _bytes(source: Source, stem: str, sizes: list[int]) -> Entry:
    """A matrix of int8."""
    parts = take_parts(source, stem, ("weight", "weight_scale", "weight_zero_point"))
    weight, scales = part(parts, stem, "weight", ("I8",)), parts["weight_scale"]
    rows, cols = weight.shape
    groups = scales.shape[1] if len(scales.shape) == 2 else 1
    zeros = parts.get("weight_zero_point")
    if scales.dtype not in FLOATS or scales.shape not in ((rows, groups), (1, 1), (rows,), (1,), ()) or not groups:
        raise CorruptModelError(f"{stem!r:.80}: {scales.shape} scales of {weight.shape}")
    if zeros and (zeros.dtype != "I8" or zeros.shape != scales.shape):
        raise CorruptModelError(f"{stem!r:.80}: {zeros.dtype} {zeros.shape} zeros beside {scales.shape} scales")
    group = group_of(stem, cols, groups, next((n for n in sizes if -(-cols // n) == groups), None))

    def by_row(values: np.ndarray) -> np.ndarray:
        wide = np.broadcast_to(values.reshape(-1, groups), (rows, groups))
        return np.ascontiguousarray(wide.astype(np.float32))

    return Grid(
        stem,
        8,
        (rows, cols),
        group,
        codes=lambda some: array_of(weight)[some].view(np.uint8) ^ 128,
        scale=lambda: by_row(to_float32(array_of(scales))),
        zero=lambda: 128 + by_row(array_of(zeros)) if zeros else np.full((rows, groups), 128, np.float32),
        half=scales.dtype == "F16",
    ).entry()


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

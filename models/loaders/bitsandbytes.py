"""bitsandbytes checkpoints (QLoRA: Dettmers et al. 2023; LLM.int8(): Dettmers et al. 2022): 4 or 8 bits.

4 bits, in a matrix's place: ``weight`` [bytes, 1], the codes of all rows one after the other, the first in a byte's
upper half; ``weight.quant_map`` [16], their values; ``weight.absmax`` [blocks], what a block's values are multiplied
by; ``weight.quant_state...``, JSON: the shape, a block's size, and the type that the products are rounded to. Those
factors may be codes themselves: ``weight.nested_quant_map`` [256], ``weight.nested_absmax`` by larger blocks, and an
offset. 8 bits: ``weight`` int8 [out, in], ``SCB`` [out], 127 times the scale.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import Grid, array_of, part, stems_of, take_parts
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import BF16, is_finite

__all__ = ["decode"]

STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
NUMBERS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
PARTS = ("weight", *(f"weight.{name}" for name in NUMBERS), *STATES)
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def decode(source: Source) -> bool:
    """Turn every quantized matrix into one of floats or on a grid; returns False for any other directory."""
    if source.quantization.get("quant_method") != "bitsandbytes":
        return False
    four = [stem for state in STATES for stem in stems_of(source, f".{state}")]
    eight = stems_of(source, ".SCB")
    if not four and not eight:
        raise UnsupportedModelError(
            f"{source.path} says it is quantized with bitsandbytes, but holds no such weights",
            "Save the model again after it was quantized.",
        )
    source.kind = "bitsandbytes"
    for stem in four:
        source.entries[f"{stem}.weight"] = _four_bits(source, stem)
    for stem in eight:
        source.entries[f"{stem}.weight"] = _eight_bits(source, stem)
    return True


def _four_bits(source: Source, stem: str) -> Entry:
    parts = take_parts(source, stem, PARTS)
    state = _state(parts, stem)
    (rows, cols), block, dtype = state["shape"], state["blocksize"], DTYPES[state["dtype"]]
    count = rows * cols
    weight = part(parts, stem, "weight", ("U8", "BF16", "F16", "F32"))  # the bytes may go by any name
    values = _numbers(parts, stem, "weight.quant_map", 16)
    nested = "weight.nested_absmax" in parts
    absmax = part(parts, stem, "weight.absmax", ("U8" if nested else "F32",), rank=1)
    if absmax.shape != (-(-count // block),):
        raise CorruptModelError(f"{stem!r:.80}: {absmax.shape} factors for {count} weights in blocks of {block}")

    def factors() -> np.ndarray:
        found = array_of(absmax)
        if not nested:
            return found
        larger = state["nested_blocksize"]
        scale = np.repeat(_numbers(parts, stem, "weight.nested_absmax", -(-len(found) // larger)), larger)[: len(found)]
        codes = _numbers(parts, stem, "weight.nested_quant_map", 256)
        return codes[found] * scale + np.float32(state["nested_offset"])

    def read() -> np.ndarray:
        packed = np.ascontiguousarray(array_of(weight)).view(np.ndarray).reshape(-1).view(np.uint8)
        if len(packed) != -(-count // 2):
            raise CorruptModelError(f"{stem!r:.80}: {len(packed)} bytes for {count} weights of 4 bits")
        found = np.empty((len(packed), 2), np.float32)
        found[:, 0], found[:, 1] = values[packed >> 4], values[packed & 15]
        found = found.reshape(-1)[:count] * np.repeat(factors(), block)[:count]
        return _as(found, dtype).reshape(rows, cols)

    return Entry(dtype, (rows, cols), read)


def _as(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 rounded to the type, ties to even, as the library does before it multiplies."""
    if dtype != "BF16":
        return values.astype(np.float16 if dtype == "F16" else np.float32)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(BF16)


def _state(parts: dict[str, Entry], stem: str) -> dict[str, Any]:
    """What the JSON says, checked."""
    name = next(state for state in STATES if state in parts)
    try:
        state: Any = json.loads(array_of(part(parts, stem, name, ("U8",), rank=1)).tobytes())
        sizes = [*state["shape"], state["blocksize"], state.get("nested_blocksize", 1)]
        offset = state.get("nested_offset", 0.0)
        sound = all(type(n) is int and 0 < n < 1 << 31 for n in sizes) and state["dtype"] in DTYPES
        if len(state["shape"]) == 2 and sound and isinstance(offset, float) and np.isfinite(offset):
            return {"nested_blocksize": 1, "nested_offset": offset, **state}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CorruptModelError(f"{stem!r:.80}: its quant_state is damaged", "Download the model again.")


def _numbers(parts: dict[str, Entry], stem: str, name: str, count: int) -> np.ndarray:
    found = array_of(part(parts, stem, name, ("F32",), rank=1))
    if len(found) != count or not is_finite(found):
        raise CorruptModelError(f"{stem!r:.80}.{name} is no array of {count} finite numbers")
    return found


def _eight_bits(source: Source, stem: str) -> Entry:
    parts = take_parts(source, stem, ("weight", "SCB", "weight_format"))
    weight, scale = part(parts, stem, "weight", ("I8",)), _numbers(parts, stem, "SCB", parts["weight"].shape[0])
    rows, cols = weight.shape
    return Grid(
        stem,
        8,
        (rows, cols),
        0,
        codes=lambda some: array_of(weight)[some].view(np.uint8) ^ 128,
        scale=lambda: (scale / np.float32(127)).reshape(rows, 1),
        zero=lambda: np.full((rows, 1), 128, np.float32),
    ).entry()

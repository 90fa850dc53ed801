"""HQQ checkpoints (Badri & Shaji 2023), as transformers saves them: codes of 1 to 8 bits, and zeros that are floats.

In a matrix's place: ``W_q``, ``scale``, ``zero`` [groups of all rows, 1], and, a tensor each, ``shape`` (out, in),
``nbits``, ``group_size``, ``axis``, ``packing`` (its letters) and more. W = (code - zero) * scale. Groups lie one below
the other, [groups of all rows, group_size]. W_q has the first of several equal shares of them in its highest bits, the
next in those below.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, Grid, array_of, part, stems_of, take_parts
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import to_float32

__all__ = ["decode"]

SETTINGS = ("nbits", "group_size", "axis", "packing", "shape", "view_as_float")
REST = (
    "channel_wise", "compute_dtype", "encoded_state_dict", "offload_meta", "optimize", "quant_scale", "quant_zero",
    "round_zero", "stores_quant_config", "unpack_view_dtype",
)  # fmt: skip
PACKINGS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "3bit_32": (3, 10), "2bit_u8": (2, 4), "1bit_u8": (1, 8)}
# bits of a field, and fields of a number


def decode(source: Source) -> bool:
    """Turn every quantized matrix into one on a grid; returns False for any other directory."""
    if source.quantization.get("quant_method") != "hqq":
        return False
    stems = stems_of(source, ".W_q")
    if not stems or any(f"{stem}.shape" not in source.entries for stem in stems):
        raise UnsupportedModelError(
            f"{source.path} says it is quantized with HQQ, but does not hold the tensors that transformers saves",
            "Quantize it again with a current transformers and hqq, and save_pretrained().",
        )
    source.kind = "hqq"
    for stem in stems:
        source.entries[f"{stem}.weight"] = _entry(source, stem)
    return True


def _entry(source: Source, stem: str) -> Entry:
    parts = take_parts(source, stem, ("W_q", "scale", "zero", *SETTINGS, *REST))
    known = {name: np.asarray(array_of(parts[name])).reshape(-1).tolist() for name in SETTINGS if name in parts}
    shape, bits, axis = known["shape"], known.get("nbits", [0]), known.get("axis", [1])
    if axis == [0]:
        raise UnsupportedModelError(
            f"{source.path}: {stem!r:.80} has HQQ's groups along axis 0, which lutra does not read",
            "Quantize the model with axis=1, HQQ's default.",
        )
    width, fields = _packing(stem, known.get("packing", []))
    group = known.get("group_size", shape[1:])
    sound = len(shape) == 2 and all(type(n) is int and n > 0 for n in (*shape, *group)) and len(bits) == len(group) == 1
    if not sound or axis != [1] or not 0 < bits[0] <= width or shape[1] % group[0]:
        raise CorruptModelError(f"{stem!r:.80}: {known!r:.200} is no sound description of a matrix")
    (rows, cols), (group,) = shape, group
    each = cols // group
    scale, zero = (part(parts, stem, name, FLOATS) for name in ("scale", "zero"))
    if any(entry.shape != (rows * each, 1) for entry in (scale, zero)):
        raise CorruptModelError(f"{stem!r:.80}: {scale.shape} scales and {zero.shape} zeros of {shape} in {group}s")
    words = _words(stem, parts, "<i4" if width == 3 else "u1", group)
    share = len(words)
    if share != -(-rows * each // fields):
        raise CorruptModelError(f"{stem!r:.80}: {share} rows of W_q for {rows * each} groups at {width} bits")

    def codes(some: slice) -> np.ndarray:
        own = np.arange(some.start * each, some.stop * each)
        shift = (width * (fields - 1 - own // share)).astype(words.dtype)
        found = words[own % share] >> shift[:, None] & (1 << width) - 1
        return found.astype(np.uint8).reshape(-1, cols)

    def by_row(entry: Entry) -> np.ndarray:
        return to_float32(array_of(entry)).reshape(rows, each)

    stored = ceil(bits[0])
    return Grid(
        stem,
        8 if stored == 7 else stored,
        (rows, cols),
        group if each > 1 else 0,
        codes,
        lambda: by_row(scale),
        lambda: by_row(zero),
        half=scale.dtype == "F16",
    ).entry()


def _packing(stem: str, letters: list[Any]) -> tuple[int, int]:
    name = bytes(n for n in letters if type(n) is int and 0 <= n < 128).decode()
    if name not in PACKINGS:
        raise UnsupportedModelError(
            f"{stem!r:.80} is packed in HQQ's way {name!r:.40}, which lutra does not read",
            f"lutra reads {', '.join(PACKINGS)}.",
        )
    return PACKINGS[name]


def _words(stem: str, parts: dict[str, Entry], dtype: str, group: int) -> np.ndarray:
    """W_q [rows, group], whatever type its bytes go by."""
    array = np.ascontiguousarray(array_of(part(parts, stem, "W_q", ("U8", "I32", *FLOATS)))).view(np.ndarray)
    if array.nbytes % (group * np.dtype(dtype).itemsize):
        raise CorruptModelError(f"{stem!r:.80}: W_q of {array.shape} has no rows of {group}")
    return array.reshape(-1).view(dtype).reshape(-1, group)

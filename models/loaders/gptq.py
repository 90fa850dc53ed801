"""GPTQ checkpoints (Frantar et al. 2022), by AutoGPTQ, GPTQModel, EfficientQAT or AutoRound, of 2, 3, 4 or 8 bits.

In a matrix's place: ``qweight`` int32 [in * bits / 32, out], a stream of codes down each column; ``qzeros`` int32
[groups, out * bits / 32], one along each row; ``scales`` [groups, out]; ``g_idx`` int32 [in], each input's group.
W[o, i] = scales[g, o] * (code[i, o] - zero[g, o]). The older of two conventions stores zero - 1. With ``desc_act``
columns were quantized in an order of their own: those of a group lie apart.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, WORDS, Grid, array_of, group_of, order_of, part, stems_of, take_parts
from lutra.models.loaders.words import unpack_words
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import to_float32

__all__ = ["decode"]

BITS = (2, 3, 4, 8)
# AutoRound's names of the two conventions.
AUTO_ROUND = {
    **dict.fromkeys(("auto", "auto_round:auto_gptq", "auto_round:gptq"), "gptq"),
    **dict.fromkeys(("auto_round", "auto_round:gptqmodel"), "gptq_v2"),
}
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}  # 1 in every field of a word


def decode(source: Source) -> bool:
    """Turn every quantized matrix into one on a grid; returns False for any other directory."""
    stems = stems_of(source, ".qweight")
    settings = _settings(source, bool(stems))
    if settings is None:
        return False
    kind = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if kind not in ("gptq", "gptq_v2"):
        raise UnsupportedModelError(
            f"{source.path} stores its weights in GPTQ's layout {kind!r:.40}, which lutra does not read",
            "Use a release in the layout gptq or gptq_v2.",
        )
    if not stems:
        raise CorruptModelError(f"{source.path} says it is quantized with GPTQ, but has no qweight")
    source.kind = "gptq"
    for stem in stems:
        source.entries[f"{stem}.weight"] = _entry(source, stem, settings, first=kind == "gptq")
    return True


def _settings(source: Source, quantized: bool) -> dict[str, Any] | None:
    """What is said about the quantization; None if it is not GPTQ's.

    EfficientQAT's own files say nothing: they have zeros as they are, and all else is in the tensors' shapes.
    """
    if said := source.quantization:
        packing = str(said.get("packing_format", "auto"))
        if "auto-round" in str(said.get("quant_method")) and packing in AUTO_ROUND:
            return {**said, "format": AUTO_ROUND[packing], "dynamic": said.get("extra_config")}
        return said if said.get("quant_method") == "gptq" else None
    if not quantized:
        return None
    path = source.path / "quantize_config.json"
    if not path.exists():
        return {"format": "gptq_v2"}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModelError(f"{path} is not sound JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CorruptModelError(f"{path} is not a JSON object")
    return settings if settings.get("quant_method", "gptq") == "gptq" else None


def _entry(source: Source, stem: str, settings: dict[str, Any], first: bool) -> Entry:
    parts = take_parts(source, stem, ("qweight", "qzeros", "scales", "g_idx"))
    weight, zeros = (part(parts, stem, name, WORDS) for name in ("qweight", "qzeros"))
    scales = part(parts, stem, "scales", FLOATS)
    groups, rows = scales.shape
    index = _index(parts, stem)
    bits, spaced, cols = _packing(stem, weight.shape, zeros.shape, scales.shape, index, settings)
    if settings.get("bits", bits) != bits and not settings.get("dynamic"):
        raise CorruptModelError(f"{stem!r:.80} has {bits} bits, the configuration says {settings['bits']!r:.20}")
    group = group_of(stem, cols, groups, settings.get("group_size"))

    def codes(some: slice) -> np.ndarray:
        return unpack_words(array_of(weight)[:, some].T, bits, cols, spaced)

    def zero() -> np.ndarray:
        return np.ascontiguousarray(_zeros(array_of(zeros), bits, rows, spaced, first).T.astype(np.float32))

    def scale() -> np.ndarray:
        found = array_of(scales)  # float16 stays so: converting it takes longer than the codes do
        return np.ascontiguousarray((found if scales.dtype == "F16" else to_float32(found)).T)

    if index is None and groups > 1 and settings.get("desc_act"):
        raise CorruptModelError(f"{stem!r:.80} has no g_idx, which its desc_act needs", "is the download complete?")
    order = order_of(stem, index, cols, group)
    return Grid(stem, bits, (rows, cols), group, codes, scale, zero, order, scales.dtype == "F16").entry()


def _packing(
    stem: str,
    weight: tuple[int, ...],
    zeros: tuple[int, ...],
    scales: tuple[int, ...],
    index: np.ndarray | None,
    settings: dict[str, Any],
) -> tuple[int, bool, int]:
    """Bits of a code, whether ten of 3 bits take a word, and columns: what the parts' shapes leave possible."""
    groups, rows = scales
    for bits in BITS:
        cols = weight[0] * 32 // bits
        streams = weight == (cols * bits // 32, rows) and zeros == (groups, rows * bits // 32)
        if streams and cols * bits % 32 == rows * bits % 32 == 0 and (index is None or len(index) == cols):
            return bits, False, cols
    group = settings.get("group_size")  # the last word of a column may be part empty
    cols = len(index) if index is not None else groups * group if type(group) is int else 0
    if cols > 0 and weight == (-(-cols // 10), rows) and zeros == (groups, -(-rows // 10)):
        return 3, True, cols
    raise CorruptModelError(
        f"{stem!r:.80}: qweight {weight}, qzeros {zeros} and scales {scales} do not fit together at 2, 3, 4 or 8 bits"
    )


def _zeros(words: np.ndarray, bits: int, rows: int, spaced: bool, first: bool) -> np.ndarray:
    """uint8 [groups, rows]. first: 1 is missing from each, as from one whole word, with borrows."""
    words = words.view(np.uint32)
    if first and bits in ONES:
        words = words + np.uint32(ONES[bits])
    zeros = unpack_words(words, bits, rows, spaced)
    return zeros + 1 & 7 if first and bits == 3 else zeros


def _index(parts: dict[str, Entry], stem: str) -> np.ndarray | None:
    return array_of(part(parts, stem, "g_idx", ("I32", "I64"), rank=1)) if "g_idx" in parts else None

"""Checkpoints of 8-bit floats (E4M3), as Qwen, Mistral, FBGEMM and, by modelopt.py, ModelOpt release them.

In a matrix's place: ``weight`` float8 [out, in]; ``weight_scale_inv`` or ``weight_scale``, by which it is multiplied
in spite of the name: one number, one per row [out, 1], or one per block [blocks of rows, blocks of columns]. What
scales activations is for kernels that round those to 8 bits, too: it is not read. A float8 tensor without a scale is
what it says.
"""

from __future__ import annotations

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, array_of, part, take_parts
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import BF16, E4M3, Scaled, is_finite, to_float32

__all__ = ["FLOAT8", "decode", "drop_scales_of_activations", "scaled", "unscaled"]

FLOAT8 = "F8_E4M3"
METHODS = ("fp8", "fbgemm_fp8")
GROUP = 128  # columns of our format f8g128
SCALES = ("weight_scale_inv", "weight_scale")
ACTIVATIONS = tuple(
    f".{name}"
    for name in ("activation_scale", "input_scale", "input_scale_ub", "input_global_scale", "k_scale", "v_scale")
)


def decode(source: Source) -> bool:
    """Turn every float8 matrix into one in our formats f8; returns False for any other directory."""
    settings = source.quantization
    if settings.get("quant_method") not in METHODS:
        return False
    stems = [name.removesuffix(".weight") for name, entry in source.entries.items() if _is_matrix(name, entry)]
    if not stems:
        raise UnsupportedModelError(
            f"{source.path} says {settings['quant_method']!r:.60}, but stores no weights as 8-bit floats",
            "Use a release of the model in float16, bfloat16 or FP8.",
        )
    source.kind = "fp8"
    drop_scales_of_activations(source)
    for stem in stems:
        source.entries[f"{stem}.weight"] = scaled(source, stem, settings.get("weight_block_size"))
    return True


def _is_matrix(name: str, entry: Entry) -> bool:
    return name.endswith(".weight") and entry.dtype == FLOAT8 and len(entry.shape) == 2


def drop_scales_of_activations(source: Source) -> None:
    """Forget them, and say so."""
    kept = {name: entry for name, entry in source.entries.items() if not name.endswith(ACTIVATIONS)}
    if len(kept) < len(source.entries):
        source.entries = kept
        source.notes.append("activations are not rounded as this release suggests: its scales for them are not read")


def scaled(source: Source, stem: str, block: object) -> Entry:
    """A matrix of float8, taken from the source with its scales. block: [rows, columns] that share one, or None."""
    parts = take_parts(source, stem, ("weight", *SCALES))
    weight = part(parts, stem, "weight", (FLOAT8,))
    stored = next((parts[name] for name in SCALES if name in parts), None)
    if stored is None:
        return unscaled(f"{stem}.weight", weight)
    if stored.dtype not in FLOATS or len(stored.shape) > 2:
        raise CorruptModelError(f"{stem!r:.80}: the scale is {stored.dtype} {stored.shape}, not numbers by blocks")
    scale = to_float32(array_of(stored))
    scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    if not is_finite(scale):
        raise CorruptModelError(f"{stem!r:.80} has scales that are not finite numbers")
    rows, cols = _shared(stem, weight.shape, scale.shape, block)

    kept = 0 if scale.shape[1] == 1 else GROUP if not cols % GROUP else cols

    def read(begin: int = 0, end: int = weight.shape[0]) -> Scaled:
        values = _floats(f"{stem}.weight", weight, begin, end)
        own = np.arange(begin, end) // rows
        groups = np.arange(0, weight.shape[1], kept or weight.shape[1]) // cols
        return Scaled(values, scale[own][:, groups], kept)

    if kept in (0, GROUP):
        return Entry(f"f8g{kept}" if kept else "f8", weight.shape, read, lambda: read)

    def wide() -> np.ndarray:
        values = to_float32(read())
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(BF16) if narrow else values

    narrow = bool((np.frexp(scale)[0] == 0.5).all())  # powers of two: bfloat16 holds the products
    return Entry("BF16" if narrow else "F32", weight.shape, wide)


def _shared(stem: str, shape: tuple[int, ...], scales: tuple[int, ...], block: object) -> list[int]:
    """Rows and columns that share a scale."""
    blocks = block if isinstance(block, (list, tuple)) and len(block) == 2 else (0, 0)
    shared = []
    for size, count, said in zip(shape, scales, blocks, strict=True):
        whole = {1: size, size: 1}.get(count) or (said if type(said) is int and said > 0 else 0)
        if not whole or -(-size // whole) != count:
            raise CorruptModelError(f"{stem!r:.80}: {scales} scales for {shape} in blocks of {block!r:.40}")
        shared.append(whole)
    return shared


def _floats(name: str, entry: Entry, begin: int = 0, end: int | None = None) -> np.ndarray:
    """What the file holds, some rows of it. CorruptModelError where there is a NaN: the kernels know none."""
    values = array_of(entry)[begin:end].view(E4M3)
    if not is_finite(values):
        raise CorruptModelError(f"{name!r:.80} has values that are not finite numbers", "Download the model again.")
    return values


def unscaled(name: str, entry: Entry) -> Entry:
    """A matrix of float8 without a scale, and any other tensor of it as float16, which holds all its values.

    Entries of other types as they are.
    """
    if entry.dtype != FLOAT8:
        return entry
    if len(entry.shape) == 2:
        rows = entry.shape[0]

        def read(begin: int = 0, end: int = rows) -> Scaled:
            values = _floats(name, entry, begin, end)
            return Scaled(values, np.ones((len(values), 1), np.float32))

        return Entry("f8", entry.shape, read, lambda: read)
    return Entry("F16", entry.shape, lambda: to_float32(_floats(name, entry)).astype(np.float16))

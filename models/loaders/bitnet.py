"""BitNet b1.58 in Hugging Face directories: ternary weights, packed, unpacked or still latent.

Two classes of transformers share ``quant_method: bitnet`` and disagree on ``weight_scale``:
BitLinear divides by it (it is 1/mean|W|), AutoBitLinear multiplies (it is mean|W|). Both become
the multiplying ``Coded``. Source: transformers ``integrations/bitnet.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.latent import blocks, look_at
from lutra.native import magnitude, signs
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Coded, to_float32

__all__ = ["decode", "is_linear", "latent_entry"]

CODES_PER_BYTE = 4
SMALLEST = np.finfo(np.float32).tiny  # below it, 1/scale would overflow


def decode(source: Source) -> bool:
    """Turn the converted matrices of a bitnet directory into ternary entries.

    Returns False for any other directory. Raises UnsupportedModelError for a variant that no
    released checkpoint uses, CorruptModelError where scales are missing or misshapen.
    """
    quantization = source.quantization
    if quantization.get("quant_method") != "bitnet":
        return False
    divides, online = _variant(quantization)
    source.kind = "bitnet"
    how = (
        "latent: ternarized when they are read"
        if online
        else f"{'divided' if divides else 'multiplied'} by weight_scale"
    )
    source.notes.append(f"the ternary weights are {how}")
    if source.config.get("model_type") == "bitnet":
        _architecture_defaults(source.config)
    skipped = _skip_test(quantization.get("modules_to_not_convert"))
    entries = source.entries
    for name, entry in list(entries.items()):
        if not (entry.dtype == "U8" or (is_linear(name, entry) and not skipped(name))):
            continue
        if online and entry.dtype != "U8":
            entries[name] = latent_entry(name, entry)
        else:
            entries[name] = _offline_entry(name, entry, _scale_reader(source, name, divides))
    for name in [name for name in entries if name.endswith(".weight_scale")]:
        del entries[name]
    return True


def _variant(quantization: dict[str, Any]) -> tuple[bool, bool]:
    """(whether ``weight_scale`` divides, whether the weights are still latent)."""
    linear = quantization.get("linear_class", "bitlinear")
    mode = quantization.get("quantization_mode", "offline")
    if linear not in ("bitlinear", "autobitlinear") or mode not in ("offline", "online"):
        raise UnsupportedModelError(f"the model's bitnet weights are of the unknown kind {linear!r:.40}, {mode!r:.40}")
    if quantization.get("use_rms_norm"):
        raise UnsupportedModelError(
            "the model normalizes the input of every linear layer (bitnet's use_rms_norm), which lutra does not do",
            "Use a checkpoint of the same model without use_rms_norm.",
        )
    # BitLinear has no online mode: transformers ignores the word there.
    return linear == "bitlinear", linear == "autobitlinear" and mode == "online"


def _architecture_defaults(config: dict[str, Any]) -> None:
    """What transformers' BitNetConfig means where the file is silent; Llama means otherwise."""
    config.setdefault("rms_norm_eps", 1e-5)
    if "rope_parameters" not in config:
        config.setdefault("rope_theta", 500000.0)


def is_linear(name: str, entry: Entry) -> bool:
    """Whether this is the matrix of a linear layer that BitNet converts.

    The head stays as it is, even where ``modules_to_not_convert`` forgets to list it.
    """
    module = name.removesuffix(".weight").rpartition(".")[2]
    matrix = name.endswith(".weight") and len(entry.shape) == 2
    return matrix and module not in ("embed_tokens", "lm_head")


def _skip_test(patterns: Any) -> Callable[[str], bool]:
    """The test that ``modules_to_not_convert`` stands for, as transformers reads it.

    A pattern is a regular expression for the start of a module's name, up to a dot, or a suffix.
    """
    patterns = patterns or []
    if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
        raise CorruptModelError("modules_to_not_convert in config.json is not a list of names")
    try:
        starts = [re.compile(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))") for pattern in patterns]
    except re.error as error:
        raise CorruptModelError(f"modules_to_not_convert in config.json holds a broken pattern: {error}") from error

    def skipped(name: str) -> bool:
        module = name.removesuffix(".weight")
        return module.endswith(tuple(patterns)) or any(start.match(module) for start in starts)

    return skipped


def _scale_reader(source: Source, name: str, divides: bool) -> Callable[[], np.float32]:
    """A function that reads a matrix's one scale, as the number to multiply with."""
    scale_name = f"{name}_scale"
    entry = source.entries.get(scale_name)
    if entry is None:
        raise CorruptModelError(f"{source.path} has {name!r:.80} but no {scale_name!r:.80}")
    if entry.shape not in ((), (1,)):
        raise CorruptModelError(f"{scale_name!r:.80} is not one number: its shape is {entry.shape}")
    stored_scale = entry

    def scale() -> np.float32:
        stored = np.float32(to_float32(_stored(stored_scale)).item())
        if not SMALLEST <= stored < np.inf:
            raise CorruptModelError(f"{scale_name!r:.80} is {stored}, which cannot be a scale")
        return np.float32(np.float32(1) / stored) if divides else stored

    return scale


def _offline_entry(name: str, entry: Entry, scale: Callable[[], np.float32]) -> Entry:
    """A matrix whose codes are on disk: four to a byte, or each as a float -1, 0 or +1."""
    if len(entry.shape) != 2:
        raise CorruptModelError(f"{name!r:.80} is packed but is no matrix: {entry.shape}")
    packed = entry.dtype == "U8"
    rows, columns = entry.shape
    shape = (rows * CODES_PER_BYTE if packed else rows, columns)
    codes_of = _unpack if packed else _as_codes

    def by_rows() -> Callable[[int, int], Coded]:
        own = scale()

        def read(begin: int, end: int) -> Coded:
            codes = codes_of(name, _stored(entry), begin, end)
            return Coded(codes, np.full((len(codes), 1), own, np.float32))

        return read

    return Entry("ternary", shape, lambda: by_rows()(0, shape[0]), by_rows)


def _unpack(name: str, packed: np.ndarray, begin: int, end: int) -> np.ndarray:
    """uint8 [R, in] -> int8 [end - begin, in]: bits 2i and 2i+1 of row r are 1 + the code of row i*R + r."""
    height = len(packed)
    codes = np.empty((end - begin, packed.shape[1]), np.uint8)
    for i in range(CODES_PER_BYTE):
        first, last = max(begin, i * height), min(end, (i + 1) * height)
        if first < last:
            own = codes[first - begin : last - begin]
            np.right_shift(packed[first - i * height : last - i * height], 2 * i, out=own)
    codes &= 3
    if codes.max(initial=0) > 2:
        raise CorruptModelError(f"{name!r:.80} holds the code 3, which no ternary weight has")
    signed = codes.view(np.int8)
    signed -= 1
    return signed


def _as_codes(name: str, weights: np.ndarray, begin: int, end: int) -> np.ndarray:
    codes = np.empty((end - begin, weights.shape[1]), np.int8)
    for rows, block in blocks(weights, begin, end):
        codes[rows] = signs(block)
        if not np.array_equal(codes[rows], block):
            raise CorruptModelError(f"{name!r:.80} holds other values than -1, 0 and +1")
    return codes


def latent_entry(name: str, entry: Entry) -> Entry:
    """A float matrix to be ternarized when it is read: the weights that training moves.

    rint(W/m) clamped to -1..+1 with m = max(mean|W|, 1e-5), in transformers' float32 steps. The mean is summed in
    float64, where transformers sums in float32 in an order of its own.
    """
    if entry.dtype not in ("F32", "F16", "BF16", "F64"):
        raise CorruptModelError(f"{name!r:.80} should hold latent floats, not {entry.dtype}")

    def by_rows() -> Callable[[int, int], Coded]:
        latent = _stored(entry)
        inverse = np.float32(1) / max(_mean(name, latent), np.float32(1e-5))
        scale = np.float32(1) / inverse

        def read(begin: int, end: int) -> Coded:
            codes = np.empty((end - begin, entry.shape[1]), np.int8)
            for rows, block in blocks(latent, begin, end):
                codes[rows] = signs(block * inverse, beyond=0.5)
            return Coded(codes, np.full((len(codes), 1), scale, np.float32))

        return read

    return Entry("ternary", entry.shape, lambda: by_rows()(0, entry.shape[0]), by_rows)


def _mean(name: str, latent: np.ndarray) -> np.float32:
    """The mean magnitude."""
    sums: list[float] = []
    look_at(latent, lambda _, block: sums.append(magnitude(block)))
    mean = np.float32(math.fsum(sums) / max(latent.size, 1))  # the same in whatever order they came
    if not np.isfinite(mean):
        raise CorruptModelError(f"{name!r:.80} holds weights that are not finite numbers")
    return mean


def _stored(entry: Entry) -> np.ndarray:
    """What the file holds for an entry that nothing has decoded yet."""
    matrix = entry.read()
    assert isinstance(matrix, np.ndarray)
    return matrix

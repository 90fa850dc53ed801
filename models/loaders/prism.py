"""PrismML's GGUF files whose matrices lie behind a rotation (Ternary Bonsai 2, 2026): what ``prism.hadamard.*`` says.

A matrix M that is named there stands for M H diag(s): H has Walsh-Hadamard matrices on its diagonal, s is 1 or -1 for
every column, the same for all matrices of that many columns. Whoever ignores it gets a model of noise, so every key is
known or refused. Source: the runtime's own description in PrismML's fork of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lutra.models.loaders.checkpoint import Entry
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Matrix, Rotated, rotated

__all__ = ["rotate"]

PREFIX = "prism."
HADAMARD = "prism.hadamard."
FIXED = {"version": 1, "transform": "normalized-sylvester-walsh-hadamard", "axis": "input-last-dimension"}
OTHERS = ("block_size", "sign_mode", "sign_widths", "sign_values", "weight_names", "inverse_weight_names")
GROUPED = "gdn_v_grouped"  # columns of these matrices are in Hugging Face's order of heads, when no others are
GROUPED_MATRICES = "linear_attn.out_proj.weight"


def rotate(
    metadata: Mapping[str, Any], names: Mapping[str, str], entries: dict[str, Entry], config: Mapping[str, Any]
) -> list[str]:
    """Put the matrices that the metadata names behind their rotation, in ``entries``; returns what there is to note.

    names: the tensors' names in the file -> those in entries. Raises UnsupportedModelError for a key or a value that
    is not known, CorruptModelError for what contradicts itself.
    """
    said = {key for key in metadata if key.startswith(PREFIX)}
    if not said:
        return []
    _check(metadata, said)
    block = metadata[f"{HADAMARD}block_size"]
    signs = _signs(metadata, block)
    turned = dict.fromkeys([*_names(metadata, "weight_names"), *_names(metadata, "inverse_weight_names")])
    for name in turned:
        entry = entries.get(names.get(name, ""))
        if entry is None or len(entry.shape) != 2:
            raise CorruptModelError(f"{HADAMARD}weight_names has {name!r:.80}, but the file has no such matrix")
        cols = entry.shape[1]
        if cols not in signs:
            raise CorruptModelError(f"{HADAMARD}sign_widths lacks the {cols} columns of {name!r:.80}")
        grouped = bool(metadata.get(f"{HADAMARD}{GROUPED}")) and names[name].endswith(GROUPED_MATRICES)
        order = _grouped_order(config, cols) if grouped else None
        entries[names[name]] = _entry(entry, signs[cols], block, order)
    return [f"{len(turned)} matrices meet activations that are rotated, {block} columns at a time"]


def _check(metadata: Mapping[str, Any], said: set[str]) -> None:
    known = {f"{HADAMARD}{key}" for key in (*FIXED, *OTHERS, GROUPED)}
    if strange := sorted(said - known):
        raise UnsupportedModelError(
            f"this GGUF file asks for {strange[0]!r:.80}, which lutra does not know",
            "Its weights mean nothing without.",
        )
    for key, value in FIXED.items():
        if (found := metadata.get(f"{HADAMARD}{key}")) != value:
            raise UnsupportedModelError(f"lutra knows no {HADAMARD}{key} {found!r:.80}", f"it knows {value!r}")
    block = metadata.get(f"{HADAMARD}block_size")
    if type(block) is not int or rotated.variant(f"{block}-f32") is None:
        raise UnsupportedModelError(f"lutra has no rotation of {HADAMARD}block_size {block!r:.40}")


def _names(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(f"{HADAMARD}{key}", [])
    if isinstance(found, np.ndarray) and not len(found):
        found = []  # an empty list may be one of anything
    if not isinstance(found, list):
        raise CorruptModelError(f"{HADAMARD}{key} is {found!r:.80}, which is no list of names")
    return found


def _signs(metadata: Mapping[str, Any], block: int) -> dict[int, np.ndarray]:
    """The signs of all matrices of so many columns."""
    mode = metadata.get(f"{HADAMARD}sign_mode")
    if mode == "identity":
        return _Ones()
    if mode != "explicit":
        raise UnsupportedModelError(f"lutra knows no {HADAMARD}sign_mode {mode!r:.40}", "it knows explicit, identity")
    widths: Any = metadata.get(f"{HADAMARD}sign_widths")
    values: Any = metadata.get(f"{HADAMARD}sign_values")
    lists = isinstance(widths, np.ndarray) and isinstance(values, np.ndarray)
    if not lists or widths.dtype.kind not in "iu" or (widths < 1).any() or sum(widths.tolist()) != len(values):
        raise CorruptModelError(f"{HADAMARD}sign_widths do not make up its sign_values")
    if (widths % block).any() or len(set(widths.tolist())) < len(widths) or not np.isin(values, (1, -1)).all():
        raise CorruptModelError(f"{HADAMARD}sign_values are not 1 and -1 for blocks of {block} columns")
    parts = np.split(values.astype(np.float32), np.cumsum(widths)[:-1])
    return dict(zip(widths.tolist(), parts, strict=True))


class _Ones(dict[int, np.ndarray]):
    """No signs at all, of any width."""

    def __contains__(self, cols: object) -> bool:
        return True

    def __missing__(self, cols: int) -> np.ndarray:
        return np.ones(cols, np.float32)


def _grouped_order(config: Mapping[str, Any], cols: int) -> np.ndarray | None:
    """Where each column of Hugging Face's order of heads is among the activations', whose heads llama.cpp has tiled."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    if heads % keys or cols % heads:
        raise CorruptModelError(f"{cols} columns are none of {heads} heads in {keys} groups")
    if heads == keys:
        return None
    order = np.arange(cols, dtype=np.int32).reshape(heads // keys, keys, -1)
    return np.ascontiguousarray(order.swapaxes(0, 1)).ravel()


def _entry(entry: Entry, signs: np.ndarray, block: int, order: np.ndarray | None) -> Entry:
    """The matrix behind the rotation. One that has a scale per row stays one of groups, as its activations are."""
    format = {"ternary": "q2", "F32": "f32", "F16": "f16", "BF16": "bf16"}.get(entry.dtype, entry.dtype)
    if entry.shape[1] % block:
        raise CorruptModelError(f"{entry.shape[1]} columns are no blocks of {block}")

    def read() -> Matrix:
        return Rotated(entry.read(), signs, block, order)

    return replace(entry, dtype=f"rotated{block}{'' if order is None else 'o'}-{format}", read=read, by_rows=None)

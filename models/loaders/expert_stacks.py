"""Mixtures with all experts' matrices in one tensor, as gpt-oss and Qwen3.5 have them: each becomes one by itself.

``X.experts.gate_up_proj`` and ``X.experts.down_proj`` are float [experts, out, in], gates above what is up. gpt-oss has
[experts, in, out], where gates and what is up come by turns, and beside them ``.._bias`` [experts, out]. Granite's are
called ``X.input_linear.weight`` and ``X.output_linear.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, array_of
from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import Matrix

__all__ = ["put_experts", "split_experts", "stacks_of"]

STACK = re.compile(r"(.*\.experts)\.(gate_up|down)_proj(|_bias|_blocks|_scales)")
GRANITE = {"input_linear.weight": "experts.gate_up_proj", "output_linear.weight": "experts.down_proj"}


def stacks_of(source: Source, ending: str) -> Iterator[tuple[str, str, Entry]]:
    """Name up to "experts", "gate_up" or "down", and the entry of all stacks with this ending; they are taken out."""
    for name in list(source.entries):
        found = STACK.fullmatch(name)
        if found and found[3] == ending:
            entry = source.entries.pop(name)
            if 0 in entry.shape:
                raise CorruptModelError(f"{name!r:.80} has the shape {entry.shape}")
            yield found[1], found[2], entry


def split_experts(source: Source) -> None:
    """Turn stacks of float matrices, and of biases, into an entry for each of an expert's."""
    turned = _by_turns(source)
    for name in [name for name, entry in source.entries.items() if len(entry.shape) == 3]:
        stem, _, own = name.rpartition("block_sparse_moe.")
        if own in GRANITE:
            source.entries[f"{stem}block_sparse_moe.{GRANITE[own]}"] = source.entries.pop(name)
    for stem, part, entry in stacks_of(source, ""):
        _require_floats(stem, part, entry, 3)
        _, rows, cols = entry.shape if not turned else (entry.shape[0], *entry.shape[:0:-1])

        def matrix(e: int, some: slice, entry: Entry = entry) -> Matrix:
            stored = array_of(entry)[e]
            return (stored.T if turned else stored)[some]

        put_experts(source, stem, part, entry.dtype, (entry.shape[0], rows, cols), matrix)
    for stem, part, entry in stacks_of(source, "_bias"):
        _require_floats(stem, part, entry, 2)

        def bias(e: int, some: slice, entry: Entry = entry) -> Matrix:
            return array_of(entry)[e][some]

        put_experts(source, stem, part, entry.dtype, entry.shape, bias, "bias")


def put_experts(
    source: Source,
    stem: str,
    part: str,
    dtype: str,
    shape: tuple[int, ...],
    read: Callable[[int, slice], Matrix],
    kind: str = "weight",
) -> None:
    """Entries for every expert's matrices in a stack [experts, out ..]. read(expert, rows): some rows of one."""
    count, rows, *rest = shape
    halves = {"down_proj": slice(None)}
    if part == "gate_up":
        if rows % 2:
            raise CorruptModelError(f"{stem!r:.80}: {rows} rows are not gates and as many others")
        middle, turns = rows // 2, _by_turns(source)
        halves = {
            "gate_proj": slice(0, None, 2) if turns else slice(0, middle),
            "up_proj": slice(1, None, 2) if turns else slice(middle, rows),
        }
    for e in range(count):
        for name, some in halves.items():
            own = (rows // len(halves), *rest)
            source.entries[f"{stem}.{e}.{name}.{kind}"] = Entry(dtype, own, partial(read, e, some))


def _by_turns(source: Source) -> bool:
    """Whether rows of gates and those of what is up take turns, and float matrices lie transposed."""
    return source.config.get("model_type") == "gpt_oss"


def _require_floats(stem: str, part: str, entry: Entry, rank: int) -> None:
    if entry.dtype not in FLOATS or len(entry.shape) != rank:
        raise CorruptModelError(f"{stem!r:.80}.{part}_proj is {entry.dtype} {entry.shape}, not experts' floats")

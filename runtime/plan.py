"""Plans: a graph laid out in memory and bound to kernels, ready to be run with one native call per step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lutra import native
from lutra.runtime import memory, passes
from lutra.runtime.formats import Packed
from lutra.runtime.graph import Graph, Node, StateSymbol, Symbol

__all__ = ["Plan"]

ALIGN = 64


@dataclass(frozen=True)
class _Place:
    space: int
    offset: int
    stride: int  # bytes from row to row


class Plan:
    """A graph bound to an engine.

    ids, logits: the graph's input and result, which live in each session. rows: how many tokens one step can
    feed; output_rows: how many logits it can return. The scratch memory is shared by all sessions: the engine
    runs one step at a time.
    """

    def __init__(self, engine: native.Engine, graph: Graph, ids: Symbol, logits: Symbol, rows: int, output_rows: int):
        self.rows, self.output_rows = rows, output_rows
        passes.prune(graph, logits)
        stages = passes.stages(graph)
        self._row_count = {False: rows, True: output_rows}
        self._places = {
            ids: _Place(native.IDS, 0, ids.dtype.itemsize),
            logits: _Place(native.LOGITS, 0, logits.cols * logits.dtype.itemsize),
        }
        scratch = self._place(stages)
        self.scratch = memory.zeros(scratch + ALIGN)
        self._kept: list[Any] = []  # arrays whose addresses the plan holds
        ops = [self._op(node, joined=i > 0) for stage in stages for i, node in enumerate(stage)]
        self.native = native.Plan(engine, ops, self._kept)
        graph.nodes.clear()  # nodes and symbols hold each other, and the weights: those go with the plan
        graph.known.clear()

    def _place(self, stages: list[list[Node]]) -> int:
        """Give every symbol its bytes of the scratch memory; returns how many there are.

        Memory is free again one stage after its last reader: within a stage, threads are at different ops. An op whose
        result may lie over an input takes that input's bytes, if nobody reads them after it.
        """
        last: dict[Symbol, tuple[int, Node]] = {}
        for i, stage in enumerate(stages):
            last |= {a.base: (i, node) for node in stage for a in node.args if isinstance(a, Symbol)}
        blocks: dict[Symbol, tuple[int, int]] = {}  # (begin, end) of the scratch memory
        free: dict[tuple[int, int], int] = {}  # after which stage
        total = 0
        for i, stage in enumerate(stages):
            free = {block: until for block, until in free.items() if until >= i}
            for node in stage:
                for symbol in (out for out in node.outs if out not in self._places):
                    stride = -(-symbol.cols * symbol.dtype.itemsize // ALIGN) * ALIGN
                    under = next((a for a in node.args if _dies(a, node, symbol, last) and a.base in blocks), None)
                    if under:
                        block, place = blocks[under.base], self._places[under.base]
                        start = under.start * under.dtype.itemsize
                        self._places[symbol] = _Place(native.SCRATCH, place.offset + start, place.stride)
                    else:
                        size = stride * self._row_count[symbol.outputs] * symbol.times
                        begin = _first_gap(sorted(free), size)
                        block = (begin, begin + size)
                        total = max(total, block[1])
                        self._places[symbol] = _Place(native.SCRATCH, begin, stride)
                    blocks[symbol] = block
                    free[block] = max(free.get(block, 0), last[symbol][0] if symbol in last else i)
        return total

    def _op(self, node: Node, joined: bool) -> native.Op:
        experts = next((len(a.experts) for a in node.args if isinstance(a, Packed)), 0)
        inputs, chosen = (node.args[:-1], self._args(node.args[-1])[0]) if experts else (node.args, None)
        args: list[native.Arg] = []
        for arg in (*node.outs, *inputs):
            args.extend(self._args(arg))
        ints = [int(v) for v in node.attrs.values() if isinstance(v, (bool, int))]
        floats = [v for v in node.attrs.values() if isinstance(v, float)]
        return native.Op(node.name, args, ints, floats, node.outputs, joined, node.times, experts, chosen)

    def _args(self, arg: Any) -> list[native.Arg]:
        if isinstance(arg, StateSymbol):
            return []  # kernels reach the session through the step
        if isinstance(arg, Symbol):
            place = self._places[arg.base]
            return [native.Arg(place.space, place.offset + arg.start * arg.dtype.itemsize, arg.cols, place.stride)]
        if isinstance(arg, Packed) and arg.experts:
            parts = [np.ascontiguousarray(part) for part in arg.parts.values()]
            return [replace(a, each=part[0].nbytes) for part in parts for a in self._args(part[0])]
        if isinstance(arg, Packed):
            return [a for part in arg.parts.values() for a in self._args(part)]
        array = np.ascontiguousarray(arg)
        self._kept.append(array)
        stride = array.strides[0] if array.ndim > 1 else array.nbytes
        return [native.Arg(native.ABSOLUTE, array.ctypes.data, array.shape[-1], stride)]


def _dies(arg: Any, node: Node, out: Symbol, last: dict[Symbol, tuple[int, Node]]) -> bool:
    """Whether the node may write ``out`` over its input: as long as that, and read by no other, nor shifted."""
    if not (node.over and isinstance(arg, Symbol) and (arg.cols, arg.dtype) == (out.cols, out.dtype)):
        return False
    views = [a for a in node.args if isinstance(a, Symbol) and a.base is arg.base]
    apart = all(a.start == arg.start or abs(a.start - arg.start) >= arg.cols for a in views)
    return last[arg.base][1] is node and apart


def _first_gap(blocks: list[tuple[int, int]], size: int) -> int:
    """The lowest offset with ``size`` free bytes among the blocks (begin, end), sorted by where they begin."""
    at = 0
    for begin, end in blocks:
        if begin - at >= size:
            return at
        at = max(at, end)
    return at

"""Graphs: what a model's forward() leaves behind when it is run on symbols instead of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, signature
from typing import Any

import numpy as np

__all__ = ["Graph", "Node", "StateSymbol", "Symbol", "op"]


@dataclass(eq=False)
class Symbol:
    """An array of activations to come: one row per token, ``cols`` elements of ``dtype`` in a row.

    ``outputs``: it has a row only for the tokens whose logits are wanted. ``times``: it has so many rows per token.
    A column range of another symbol (``whole``) starts at its column ``start``.
    """

    graph: Graph
    cols: int
    dtype: np.dtype
    outputs: bool = False
    times: int = 1
    start: int = 0
    whole: Symbol | None = None

    @property
    def shape(self) -> tuple[str, int]:
        """Like an array's, with a name for the number of rows."""
        return ("outputs" if self.outputs else "tokens", self.cols)

    @property
    def base(self) -> Symbol:
        """The symbol that owns the memory."""
        return self.whole or self

    def columns(self, start: int, stop: int) -> Symbol:
        """The view [:, start:stop]."""
        return Symbol(self.graph, stop - start, self.dtype, self.outputs, self.times, self.start + start, self.base)


@dataclass(eq=False)
class StateSymbol:
    """Stands for the session: its KV cache, and where in it the step is."""

    graph: Graph
    kv_type: str


@dataclass(eq=False)
class Node:
    """One op: ``outs`` = name(*args, **attrs), on ``times`` rows per token, or per output.

    ``local``: row r of its outputs needs row r of its inputs only. ``over``: it may write them over an input of as many
    columns.
    """

    name: str
    args: tuple[Any, ...]
    attrs: dict[str, Any]
    outs: tuple[Symbol, ...]
    outputs: bool
    times: int
    local: bool
    over: bool = False


@dataclass(eq=False)
class Graph:
    """Nodes in the order they were recorded, which is an order they can run in. known: each by what it was made of."""

    nodes: list[Node] = field(default_factory=list)
    known: dict[Any, Node] = field(default_factory=dict, repr=False)

    def symbol(self, cols: int, dtype: Any, outputs: bool = False, times: int = 1) -> Symbol:
        """A new input of the graph."""
        return Symbol(self, cols, np.dtype(dtype), outputs, times)

    def record(
        self,
        name: str,
        args: Sequence[Any],
        attrs: dict[str, Any],
        out: Any,
        local: bool,
        times: int | None = None,
        over: bool = False,
    ) -> Any:
        """Add a node whose outputs have the (cols, dtype) listed in ``out``; returns them as the op would.

        times: rows per token of the outputs, where inputs may have others; None: as many as all inputs have.
        An op on the same arrays gives the same again, unless it looks into the session: that is not recorded twice.
        """
        key = (name, *map(id, args), *attrs.items())
        if known := self.known.get(key):
            return _result(known)
        rows = {(a.outputs, a.times if times is None else 1) for a in args if isinstance(a, Symbol)}
        if len(rows) > 1:
            raise ValueError(f"{name}: some inputs have a row per token, others a row per output or several")
        ((outputs, common),) = rows
        outputs = outputs or name == "tail"
        outs = tuple(self.symbol(cols, dtype, outputs, times or common) for cols, dtype in out)
        node = Node(name, tuple(args), attrs, outs, outputs, common, local, over)
        self.nodes.append(node)
        if not any(isinstance(a, StateSymbol) for a in args):
            self.known[key] = node
        return _result(node)


def _result(node: Node) -> Any:
    return node.outs[0] if len(node.outs) == 1 else node.outs or None


def op(
    out: Callable[..., Sequence[tuple[int, Any]]],
    *,
    name: str | None = None,
    suffix: Callable[..., str] | None = None,
    local: bool = True,
    times: Callable[..., int] | None = None,
    over: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a numpy function an op: called with symbols, it records a node instead of computing.

    Positional parameters are the op's inputs, keyword-only ones its attributes; a kernel gets both in this
    order (native/api.h). ``out(*args, **attrs)`` lists the (cols, dtype) of each output. The op's name is the
    function's unless given; ``suffix`` completes it when it depends on an input, as in "linear" + "_t5".
    ``times(*args)``: rows per token of its outputs, where its inputs may have others. ``over``: its kernels read no
    element of a row behind one that they write, so the result may lie where an input was.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = signature(function).parameters.values()
        attributes = [p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY]

        @wraps(function)
        def call(*args: Any, **attrs: Any) -> Any:
            graph = next((a.graph for a in args if isinstance(a, (Symbol, StateSymbol))), None)
            if graph is None:
                return function(*args, **attrs)
            full_name = (name or function.__name__) + (suffix(*args) if suffix else "")
            ordered = {attribute: attrs[attribute] for attribute in attributes}
            return graph.record(full_name, args, ordered, out(*args, **attrs), local, times and times(*args), over)

        return call

    return wrap

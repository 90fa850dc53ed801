"""Passes over a graph: graph in, graph out, or what the plan needs to know of it."""

from __future__ import annotations

from lutra.runtime.graph import Graph, Node, Symbol

__all__ = ["prune", "stages"]


def prune(graph: Graph, result: Symbol) -> None:
    """Drop nodes whose outputs nobody reads. Nodes without outputs are kept: they change the session."""
    wanted = {result.base}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.outs and not wanted.intersection(node.outs):
            continue
        wanted.update(arg.base for arg in node.args if isinstance(arg, Symbol))
        kept.append(node)
    graph.nodes = kept[::-1]


def stages(graph: Graph) -> list[list[Node]]:
    """Nodes that run together, row by row, with no barrier between them.

    A row-local node joins a row-local one before it: a thread takes a range of rows through all of them, so
    norms, residuals, gates and quantization need no fused kernels.
    """
    found: list[list[Node]] = []
    for node in graph.nodes:
        before = found[-1][-1] if found else None
        alike = before and (before.outputs, before.times) == (node.outputs, node.times)
        if before and alike and before.local and node.local:
            found[-1].append(node)
        else:
            found.append([node])
    return found

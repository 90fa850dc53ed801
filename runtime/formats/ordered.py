"""ordered: matrices that meet x's columns in an order of their own, in another format: GPTQ's activation order.

Columns that share a scale then lie side by side. ordered-q4g128z is q4g128z behind such an order; made for each
matrix as it is needed, so no variant is typical.
"""

from __future__ import annotations

from lutra.runtime.formats._chained import Chained, Link

TYPICAL = None


def variant(suffix: str) -> Chained | None:
    """The format ordered + suffix."""
    if not suffix.startswith("-") or suffix.startswith(("-ordered", "-rows")):
        return None  # names come from files: they do not nest
    return Chained(lambda rows, cols: [[Link(suffix[1:], rows, cols, ordered=True)]])

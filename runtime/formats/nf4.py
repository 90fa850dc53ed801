"""nf4: 4-bit normal floats (QLoRA, Dettmers et al. 2023): a normal distribution's quantiles times a group's largest.

Variants: nf4g64, as published, or nf4g32, nf4g128.
"""

from __future__ import annotations

import re

from lutra.runtime.formats._codebook import Values

TYPICAL = "nf4g64"
# The midpoints of 8 and 9 equal shares of a normal distribution's halves, scaled to 1 (QLoRA, appendix E).
VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def variant(suffix: str) -> Values | None:
    """The format nf4 + suffix."""
    found = re.fullmatch(r"g(32|64|128)", suffix)
    return Values(VALUES, int(found[1]), digits=2) if found else None

"""iq4: sixteen values that lie closer together near 0, with a scale per 32 columns: GGUF's IQ4_NL and IQ4_XS.

Variants: iq4g32, whose scales are float16 (_codebook.py); iq4g32s256, whose scales are integers times a float per 256
columns (_nested_codebook.py).
"""

from __future__ import annotations

from lutra.runtime.formats._codebook import Values
from lutra.runtime.formats._nested_codebook import NestedValues

TYPICAL = "iq4g32"
# Source: kvalues_iq4nl in llama.cpp's ggml-common.h.
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_KNOWN: dict[str, Values | NestedValues] = {
    "g32": Values(VALUES, 32, digits=2),
    "g32s256": NestedValues(VALUES, 32, 256, floats=False),
}


def variant(suffix: str) -> Values | NestedValues | None:
    """The format iq4 + suffix."""
    return _KNOWN.get(suffix)

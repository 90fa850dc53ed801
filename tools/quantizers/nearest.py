"""Every float to the nearest value that the format has: codebooks and plain numbers round by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.formats import Matrix

BY_ROWS = True
KERNELS = ("c3", "c4", "q8", "f16", "bf16", "f32")


def fits(codec: Any) -> bool:
    """Codebooks, q8 and floats."""
    return codec.KERNEL in KERNELS


def quantize(values: np.ndarray, codec: Any) -> Matrix:
    """The floats themselves: ``pack`` rounds them."""
    return values

"""Weight formats: how the integers of a matrix become bytes that every kernel reads in place.

One module here per format, named as the format. A loader says what a matrix *is* (``Coded``, or a
float array); a format says how it is *stored* (``Packed``). N loaders and M formats meet in ``Coded``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Coded", "Packed"]


@dataclass(frozen=True)
class Coded:
    """A matrix of small integers with scales: W[o, i] = codes[o, i] * scale[o].

    codes: int8 [out, in]; scale: float32 [out].
    """

    codes: np.ndarray
    scale: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape  # type: ignore[return-value]

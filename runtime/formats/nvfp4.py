"""nvfp4: 4-bit floats, E2M1, with a scale of 8 bits, E4M3, per 16 columns, times a float of the row (NVIDIA 2025).

Values are twice as large as E2M1's, which makes them whole; rows are half as large.
"""

from __future__ import annotations

from lutra.runtime.formats._nested_codebook import NestedValues

TYPICAL = None  # no floats are rounded to it
_POSITIVE = (0, 1, 2, 3, 4, 6, 8, 12)
VALUES = (*_POSITIVE, *(-v for v in _POSITIVE))
_FORMAT = NestedValues(VALUES, 16, 0, floats=True)
KERNEL, ACT_GROUP, block = _FORMAT.KERNEL, _FORMAT.ACT_GROUP, _FORMAT.block
layout, accepts, pack, unpack = _FORMAT.layout, _FORMAT.accepts, _FORMAT.pack, _FORMAT.unpack

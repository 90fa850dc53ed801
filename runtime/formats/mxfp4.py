"""mxfp4: 4-bit floats, E2M1, with a scale per 32 columns (OCP Microscaling Formats 1.0, 5.3).

Scales that are powers of two between 2^-24 and 2^15, as the standard's are in practice, are kept exactly.
"""

from __future__ import annotations

from lutra.runtime.formats._codebook import Values

_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*_POSITIVE, *(-v for v in _POSITIVE))
_FORMAT = Values(VALUES, 32, digits=1)
KERNEL, ACT_GROUP = _FORMAT.KERNEL, _FORMAT.ACT_GROUP
layout, accepts, pack, unpack = _FORMAT.layout, _FORMAT.accepts, _FORMAT.pack, _FORMAT.unpack

"""The element types checkpoints store, and the one way a bfloat16 array looks in numpy."""

from __future__ import annotations

import numpy as np

from lutra.runtime.formats import Coded

__all__ = ["BF16", "DTYPES", "to_float32", "dtype_name"]

# By the names safetensors gives them. Every file we read is little endian.
DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


class BF16(np.ndarray):
    """bfloat16 numbers as their uint16 bit patterns: make one with ``bits.view(BF16)``.

    numpy has no bfloat16, so a value is the upper half of a float32. The class marks the bits
    through slicing and reshaping; arithmetic on it is integer arithmetic: use ``to_float32``.
    """


def to_float32(x: np.ndarray | Coded) -> np.ndarray:
    """The values of ``x`` as a float32 array of its shape; a float32 array comes back as is."""
    if isinstance(x, Coded):
        return x.codes * x.scale[:, None]
    if isinstance(x, BF16):
        return (x.view(np.ndarray).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(x, dtype=np.float32)


def dtype_name(x: np.ndarray) -> str:
    """The safetensors name of an array's element type, such as "F32" or "BF16".

    Raises ValueError for an element type that safetensors cannot hold.
    """
    if isinstance(x, BF16):
        return "BF16"
    for name, dtype in DTYPES.items():
        if dtype == x.dtype and name != "BF16":
            return name
    raise ValueError(f"no checkpoint stores elements of type {x.dtype}")

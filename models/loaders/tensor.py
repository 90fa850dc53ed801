"""The element types that checkpoints store, by the names safetensors gives them."""

from __future__ import annotations

import numpy as np

from lutra.runtime.formats import BF16

__all__ = ["DTYPES", "dtype_name"]

# Every file we read is little endian. numpy has no bfloat16: its arrays are bits, marked BF16.
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
    "F8_E4M3": np.dtype("u1"),  # as bits, too: fp8.py
}


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

"""Build step: turns api.h into the Python module that cffi loads. Usage: emit_api.py api.h _api.py"""

import re
import sys

from cffi import FFI


def main(header: str, output: str) -> None:
    """Parse the declarations of ``header`` and write them to ``output`` as an out-of-line cffi module."""
    with open(header, encoding="utf-8") as f:
        declarations = re.sub(r"^#.*$", "", f.read(), flags=re.MULTILINE)
    ffi = FFI()
    ffi.cdef(declarations)
    ffi.set_source("lutra.native._api", None)
    ffi.emit_python_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Instructions that a matrix kernel executes on 64-bit ARM, for every weight and token.

A program of one kernel and nothing else is linked, and run under emulation one instruction at a time. What a run of the
kernel adds to it is counted: decoding, products, scales, and what the C library does for them. Products and moves count
alike, so a count is no time. But it needs no such machine, and is the same every time. Weights and activations are 0:
no kernel looks at what they are.

    make arm                           builds the library for ARM in build/arm; the tests that follow may be stopped
    python -m lutra.tools.count_arm    from the top folder: the table of SPEED.md

Needs what `make arm` needs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lutra import native
from lutra.runtime import formats
from lutra.runtime.errors import LutraError
from lutra.runtime.ops import INT8_PAD
from lutra.tools.program import exit_status

__all__ = ["count"]

FORMATS = ["t5", "t2", "b1", "q2g128", "q3g128", "q4g128", "q6g64"]
LEVELS = ["neon", "dotprod", "i8mm"]
ROWS, COLS = 32, 2560
BUILD = Path("build/arm")
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
# Its arguments: how often to run the kernel; tokens; the op's group; rows, elements and their bytes of each argument.
PROGRAM = """
#include <stdlib.h>
#include "kernels/kernel.h"
extern const lt_kernel KERNEL;

int main(int argc, char **argv) {
    lt_step step = {.n_tokens = atoi(argv[2]), .n_ctx = 1 << 20};
    lt_op op = {.dim = {atoi(argv[3])}, .times = 1};
    for (int i = 0; 4 + 3 * i < argc; i++) {
        char **of = argv + 4 + 3 * i;
        const int64_t rows = atoll(of[0]), cols = atoll(of[1]), stride = (cols * atoi(of[2]) + 63) / 64 * 64;
        void *memory = aligned_alloc(64, rows * stride);
        if (memory == NULL) return 1;
        memset(memory, 0, rows * stride);
        op.arg[i] = (lt_arg){.offset = (intptr_t)memory, .cols = cols, .stride = stride};
    }
    const int32_t units = KERNEL.units(&op, &step);
    for (int n = atoi(argv[1]); n > 0; n--) KERNEL.run(&op, &step, 0, units);
    return 0;
}
"""


def count(format: str, level: str, tokens: int, build: Path = BUILD, rows: int = ROWS, cols: int = COLS) -> float:
    """Instructions per weight and token of a format's linear on a CPU level: "neon", "dotprod" or "i8mm".

    build: where CMake compiled the library for ARM. Raises LutraError where there is no such kernel, and if linking or
    running it fails.
    """
    codec = formats.codec(format)
    kernel = f"linear_{codec.KERNEL}"
    objects = sorted(build.glob(f"CMakeFiles/kernels_{level}.dir/kernels/**/{kernel}.c.o"))
    if not codec.KERNEL or not objects:
        raise LutraError(f"no kernel of {format} for {level} in {build}", "build it with `make arm`")
    if min(tokens, rows, cols) < 1:
        raise LutraError(f"nothing to count: {tokens} tokens, {rows} x {cols} weights")
    arguments = [tokens, codec.ACT_GROUP or 0, *(n for shape in _shapes(codec, tokens, rows, cols) for n in shape)]
    with tempfile.TemporaryDirectory() as folder:
        program = _link(f"{kernel}_{level}", objects[0], Path(folder))
        never, once = (_executed([program, times, *arguments]) for times in (0, 1))
    return (once - never) / (rows * cols * tokens)


def _shapes(codec: Any, tokens: int, rows: int, cols: int) -> list[tuple[int, int, int]]:
    """Rows, elements of a row and their bytes of each argument, as ops.linear passes them to a kernel."""
    found = [(tokens, rows, 4)]
    if codec.ACT_GROUP is None:
        found += [(tokens, cols, 4)]
    else:
        groups = -(-cols // (codec.ACT_GROUP or cols))
        found += [(tokens, -(-cols // INT8_PAD) * INT8_PAD, 1), (tokens, groups, 4), (tokens, groups, 4)]
    for dtype, shape in codec.layout(rows, cols).values():
        found += [(shape[0] if len(shape) > 1 else 1, shape[-1], np.dtype(dtype).itemsize)]
    return found


def _link(kernel: str, object: Path, folder: Path) -> Path:
    source, program = folder / "count.c", folder / "count"
    source.write_text(PROGRAM)
    flags = ["-std=gnu11", "-O2", "-static", f"-DKERNEL={kernel}", f"-I{Path(native.__file__).parent}"]
    with _started([COMPILER, *flags, source, object, "-o", program, "-lm"]) as process:
        said = process.communicate()[1].decode(errors="replace").strip()
    if process.returncode:
        raise LutraError(f"{COMPILER} ended with status {process.returncode}: {said}")
    return program


def _executed(command: Sequence[object]) -> int:
    """How many instructions a program executes. The emulator writes a line for each."""
    with _started([EMULATOR, "-cpu", "max,sve=off", "-singlestep", "-d", "exec,nochain", *command]) as process:
        lines = sum(line.startswith(b"Trace") for line in process.stderr or ())
    if process.returncode or not lines:
        raise LutraError(f"{EMULATOR} ended with status {process.returncode} after {lines} instructions")
    return lines


def _started(command: Sequence[object]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE)
    except OSError as error:
        raise LutraError(f"{command[0]} does not start: {error.strerror}") from None


def _names(text: str) -> list[str]:
    """A list like t5,t2."""
    return list(dict.fromkeys(name for name in text.split(",") if name))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser("python -m lutra.tools.count_arm", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--formats", type=_names, default=FORMATS, metavar="NAME,NAME", help=f"default {','.join(FORMATS)}")
    p.add_argument("--levels", type=_names, default=LEVELS, metavar="NAME,NAME", help=f"default {','.join(LEVELS)}")
    p.add_argument("-n", "--tokens", type=_names, default=["1", "96"], metavar="N,N", help="at a time (default 1,96)")
    p.add_argument("--rows", type=int, default=ROWS, metavar="N", help="of the matrix (default %(default)s)")
    p.add_argument("--cols", type=int, default=COLS, metavar="N", help="of the matrix (default %(default)s)")
    p.add_argument("--build", type=Path, default=BUILD, metavar="DIR", help="the library for ARM (default %(default)s)")
    return p


def _run(args: argparse.Namespace) -> None:
    print(f"| {args.rows} x {args.cols} | {' | '.join(args.formats)} |")
    print("|---" * (len(args.formats) + 1) + "|")
    for tokens in map(int, args.tokens):
        for level in args.levels:
            found = [count(format, level, tokens, args.build, args.rows, args.cols) for format in args.formats]
            cells = [f"{level}, {f'{tokens} tokens, each' if tokens > 1 else '1 token'}", *(f"{n:.3f}" for n in found)]
            print(f"| {' | '.join(cells)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, in Markdown. The command line's exit status."""
    args = parser().parse_args(argv)
    return exit_status(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())

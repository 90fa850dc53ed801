"""lutra convert: write a checkpoint as lutra's own packed directory."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

from lutra.cli.common import in_bytes, in_numbers
from lutra.cli.parser import Parser

if TYPE_CHECKING:
    from lutra.tools.convert import Report, Tensor

HELP = "Pack a model once, so that it starts at once from then on"

EXAMPLES = """\
examples:
  lutra convert bitnet-b1.58-2B-4T                 writes bitnet-b1.58-2B-4T-lutra here
  lutra convert stories15M.bin stories
  lutra convert Falcon3-1B --embed-type q8         smaller, with a small error in embedding and output"""


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra convert SRC [DST] [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("what")
    group.add_argument("src", metavar="SRC", help="a Hugging Face model directory, or a llama2.c model")
    group.add_argument("dst", metavar="DST", nargs="?", help="the directory to write (default: SRC's name + -lutra)")
    group.add_argument("--embed-type", choices=("q8", "q6", "q4", "f16", "bf16", "f32"), metavar="TYPE",
                       help="q8, q6, q4, f16, bf16 or f32 for embedding and output (default: as they are)")  # fmt: skip
    group.add_argument("--ternary-type", choices=("t5", "t2"), metavar="TYPE",
                       help="t5, 1.6 bits a weight, or t2, 2 bits (default: what this CPU runs best)")  # fmt: skip
    group = parser.add_argument_group("how")
    group.add_argument("--force", action="store_true", help="replace DST if an earlier conversion wrote it")
    group.add_argument("--dry-run", action="store_true", help="print sizes and formats, write nothing")
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing that is not an error")


def run(args: argparse.Namespace) -> int:
    """Convert, and say on one line what came of it."""
    from lutra.tools.convert import convert

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is half done is removed
    dst = args.dst or _default_name(args.src)
    progress = _show if sys.stderr.isatty() and not args.quiet and not args.dry_run else None
    report = convert(
        args.src,
        None if args.dry_run else dst,
        embed_type=args.embed_type,
        ternary_type=args.ternary_type,
        force=args.force,
        progress=progress,
    )
    if progress:
        print("\r\x1b[K", end="", file=sys.stderr)
    if args.dry_run:
        for tensor in report.tensors:
            print(_line(tensor))
    if not args.quiet:
        print(f"{'' if args.dry_run else f'{dst}: '}{_summary(report)}")
    return 0


def _default_name(src: str) -> str:
    name = os.path.basename(os.path.realpath(src))
    return (os.path.splitext(name)[0] if os.path.isfile(src) else name) + "-lutra"


def _show(tensor: Tensor) -> None:
    print(f"\r\x1b[K{_line(tensor)}", end="", flush=True, file=sys.stderr)


def _line(tensor: Tensor) -> str:
    """[ 57/332] layers.12.gate_up  2048x5632  t5  3.1 MB"""
    width = len(str(tensor.count))
    shape = "x".join(map(str, tensor.shape))
    place = f"[{tensor.index + 1:{width}}/{tensor.count}]"
    return f"{place} {tensor.role:24} {shape:>12}  {tensor.format:4} {in_bytes(tensor.nbytes):>9}"


def _summary(report: Report) -> str:
    """2.41 B params · 1.18 GB (from 4.83 GB) · 4.1 bpw · 38 s"""
    sizes = f"{in_bytes(report.nbytes)} (from {in_bytes(report.source_nbytes)})"
    time = f"{report.seconds:.0f} s" if report.seconds >= 10 else f"{report.seconds:.1f} s"
    return f"{in_numbers(report.n_params)} params · {sizes} · {report.bits_per_weight:.1f} bpw · {time}"

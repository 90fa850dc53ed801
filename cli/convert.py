"""lutra convert: write a checkpoint as lutra's own packed directory."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

from lutra.cli.common import UsageError, in_bytes, in_numbers, read_text
from lutra.cli.parser import Parser, at_least
from lutra.runtime.errors import LutraError

if TYPE_CHECKING:
    from lutra.tools.convert import Report, Tensor

HELP = "Pack a model once, so that it starts at once from then on; or quantize it"

EXAMPLES = """\
examples:
  lutra convert bitnet-b1.58-2B-4T                 writes bitnet-b1.58-2B-4T-lutra here; nothing is lost
  lutra convert SmolLM2-1.7B small -q q4g32        4-bit layers, 8-bit embedding and output
  lutra convert SmolLM2-1.7B small -q q3g64z --method gptq -f text.txt"""


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra convert SRC [DST] [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("what")
    group.add_argument("src", metavar="SRC", nargs="?", help="a model of any kind that lutra opens")
    group.add_argument("dst", metavar="DST", nargs="?", help="the directory to write (default: SRC's name + -lutra)")
    group.add_argument("--embed-type", choices=("q8", "q6", "q4", "f16", "bf16", "f32"), metavar="TYPE",
                       help="q8, q6, q4, f16, bf16 or f32: embedding and output (default: as is, or q8)")  # fmt: skip
    group.add_argument("--ternary-type", choices=("t5", "t2"), metavar="TYPE",
                       help="t5, 1.6 bits a weight, or t2, 2 bits (default: what this CPU runs best)")  # fmt: skip
    group = parser.add_argument_group("quantization")
    group.add_argument("-q", "--quantize", metavar="FORMAT",
                       help="quantize the layers, as to q4g32, q3g64z, bcq3g128, t5")  # fmt: skip
    group.add_argument("--bpw", type=float, metavar="X", help="with -q littlebit: bits per weight, 0.1 to 2")
    group.add_argument(
        "--method", metavar="NAME", help="rtn, gptq, bcq, ternary, littlebit, nearest (default: by FORMAT)"
    )
    group.add_argument(
        "-f", "--calibration", metavar="TEXT", help="a text file for --method gptq; - reads standard input"
    )
    group.add_argument("--samples", type=at_least(1), default=32, metavar="N", help="pieces of that text")
    group.add_argument("--sample-length", type=at_least(1), default=512, metavar="N", help="tokens of a piece")
    group = parser.add_argument_group("how")
    group.add_argument("--force", action="store_true", help="replace DST if an earlier conversion wrote it")
    group.add_argument("--dry-run", action="store_true", help="print sizes and formats, write nothing")
    group.add_argument("--quiet", action="store_true", help="print nothing that is not an error")
    group.add_argument("--print-supported-models", action="store_true", help="list the architectures lutra runs")
    group.add_argument("--print-formats", action="store_true", help="list the formats of -q")


def run(args: argparse.Namespace) -> int:
    """Convert, and say on one line what came of it."""
    if args.print_supported_models or args.print_formats:
        print("\n".join(_architectures() if args.print_supported_models else _formats()))
        return 0
    if args.src is None:
        raise UsageError("SRC is missing", "lutra convert --help")
    if "" in (args.src, args.dst):
        raise UsageError("SRC or DST is empty", "is the shell's variable set?")
    from lutra.tools.calibrate import Calibration
    from lutra.tools.convert import convert

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is half done is removed
    dst = args.dst or _default_name(args.src)
    show = not args.quiet and not args.dry_run and sys.stderr.isatty()
    text = None if args.calibration is None else read_text(args.calibration)
    report = convert(
        args.src,
        None if args.dry_run else dst,
        embed_type=args.embed_type,
        ternary_type=args.ternary_type,
        quantize=_format(args),
        method=args.method,
        calibration=None if text is None else Calibration(text, args.samples, args.sample_length),
        force=args.force,
        progress=_show if show else None,
    )
    if show:
        print("\r\x1b[K", end="", file=sys.stderr)
    if args.dry_run:
        for tensor in report.tensors:
            print(_line(tensor))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not args.quiet:
        print(f"{'' if args.dry_run else f'{dst}: '}{_summary(report, args.dry_run)}")
    return 0


def _format(args: argparse.Namespace) -> str | None:
    """The format that the flags ask for. Raises UsageError for one that does not exist."""
    from lutra.runtime import formats

    name: str | None = args.quantize
    if name is None:
        if given := [f"--{flag}" for flag in ("bpw", "method", "calibration") if getattr(args, flag) is not None]:
            raise UsageError(f"{given[0]} says how to quantize, and nothing says to what", "-q FORMAT")
        return None
    if args.bpw is not None:
        if name != "littlebit":
            raise UsageError("--bpw goes with -q littlebit; other formats have their bits in their names")
        if not 0.1 <= args.bpw <= 2:
            raise UsageError(f"--bpw is {args.bpw}", "LittleBit takes 0.1 to 2 bits per weight")
        name = f"littlebit-{float(f'{args.bpw:.3f}')}"
    elif name == "littlebit":
        raise UsageError("-q littlebit needs a number of bits", "--bpw 0.55")
    try:
        formats.codec(name)
    except LutraError as error:
        raise UsageError(str(error), error.hint) from None
    return name


def _architectures() -> list[str]:
    import pkgutil

    import lutra.models
    from lutra.runtime.errors import UnsupportedModelError
    from lutra.runtime.model import architecture

    found = []
    for module in pkgutil.iter_modules(lutra.models.__path__):
        try:
            architecture({"model_type": module.name})
        except UnsupportedModelError:
            continue
        found.append(module.name)
    return found


def _formats() -> list[str]:
    """Every format that a method makes, with its methods; of families, a typical one."""
    from lutra.runtime import formats
    from lutra.tools.quantizers import methods

    lines = []
    for name in formats.names():
        codec = formats.codec(name)
        able = [method for method, module in methods().items() if module.fits(codec)]
        if able:
            lines.append(f"{name:16}{', '.join(able)}")
    return lines


def _default_name(src: str) -> str:
    name = os.path.basename(os.path.realpath(src))
    return (os.path.splitext(name)[0] if os.path.isfile(src) else name) + "-lutra"


def _show(tensor: Tensor) -> None:
    """A weight at work in place; one that has been quantized on a line that stays."""
    end = "" if tensor.error is None else "\n"
    print(f"\r\x1b[K{_line(tensor)}", end=end, flush=True, file=sys.stderr)


def _line(tensor: Tensor) -> str:
    """[ 57/332] layers.12.gate_up  2048x5632  t5  3.1 MB"""
    width = len(str(tensor.count))
    shape = "x".join(map(str, tensor.shape))
    place = f"[{tensor.index + 1:{width}}/{tensor.count}]"
    error = "" if tensor.error is None else f"  error {100 * tensor.error:.3f} %"
    return f"{place} {tensor.role:24} {shape:>12}  {tensor.format:4} {in_bytes(tensor.nbytes):>9}{error}"


def _summary(report: Report, dry_run: bool) -> str:
    """2.41 B params · 1.18 GB (from 4.83 GB) · 4.1 bpw · error 0.655 % · 38 s"""
    parts = [
        f"{in_numbers(report.n_params)} params",
        f"{in_bytes(report.nbytes)} (from {in_bytes(report.source_nbytes)})",
        f"{report.bits_per_weight:.1f} bpw",
    ]
    if report.error is not None:
        parts.append(f"error {100 * report.error:.3f} %")
    if dry_run:
        time = "" if report.estimate is None else f" and about {_seconds(report.estimate)}"
        parts.append(f"takes {in_bytes(report.memory)} of memory{time}")
    else:
        parts.append(_seconds(report.seconds))
    return " · ".join(parts)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"

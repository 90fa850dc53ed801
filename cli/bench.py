"""lutra bench: how fast a model runs here, in llama-bench's rows, beside the most this machine could do."""

from __future__ import annotations

import argparse
import sys
from itertools import product
from typing import TYPE_CHECKING

from lutra.cli.common import UsageError, add_cache_type
from lutra.cli.parser import Parser, at_least
from lutra.runtime.errors import LutraError

if TYPE_CHECKING:
    from lutra.tools.bench import Entry, Row, Test

HELP = "Measure prompt and generation speed"

EXAMPLES = """\
examples:
  lutra bench                                        the built-in model
  lutra bench --shape bitnet-2b-4t --format t5,q4g32 -p 0 -n 24 -r 3 -t 1,2
  lutra bench path/to/model -p 512 -n 128 -pg 512,128 -d 0,4096 -o json"""

HEAD = "q8"  # that no name in the table mentions


def _counts(text: str) -> list[int]:
    """A list like 1,2,4."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,2,4") from None
    if min(counts) < 0:
        raise argparse.ArgumentTypeError(f"{min(counts)} is less than 0")
    return counts


def _pair(text: str) -> tuple[int, int]:
    counts = _counts(text)
    if len(counts) != 2 or 0 in counts:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of sizes such as 512,128")
    return counts[0], counts[1]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _formats(text: str) -> list[str]:
    from lutra.runtime import formats

    names = text.lower().split(",")  # as papers write them, too: LittleBit-0.1
    for name in names:
        try:
            formats.codec(name)
        except LutraError as error:
            raise argparse.ArgumentTypeError(f"{error}; {error.hint}") from None
    return names


def _heads(text: str) -> list[str]:
    from lutra import native
    from lutra.runtime import formats

    names = _formats(text)
    for name in names:
        if f"embed_{formats.codec(name).KERNEL}_scalar" not in native.kernels():
            raise argparse.ArgumentTypeError(f"{name} cannot store an embedding")
    return names


def _shape(text: str) -> str:
    from lutra.tools.bench import SHAPES

    if text not in ("list", *SHAPES):
        raise argparse.ArgumentTypeError(f"unknown shape {text!r}; choose from {', '.join(SHAPES)}")
    return text


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra bench [MODEL] [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("what to measure")
    group.add_argument("model", nargs="?", help="a model; without one and without --shape the built-in one")
    group.add_argument("--shape", type=_shape, metavar="NAME", help="a model of this published shape, random weights")
    group.add_argument("--format", type=_formats, metavar="NAME,...",
                       help="how --shape stores its layers; a model for each (default t5)")  # fmt: skip
    group.add_argument("--head", type=_heads, metavar="NAME,...",
                       help=f"how --shape stores its embedding and output (default {HEAD})")  # fmt: skip
    group.add_argument("--list", action="store_true", help="list the shapes and formats there are")
    group.add_argument("-p", "--n-prompt", type=_counts, default=[512], metavar="N,...",
                       help="prompt tokens (default 512); 0: none")  # fmt: skip
    group.add_argument("-n", "--n-gen", type=_counts, default=[128], metavar="N,...",
                       help="tokens generated (default 128); 0: none")  # fmt: skip
    group.add_argument("-pg", "--prompt-gen", type=_pair, action="append", default=[], metavar="N,N",
                       help="a prompt, then tokens generated, as one test; repeatable")  # fmt: skip
    group.add_argument("-d", "--n-depth", type=_counts, default=[0], metavar="N,...",
                       help="tokens in the context beforehand (default 0)")  # fmt: skip
    group = parser.add_argument_group("how")
    group.add_argument("-t", "--threads", type=_counts, default=[0], metavar="N,...",
                       help="numbers of threads (default 0: all CPUs)")  # fmt: skip
    group.add_argument("-r", "--repetitions", type=at_least(1), default=5, help="runs of each test")
    group.add_argument("--delay", type=_seconds, default=0.0, metavar="SECONDS", help="rest between tests")
    group.add_argument("--no-warmup", action="store_true", help="count the first run, too")
    add_cache_type(group)
    group.add_argument("-o", "--output", choices=["md", "json", "jsonl", "csv"], default="md", help="form of the rows")
    group.add_argument("--progress", action="store_true", help="print every run to stderr")


def run(args: argparse.Namespace) -> int:
    """Print one row per model, number of threads and test."""
    from lutra.tools import bench

    if args.shape == "list":
        print("\n".join(bench.SHAPES))
        return 0
    if args.list:
        print(f"shapes: {', '.join(bench.SHAPES)}\nformats: {', '.join(bench.FORMATS)}, and their variants")
        return 0
    rows: list[Row] = []
    try:
        _measure(args, rows)
    finally:  # what was measured is not lost to an error or Ctrl-C
        if rows:
            print(bench.render(rows, args.output))
    return 0


def _measure(args: argparse.Namespace, rows: list[Row]) -> None:
    from lutra.runtime.threads import default as default_threads
    from lutra.tools import bench

    found = bench.bench(
        _entries(args),
        _tests(args),
        threads=[n or default_threads() for n in args.threads],
        repeats=args.repetitions,
        kv_type=args.cache_type,
        warmup=not args.no_warmup,
        delay=args.delay,
        progress=(lambda text: print(text, file=sys.stderr)) if args.progress else (lambda _: None),
    )
    for row in found:
        rows.append(row)
        if args.progress or sys.stderr.isatty():
            name = f"{row.model_type}, {row.n_threads} threads, {row.test}"
            print(f"{name}: {row.avg_ts:.2f} ± {row.stddev_ts:.2f} t/s", file=sys.stderr)


def _tests(args: argparse.Namespace) -> list[Test]:
    from lutra.tools.bench import Test

    plain = [(n, 0) for n in args.n_prompt if n] + [(0, n) for n in args.n_gen if n]
    sizes = [*plain, *args.prompt_gen]
    tests = [Test(n_prompt, n_gen, depth) for depth in args.n_depth for n_prompt, n_gen in sizes]
    if not tests:
        raise UsageError("there is nothing to measure", "-p, -n or -pg says what")
    return tests


def _entries(args: argparse.Namespace) -> list[Entry]:
    """The models to measure, none of them loaded yet."""
    from lutra.runtime.llm import resolve
    from lutra.runtime.model import Model
    from lutra.tools import bench

    if args.shape and args.model:
        raise UsageError("either a model or --shape", "leave one of them out")
    if args.shape:
        return [_synthetic(args.shape, *named) for named in product(args.format or ["t5"], args.head or [HEAD])]
    if args.format or args.head:
        raise UsageError("--format and --head say how --shape stores its weights; a model's are as they are")
    path = resolve(args.model)
    return [bench.Entry(path.name, lambda n_ctx: Model.load(path, threads=1), str(path))]


def _synthetic(shape: str, format: str, head: str) -> Entry:
    from lutra.tools import bench

    name = f"{shape} {format}" + ("" if head == HEAD else f" + {head}")
    return bench.Entry(name, lambda n_ctx: bench.synthetic(shape, format, head, n_ctx=n_ctx, threads=1), synthetic=True)

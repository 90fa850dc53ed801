"""lutra bench: how fast a model runs here, in llama-bench's rows, beside the bandwidth of this machine's memory."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lutra.cli.common import add_cache_type
from lutra.cli.parser import Parser, at_least

if TYPE_CHECKING:
    from collections.abc import Callable

    from lutra.runtime.model import Model

HELP = "Measure prompt and generation speed"

EXAMPLES = """\
examples:
  lutra bench                                        the built-in model
  lutra bench --shape bitnet-2b-4t --format t5 -p 0 -n 24 -r 3 -t 1,2
  lutra bench path/to/model -p 512 -n 128 -o json"""


def _counts(text: str) -> list[int]:
    """A list like 1,2,4."""
    return [at_least(0)(part) for part in text.split(",")]


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra bench [MODEL] [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("what to measure")
    group.add_argument("model", nargs="?", help="a model; without one and without --shape the built-in one")
    group.add_argument("--shape", metavar="NAME", help="a model of this published shape with random weights; 'list'")
    group.add_argument("--format", default="t5", metavar="NAME", help="how --shape stores its layers")
    group.add_argument("--head", default="q8", metavar="NAME", help="how --shape stores its embedding and output")
    group.add_argument("-p", "--n-prompt", type=_counts, default=[512], metavar="N,N", help="prompt tokens; 0: none")
    group.add_argument("-n", "--n-gen", type=_counts, default=[128], metavar="N,N", help="tokens generated; 0: none")
    group.add_argument("-d", "--n-depth", type=at_least(0), default=0, help="tokens in the context beforehand")
    group = parser.add_argument_group("how")
    group.add_argument("-t", "--threads", type=_counts, metavar="N,N", help="numbers of threads; all CPUs by default")
    group.add_argument("-r", "--repetitions", type=at_least(1), default=5, help="runs of each test")
    group.add_argument("--no-warmup", action="store_true", help="count the first run, too")
    add_cache_type(group)
    group.add_argument("-o", "--output", choices=["md", "json", "jsonl", "csv"], default="md", help="form of the rows")


def run(args: argparse.Namespace) -> int:
    """Print one row per test and number of threads."""
    from lutra.runtime.threads import default as default_threads
    from lutra.tools import bench

    if args.shape == "list":
        print("\n".join(bench.SHAPES))
        return 0
    model, name = _model(args)
    tests = [(n, 0) for n in args.n_prompt if n] + [(0, n) for n in args.n_gen if n]
    rows = []
    for row in bench.bench(
        model,
        tests,
        threads=args.threads or [default_threads()],
        repeats=args.repetitions,
        depth=args.n_depth,
        name=name,
        warmup=not args.no_warmup,
    ):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"{row.n_threads} threads, {row.test}: {row.avg_ts:.2f} t/s", file=sys.stderr)
    if rows:
        print(bench.render(rows, args.output))
    return 0


def _model(args: argparse.Namespace) -> tuple[Callable[[int], Model], str]:
    """Makes the model for a number of threads, sharing its weights; and its name in the table."""
    from lutra.runtime.llm import resolve
    from lutra.runtime.model import Model
    from lutra.tools import bench

    if args.shape:
        base = bench.synthetic(args.shape, args.format, args.head, threads=1)
        name = f"{args.shape} {args.format}"
    else:
        path = resolve(args.model)
        base, name = Model.load(path, threads=1), path.name
    base.close()
    return lambda threads: Model(base.arch, base.config, base.weights, threads=threads, kv_type=args.cache_type), name

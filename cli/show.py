"""lutra show: what a checkpoint is, and what it takes to run it. Only headers are read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lutra.cli.common import add_cache_type, in_bytes, in_numbers
from lutra.cli.parser import Parser, at_least

if TYPE_CHECKING:
    from lutra.tools.describe import Memory, Report, Weights

HELP = "Show what a model is: shapes, formats, conventions, memory"

EXAMPLES = """\
examples:
  lutra show                                the built-in model
  lutra show path/to/model -c 4096          the memory that a context of 4096 tokens takes
  lutra show path/to/model --json"""


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra show [MODEL] [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("what")
    group.add_argument("model", nargs="?", help="a model of any kind that lutra opens (default: the built-in one)")
    group.add_argument("-c", "--ctx-size", "--num-ctx", type=at_least(1), metavar="N",
                       help="context to say the memory for (default: the model's)")  # fmt: skip
    add_cache_type(group)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print it for programs")


def run(args: argparse.Namespace) -> int:
    """Print the description; 4 if it is of a model that lutra cannot run."""
    from lutra.runtime.llm import resolve
    from lutra.tools.describe import describe

    report = describe(resolve(args.model), n_ctx=args.ctx_size, kv_type=args.cache_type)
    if args.json:
        import json

        print(json.dumps(report.json(), indent=2))
    else:
        print("\n".join(_lines(report)))
    return 4 if report.refusal else 0


def _lines(report: Report) -> list[str]:
    c = report.config
    rows = {"model": report.path, "kind": f"{report.kind}, architecture {report.architecture}"}
    if report.refusal:
        rows["cannot run"] = report.refusal
    if c:
        rows["shape"] = (
            f"{c['layers']} layers of {c['hidden']}, {c['heads']} heads of {c['head_dim']}, {c['kv_heads']} kv heads, "
            f"vocabulary {c['vocab']}, context {c['n_ctx']}"
        )
    size = f"{in_bytes(report.nbytes)} · {report.bits_per_weight:.2f} bits per weight"
    rows["weights"] = f"{in_numbers(report.n_params)} params · {size}"
    rows["tokenizer"] = _tokenizer(report)
    if report.memory:
        rows["memory"] = _memory(report.memory)
    listed = [("convention", text) for text in report.conventions] + [("warning", text) for text in report.warnings]
    head = ("role", "count", "shape", "stored", "format", "bits", "bytes")
    table = [head, *(_cells(w) for w in report.weights)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        *(f"{name:11}{text}" for name, text in [*rows.items(), *listed]),
        "",
        *("  ".join(map(_aligned, row, widths, range(7))).rstrip() for row in table),
    ]


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in (0, 3, 4) else cell.rjust(width)


def _cells(w: Weights) -> tuple[str, ...]:
    shape = "x".join(map(str, w.shape))
    return w.role, str(w.count), shape, w.stored, w.format or "-", f"{w.bits_per_weight:.2f}", in_bytes(w.nbytes)


def _tokenizer(report: Report) -> str:
    t = report.tokenizer
    if t is None:
        return "none"
    template = "a chat template" if report.chat_template else "no chat template"
    return f"{t['kind']}, {t['vocab']} tokens, begins with {t['bos']}, ends with {t['eos']}; {template}"


def _memory(m: Memory) -> str:
    free = "" if m.available is None else f"; {in_bytes(m.available)} are free"
    parts = f"weights {in_bytes(m.weights)} + {m.kv_type} cache of {m.n_ctx} tokens {in_bytes(m.cache)}"
    return f"{in_bytes(m.total)}: {parts}{free}"

"""lutra perplexity: how well a model predicts a text, and how far it is from another."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from lutra.cli.common import UsageError, add_cache_type, counted, open_model, read_text, usage_errors
from lutra.cli.parser import Parser, at_least
from lutra.runtime.errors import LutraError

if TYPE_CHECKING:
    from lutra.runtime.model import Model
    from lutra.tools.perplexity import Result

HELP = "Measure how well a model predicts a text, or how far it is from another"

EXAMPLES = """\
Perplexity is exp of the mean negative log-likelihood of the tokens scored:
  as llama.cpp    windows of -c tokens side by side, each begun with the token that begins a text if the tokenizer adds
                  one; the later half of a window is scored
  --stride N      as Hugging Face: windows begin every N tokens, every token but a window's first is scored once;
                  papers take -c 2048 --stride 2048
A last window that is not whole is left out. Compare figures of the same custom, context and text only.

examples:
  lutra perplexity path/to/model -f wiki.test.raw
  lutra perplexity path/to/model -f wiki.test.raw -c 2048 --stride 2048
  lutra perplexity model-q4 -f wiki.test.raw --against model     Kullback-Leibler divergence, too"""


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra perplexity [MODEL] -f TEXT [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("what")
    group.add_argument("model", nargs="?", help="a model (default: the built-in one)")
    group.add_argument("-f", "--file", required=True, metavar="TEXT", help="a text file; - reads standard input")
    group.add_argument("-c", "--ctx-size", "--num-ctx", type=at_least(4), default=512, metavar="N",
                       help="tokens of a window")  # fmt: skip
    group.add_argument("--stride", "--ppl-stride", type=at_least(1), metavar="N",
                       help="windows begin every N tokens (default: llama.cpp's way)")  # fmt: skip
    group.add_argument("--chunks", type=at_least(1), metavar="N", help="score so many windows only (default: all)")
    group.add_argument("--against", metavar="MODEL2",
                       help="a reference, such as the model before it was quantized")  # fmt: skip
    group = parser.add_argument_group("how")
    group.add_argument("-t", "--threads", type=at_least(0), metavar="N",
                       help="threads (default: the CPUs this process may use)")  # fmt: skip
    add_cache_type(group)
    group.add_argument("--json", action="store_true", help="print it for programs")


def run(args: argparse.Namespace) -> int:
    """Score the text, and print what is known; after Ctrl-C, too."""
    text = read_text(args.file)
    with open_model(args, args.model) as (model, _):
        ids = model.tokenizer.encode(text)
        if args.against is None:
            _measure(args, model, ids, None)
        else:
            with open_model(args, args.against) as (reference, _):
                if reference.tokenizer.encode(text) != ids:
                    raise LutraError("the two models' tokenizers read this text differently")
                _measure(args, model, ids, reference)
    return 0


def _measure(args: argparse.Namespace, model: Model, ids: list[int], reference: Model | None) -> None:
    from lutra.tools.perplexity import perplexity

    if args.stride and args.stride > args.ctx_size:
        raise UsageError(f"a stride of {args.stride} leaves out tokens between windows of {args.ctx_size}")
    bos = model.tokenizer.bos_id
    begin = bos if model.tokenizer.encode("")[:1] == [bos] else None
    result = None
    try:
        with usage_errors():
            for result in perplexity(
                model,
                ids,
                n_ctx=args.ctx_size,
                stride=args.stride,
                begin=begin,
                chunks=args.chunks,
                reference=reference,
            ):
                _show(result)
    finally:  # what was measured is not lost to an error or Ctrl-C
        if result:
            if sys.stderr.isatty():
                print(file=sys.stderr)
            print(json.dumps(result.json(), indent=2) if args.json else "\n".join(_lines(result)), flush=True)


def _show(result: Result) -> None:
    """[3/17] 5.9066, in place."""
    if sys.stderr.isatty():
        text = f"[{result.windows}/{result.n_windows}] {result.perplexity:.4f}"
        print(f"\r\x1b[K{text}", end="", flush=True, file=sys.stderr)


def _lines(result: Result) -> list[str]:
    found = result.json()
    custom = f"stride {result.stride}" if result.stride else "later halves, as llama.cpp"
    part = "" if result.windows == result.n_windows else f" of {result.n_windows}"
    lines = [
        f"PPL = {found['perplexity']:.4f} +/- {found['error']:.4f}",
        f"{counted(result.windows, 'window')}{part} of {result.n_ctx} tokens, {custom}; {result.scored} tokens scored; "
        f"{found['tokens_per_second']:.1f} tok/s",
    ]
    if d := found.get("divergence"):
        percentiles = ", ".join(f"{p} %: {value:.6f}" for p, value in d["percentiles"].items())
        lines += [
            f"reference PPL = {found['reference_perplexity']:.4f}; ratio {found['ratio']:.5f}",
            f"KL divergence = {d['mean']:.6f} +/- {d['error']:.6f}, max {d['max']:.6f}; {percentiles}",
            f"same top token: {100 * d['same_top']:.2f} %",
        ]
    return lines

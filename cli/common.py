"""What run and chat share: the model's flags, sampling flags, and how an answer appears on the screen."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lutra.cli.parser import Parser, Rare, at_least, unless_minus_one
from lutra.runtime.errors import CorruptModelError, LutraError

if TYPE_CHECKING:
    from pathlib import Path

    from lutra.runtime.generate import Chunk
    from lutra.runtime.model import Model
    from lutra.runtime.sampler import SamplingParams

__all__ = [
    "UsageError",
    "add_cache_type",
    "add_model_arguments",
    "add_output_arguments",
    "add_sampling_arguments",
    "counted",
    "dim",
    "in_bytes",
    "in_numbers",
    "note",
    "open_model",
    "print_answer",
    "read_text",
    "sampling",
    "show",
    "timings",
    "usage_errors",
]

SLOW_LOAD = 1.0  # seconds; a converted model takes far less

# A model's generation_config.json -> ours.
SUGGESTED = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


class UsageError(LutraError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


def add_model_arguments(parser: Parser) -> None:
    """-m, -c, -t and their like."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", metavar="PATH", help="the model (default: the built-in one)")
    group.add_argument("-c", "--ctx-size", "--num-ctx", type=at_least(0), metavar="N",
                       help="context in tokens (default: the model's)")  # fmt: skip
    group.add_argument("-t", "--threads", type=at_least(0), metavar="N",
                       help="threads (default: the CPUs this process may use)")  # fmt: skip
    add_cache_type(group)


class _OneType(argparse.Action):
    """llama.cpp has a flag for keys and one for values; here both are stored alike."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        if getattr(namespace, "cache_type_given", value) != value:
            parser.error("keys and values are stored in one type")
        namespace.cache_type = namespace.cache_type_given = value


def add_cache_type(group: argparse._ArgumentGroup) -> None:
    """--cache-type and llama.cpp's names of it."""
    names = ("--cache-type", "--cache-type-k", "--cache-type-v", "-ctk", "-ctv")
    group.add_argument(*names, type=lambda text: text.removesuffix("_0"), choices=("f32", "f16", "q8", "q4"),
                       default="f16", metavar="TYPE", action=_OneType, dest="cache_type",
                       help="KV cache: f16; f32 takes twice the memory, q8 a half, q4 a quarter")  # fmt: skip


def add_sampling_arguments(parser: Parser) -> None:
    """-n, -s, --temp and their like. What is not given stays None, for the model to say."""
    group = parser.add_argument_group("sampling; a model's generation_config.json goes before these defaults")
    add = group.add_argument
    add("-n", "--max-tokens", "--predict", "--n-predict", type=unless_minus_one, metavar="N",
        help="stop after N tokens (default: when the model ends, or the context is full)")  # fmt: skip
    add("-s", "--seed", type=unless_minus_one, metavar="N", help="repeat a result (default: another one each time)")
    add("--temp", "--temperature", type=float, metavar="X", help="0 takes the likeliest token (default 0.8)")
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest, 0: from all (default 40)")
    add("--top-p", type=float, metavar="P", help="draw from the fewest that have chance P (default 0.95)")
    add("--min-p", type=float, metavar="P", help="and P times as likely as the likeliest (default 0.05)")
    add("--repeat-penalty", type=float, metavar="X", help="divide the logits of recent tokens (default 1, off)")
    add("--repeat-last-n", type=int, metavar="N", help=Rare("recent: the last N tokens, -1: all (default 64)"))
    add("--presence-penalty", type=float, metavar="X", help=Rare("subtract X from recent tokens (default 0)"))
    add("--frequency-penalty", type=float, metavar="X", help=Rare("X for each time they occur (default 0)"))
    add("--stop", "-r", "--reverse-prompt", action="append", default=[], metavar="TEXT",
        help="stop before TEXT; repeatable")  # fmt: skip
    add("--ignore-eos", action="store_true", help=Rare("never let the model end"))


def add_output_arguments(parser: Parser) -> argparse._ArgumentGroup:
    """--verbose and --quiet; returns their group."""
    group = parser.add_argument_group("output")
    group.add_argument("--verbose", action="store_true", help="print speeds even when stderr is no terminal")
    group.add_argument("-q", "--quiet", action="store_true", help="print no speeds")
    return group


@contextmanager
def open_model(args: argparse.Namespace, path: str | None) -> Iterator[tuple[Model, Path]]:
    """The model at ``path`` (None: the built-in one) as the flags ask, and where it lies."""
    import shlex
    import threading

    from lutra.runtime.llm import resolve
    from lutra.runtime.model import Model

    found = resolve(path)
    advice = f"packing the weights; after `lutra convert {shlex.quote(str(found))}` that is done once and for all"
    timer = threading.Timer(SLOW_LOAD, note, [advice])
    timer.start()
    try:
        model = Model.load(found, threads=args.threads or None, kv_type=args.cache_type)
    finally:
        timer.cancel()
    with model:
        yield model, found


def sampling(args: argparse.Namespace, path: Path) -> SamplingParams:
    """How to sample: the flags, else what the model at ``path`` suggests, else our defaults."""
    from lutra.runtime.sampler import SamplingParams

    flags = {
        "temperature": args.temp,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repeat_penalty": args.repeat_penalty,
        "repeat_last_n": args.repeat_last_n,
        "presence_penalty": args.presence_penalty,
        "frequency_penalty": args.frequency_penalty,
        "seed": args.seed,
    }
    suggested = _suggested(path / "generation_config.json")
    try:
        SamplingParams(**suggested)
    except (TypeError, ValueError) as error:
        raise CorruptModelError(f"{path / 'generation_config.json'}: {error}") from None
    with usage_errors():
        return SamplingParams(**{**suggested, **{name: v for name, v in flags.items() if v is not None}})


@contextmanager
def usage_errors() -> Iterator[None]:
    """Let a ValueError, which names an argument out of range, be wrong usage."""
    try:
        yield
    except LutraError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def _suggested(path: Path) -> dict[str, Any]:
    import json

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModelError(f"{path} is not sound JSON: {error}") from None
    if not isinstance(config, dict):
        raise CorruptModelError(f"{path} is not a JSON object")
    found = {ours: config[theirs] for theirs, ours in SUGGESTED.items() if config.get(theirs) is not None}
    if unfit := [key for key, value in found.items() if isinstance(value, bool) or not isinstance(value, (int, float))]:
        raise CorruptModelError(f"{path} says {unfit[0]} is {found[unfit[0]]!r:.40}, which is no number")
    return {**found, "temperature": 0.0} if config.get("do_sample") is False else found


def read_text(path: str) -> str:
    """A text file's, or with "-" standard input's, content without its last line break. Raises UsageError."""
    from pathlib import Path

    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{'standard input' if path == '-' else path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    return text.removesuffix("\n").removesuffix("\r")


def show(text: str) -> None:
    """Print text at once, as it is."""
    print(text, end="", flush=True)


def print_answer(chunks: Iterator[Chunk]) -> Chunk:
    """Print the text as it comes, and a line break at its end; returns the last chunk."""
    end = ""
    for chunk in chunks:
        show(chunk.text)
        end = chunk.text[-1:] or end
    if end != "\n":
        show("\n")
    return chunk


def note(text: str) -> None:
    """Say something about the work, on the terminal only."""
    if sys.stderr.isatty():
        print(dim(text), file=sys.stderr)


def dim(text: str) -> str:
    """The text in grey, where the terminal has colours and nobody objects."""
    plain = not sys.stderr.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def timings(last: Chunk, max_tokens: int | None) -> str:
    """One line about an answer: 132 tokens · 14.2 tok/s · prompt 38.0 tok/s (96 cached) · 1.24 GB."""
    from lutra.tools.machine import peak_memory

    parts = [counted(last.n_generated, "token")]
    if last.generation_tps:
        parts.append(f"{last.generation_tps:.1f} tok/s")
    if last.prompt_tps:
        cached = f" ({last.n_cached} cached)" if last.n_cached else ""
        parts.append(f"prompt {last.prompt_tps:.1f} tok/s{cached}")
    if memory := peak_memory():
        parts.append(f"{memory / 1e9:.2f} GB")
    if last.finish_reason == "length" and last.n_generated != max_tokens:
        parts.append("the context is full")
    return " · ".join(parts)


def counted(n: int, noun: str) -> str:
    """1 turn, 2 turns."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def in_bytes(n: int) -> str:
    """1.18 GB, 3.1 MB, 4.2 kB."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"


def in_numbers(n: int) -> str:
    """2.41 B, 15.2 M, 260 K."""
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.0f} K"

"""The ``lutra`` command: finds the verb, runs it, and turns every failure into one line and an exit code.

A verb is a file in this folder with ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args) -> exit code``.
Verbs import what is heavy inside run(), so that help is instant.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from lutra.runtime.errors import LutraError

__all__ = ["main"]

OUT_OF_MEMORY, INTERRUPTED, CLOSED_PIPE = 5, 130, 141

USAGE = """\
usage: lutra VERB [...]

Low-bit language models on ordinary CPUs.

verbs:
{verbs}

  lutra VERB --help                     its flags; each can be set in the environment: LUTRA_ARG_THREADS=4
  lutra --version

exit codes: 0 done · 1 failed · 2 wrong usage · 3 no such model · 4 damaged or unsupported model
            5 out of memory · 130 interrupted · 141 output closed

examples:
  lutra run "Once upon a time"          the built-in model
  lutra convert path/to/model           once, so that the model starts at once from then on
  lutra chat path/to/model-lutra"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: the process's own); returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = False
    interrupts, restore = _count_interrupts()
    try:
        _prepare_streams()
        args = _parse(argv)
        if args is None:
            return 0
        debug = _set_log_level(args.log_level)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse's way out
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # below the ^C
        return INTERRUPTED
    except BrokenPipeError:
        return CLOSED_PIPE
    except Exception as error:
        # A library that is being imported can make an ImportError of Ctrl-C's exception.
        return INTERRUPTED if interrupts and isinstance(error, ImportError) else _report(error, debug)
    finally:
        restore()
        _drop_unwritable()


def _parse(argv: list[str]) -> Any:
    """The verb's arguments; None where help or the version was all that was asked for."""
    first = argv[0] if argv else None
    if first in ("-h", "--help", "help"):
        print(_usage())
    elif first == "--version":
        from lutra import __version__

        print(f"lutra {__version__}")
    elif first is None:
        print(_usage(), file=sys.stderr)
        raise SystemExit(2)
    elif (verb := _verb(first)) is None:
        from lutra.cli.common import UsageError

        raise UsageError(f"there is no verb {first!r}", "lutra --help lists them")
    else:
        from lutra.cli.parser import Parser

        parser = Parser(first, verb.HELP, full="--help-all" in argv)
        verb.add_arguments(parser)
        args = parser.parse(argv[1:])
        args.run = verb.run
        return args
    return None


def _usage() -> str:
    verbs = {name: verb.HELP for name in _verb_names() if (verb := _verb(name))}
    return USAGE.format(verbs="\n".join(f"  {name:12}{help}" for name, help in verbs.items()))


def _verb_names() -> list[str]:
    # Not pkgutil, which imports inspect: that is a fifth of the time that --help takes.
    return sorted(file.removesuffix(".py") for file in os.listdir(os.path.dirname(__file__)) if file.endswith(".py"))


def _verb(name: str) -> ModuleType | None:
    if name not in _verb_names():
        return None
    module = import_module(f"lutra.cli.{name}")
    return module if hasattr(module, "HELP") else None


def _prepare_streams() -> None:
    """Replace what cannot be shown or read instead of failing; let closed streams swallow everything."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="replace")


def _count_interrupts() -> tuple[list[int], Callable[[], object]]:
    """A list that every Ctrl-C adds to, and what ends that. Where somebody else handles it, nothing is changed."""
    import signal

    def interrupt(number: int, _: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        return seen, lambda: None
    signal.signal(signal.SIGINT, interrupt)
    return seen, lambda: signal.signal(signal.SIGINT, before)


def _set_log_level(level: str) -> bool:
    import logging

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("lutra").setLevel(level.upper())
    return level == "debug"


def _report(error: Exception, debug: bool) -> int:
    """Say what went wrong; returns the exit code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    code, hint = 1, None
    if isinstance(error, LutraError):
        code, text, hint = error.exit_code, str(error), error.hint
    elif isinstance(error, MemoryError):
        code, text, hint = OUT_OF_MEMORY, "out of memory", "close other programs, or use a smaller model or context"
    elif isinstance(error, OSError):
        text = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    else:
        text = f"{type(error).__name__}: {error}"
        hint = "this looks like a bug in lutra; --log-level debug shows where"
    print("error:", " ".join(text.splitlines()), file=sys.stderr)
    if hint:
        print("hint:", " ".join(hint.splitlines()), file=sys.stderr)
    return code


def _drop_unwritable() -> None:
    """If what is still to be printed cannot be, forget it: Python would complain about it on its way out."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())

"""How all verbs read their command line: short help, and flags from the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Parser", "Rare", "at_least", "unless_minus_one"]

TRUE, FALSE = ("1", "true", "on", "yes", "enabled"), ("0", "false", "off", "no", "disabled", "")


class Rare(str):
    """Help for a flag that only --help-all lists."""


def at_least(minimum: int) -> Callable[[str], int]:
    """An argument type: integers from ``minimum`` up."""

    def integer(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is less than {minimum}")
        return value

    return integer


def unless_minus_one(text: str) -> int | None:
    """An argument type: a count, or None for -1, with which llama.cpp's users say "no limit"."""
    return None if text == "-1" else at_least(0)(text)


unless_minus_one.__name__ = "integer"  # what a message calls it


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One line a flag where possible: its first names, its purpose, its default."""

    full = False

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=116)

    def add_argument(self, action: argparse.Action) -> None:
        if self.full or not isinstance(action.help, Rare):
            super().add_argument(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        short = [name for name in action.option_strings if not name.startswith("--")][:1]
        long = [name for name in action.option_strings if name.startswith("--")][:1]
        names = ", ".join(short + long) if short else "    " + long[0]
        return names if action.nargs == 0 else f"{names} {self._format_args(action, '')}"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "N" if action.type is not None else "S"

    def _get_help_string(self, action: argparse.Action) -> str:
        help = action.help or ""
        told = "default" in help or not action.option_strings
        silent = told or action.default in (None, False, [], argparse.SUPPRESS)
        return help if silent else f"{help} (default %(default)s)"


class _FullFormatter(_Formatter):
    full = True


class Parser(argparse.ArgumentParser):
    """The parser of one verb. It exits with 2 on wrong usage, after one line that says what is wrong.

    A verb sets ``usage`` and, with its three examples, ``epilog``.
    """

    def __init__(self, verb: str, help: str, *, full: bool = False):
        super().__init__(
            f"lutra {verb}",
            description=f"{help}.",
            formatter_class=_FullFormatter if full else _Formatter,
            add_help=False,
            allow_abbrev=False,
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the verb; flags and positional words may be mixed."""
        group = self.add_argument_group("other")
        levels = ("debug", "info", "warning", "error")
        group.add_argument("--log-level", choices=levels, default="warning", metavar="LEVEL",
                           help=Rare(f"{', '.join(levels)}; debug shows tracebacks"))  # fmt: skip
        group.add_argument("-h", "--help", action="help", help="show this; --help-all lists the rarer flags too")
        group.add_argument("--help-all", action="help", help=argparse.SUPPRESS)
        self._read_environment()
        return self.parse_intermixed_args(argv)

    def _read_environment(self) -> None:
        """Take defaults from LUTRA_ARG_<FLAG>, for any of a flag's long names."""
        for action in self._actions:
            for name in action.option_strings:
                variable = "LUTRA_ARG_" + name.removeprefix("--").upper().replace("-", "_")
                if name.startswith("--") and variable in os.environ and action.dest != "help":
                    action.default = self._from_text(action, variable, os.environ[variable])

    def _from_text(self, action: argparse.Action, variable: str, text: str) -> Any:
        if action.nargs == 0:
            return self._boolean(action, variable, text)
        try:
            value = self._get_value(action, text)
            self._check_value(action, value)
        except argparse.ArgumentError as error:
            self.error(f"{variable}: {error.message}")
        return [value] if isinstance(action, argparse._AppendAction) else value

    def _boolean(self, action: argparse.Action, variable: str, text: str) -> Any:
        if text.lower() not in TRUE + FALSE:
            self.error(f"{variable}: {text!r} is neither true nor false")
        return action.const if text.lower() in TRUE else action.default

    def error(self, message: str) -> Any:
        """Print one line about wrong usage and exit with 2."""
        self.exit(2, f"error: {message}\nhint: {self._suggestion(message)}{self.prog} --help\n")

    def _suggestion(self, message: str) -> str:
        import difflib

        unknown = message.removeprefix("unrecognized arguments: ").split("=")[0].split()[0]
        flags = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(unknown, flags, 1) if message.startswith("unrecognized") else []
        return f"did you mean {close[0]}? " if close else ""

"""What the tools that are programs of their own share."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lutra.runtime.errors import LutraError

__all__ = ["exit_status"]


def exit_status(run: Callable[[], None]) -> int:
    """Run a program, and say an error of ours as ``lutra`` does. Its exit status; 130 after Ctrl-C."""
    try:
        run()
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0

"""lutra: low-bit language models on ordinary CPUs.

from lutra import LLM
llm = LLM()                     # the built-in model; or a path
print(llm("Once upon a time", max_tokens=64)["choices"][0]["text"])
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, the import of which takes longer than all else here
if TYPE_CHECKING:
    from typing import Any

    from lutra.runtime.errors import LutraError
    from lutra.runtime.llm import LLM

__all__ = ["LLM", "LutraError", "__version__"]

_HOMES = {"LLM": "lutra.runtime.llm", "LutraError": "lutra.runtime.errors"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: the command line must start at once."""
    from importlib import import_module

    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'lutra' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    """The sources' own version where this is a source tree, whatever is installed elsewhere; else the package's."""
    import re
    from importlib.metadata import version
    from pathlib import Path

    try:
        project = (Path(__file__).resolve().parent / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return version("lutra")
    found = re.search(r'^version = "(.+)"$', project, re.M)
    return found[1] if found else version("lutra")

"""lutra: low-bit language models on ordinary CPUs.

from lutra import LLM
llm = LLM()                     # the built-in model; or a path
print(llm("Once upon a time", max_tokens=64)["choices"][0]["text"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lutra.runtime.errors import LutraError
    from lutra.runtime.llm import LLM

__all__ = ["LLM", "LutraError", "__version__"]

_HOMES = {"LLM": "lutra.runtime.llm", "LutraError": "lutra.runtime.errors"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: the command line must start at once."""
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("lutra")
    if name not in _HOMES:
        raise AttributeError(f"module 'lutra' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

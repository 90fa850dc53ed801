"""Every error a caller can act on, each with the process exit code the command line gives it."""

__all__ = [
    "CancelledError",
    "ContextLengthError",
    "CorruptModelError",
    "LutraError",
    "ModelClosedError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "UnsupportedModelError",
]


class LutraError(Exception):
    """The base of all errors that lutra raises on purpose.

    ``str(error)`` is one sentence; ``hint`` is what to do about it, or None.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint


class ModelNotFoundError(LutraError):
    """No model at this path or under this name."""

    exit_code = 3


class UnsupportedModelError(LutraError):
    """A sound checkpoint that needs something lutra does not have; the message names it."""

    exit_code = 4


class CorruptModelError(LutraError):
    """A file whose content contradicts itself, its size, or its model's configuration."""

    exit_code = 4


class ContextLengthError(LutraError, ValueError):
    """More tokens than the session's context can hold."""

    exit_code = 2


class OutOfMemoryError(LutraError, MemoryError):
    """The model or its cache does not fit the memory that is free."""

    exit_code = 5


class ModelClosedError(LutraError):
    """The model or session was used after close()."""


class CancelledError(LutraError):
    """The run was cancelled before it finished; the session stays as it was before the run."""

"""Sessions: what a model keeps of a conversation, and where it stands. Many per model."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutra import native
from lutra.runtime import memory
from lutra.runtime.cache import Cache, Memory, memory_bytes, position_bytes
from lutra.runtime.errors import (
    ContextLengthError,
    CorruptModelError,
    LutraError,
)

if TYPE_CHECKING:
    from lutra.runtime.model import Model

__all__ = ["Session"]


class Session:
    """The tokens fed to a model so far, their keys and values, and what recurrent layers remember of them.

    A session belongs to one thread at a time; sessions of one model may run in several. ``tokens`` is what the
    cache holds; ``n_ctx`` how many it has room for.
    """

    def __init__(self, model: Model, n_ctx: int | None = None):
        self.model = model
        c = model.config
        position = position_bytes(model.kv_type, c.kv_shapes)
        self.n_ctx = _context(n_ctx, c.n_ctx, position, memory_bytes(c.recurrent_floats))
        self.tokens: list[int] = []
        self._cache = Cache(model.kv_type, c.kv_shapes, c.heads, self.n_ctx)
        self._memory = Memory(c.recurrent_floats) if c.recurrent_floats else None
        plan = model.plan
        self._ids = np.zeros(plan.rows, np.int32)
        self._logits = np.empty((plan.output_rows, model.n_vocab), np.float32)
        self._cancel = np.zeros(1, np.int32)
        self._step = plan.native.step()
        self._bind()

    def _bind(self) -> None:
        step, ffi = self._step, native.ffi
        step.space[native.SCRATCH] = ffi.cast("void *", self.model.scratch_address)
        spaces: dict[int, np.ndarray] = {
            native.IDS: self._ids,
            native.LOGITS: self._logits,
            native.KV: self._cache.memory,
            native.WORK: self._cache.work,
        }
        for space, array in spaces.items():
            step.space[space] = ffi.cast("void *", array.ctypes.data)
        step.n_ctx = self.n_ctx
        step.cancel = ffi.cast("const int32_t *", self._cancel.ctypes.data)

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens; returns the last one's logits, float32 [vocab], a view that the next feed overwrites.

        Raises ContextLengthError if they do not fit, ValueError for ids outside the vocabulary, CancelledError
        after cancel(); then the session is as it was before.
        """
        self._feed(tokens, every=False)
        return self._logits[0]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens; returns the logits of every one, float32 [len(tokens), vocab]."""
        if len(tokens) == 0:
            return np.empty((0, self.model.n_vocab), np.float32)
        return np.concatenate(self._feed(tokens, every=True))

    def _feed(self, tokens: Sequence[int], every: bool) -> list[np.ndarray]:
        """Append tokens, in as many steps as they need; copies of the logits of every token, if those are wanted."""
        ids = self._checked(tokens)
        before = len(self.tokens)
        self._cancel[0] = 0
        plan, past, found = self.model.plan, self._memory, []
        rows = plan.output_rows if every else plan.rows
        cuts = _cuts(len(ids), rows, past is not None)
        if past:
            past.begin()
        try:
            for begin, end in pairwise(cuts):
                if past and end == len(ids) > 1:
                    past.keep()
                wanted = end - begin if every else int(end == len(ids))
                self._run(ids[begin:end], wanted)
                self.tokens.extend(ids[begin:end].tolist())
                if every:
                    found.append(self._logits[:wanted].copy())
        except BaseException:
            del self.tokens[before:]
            if past:
                past.undo()
            raise
        return found

    def _checked(self, tokens: Sequence[int]) -> np.ndarray:
        ids = np.asarray(tokens)
        if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
            raise ValueError("tokens are a sequence of at least one integer")
        if ids.min() < 0 or ids.max() >= self.model.n_vocab:
            raise ValueError(f"token ids are 0..{self.model.n_vocab - 1}, found {ids.min()}..{ids.max()}")
        if len(self.tokens) + len(ids) > self.n_ctx:
            raise ContextLengthError(
                f"{len(self.tokens)} + {len(ids)} tokens do not fit a context of {self.n_ctx}",
                "shorten the prompt or ask for a larger context",
            )
        return ids

    def _run(self, ids: np.ndarray, n_outputs: int) -> None:
        self._ids[: len(ids)] = ids
        self._step.n_tokens, self._step.n_outputs, self._step.pos = len(ids), n_outputs, len(self.tokens)
        if self._memory:
            self._step.space[native.BEFORE] = _address(self._memory.now.floats)
            self._step.space[native.AFTER] = _address(self._memory.blank())
        if len(ids) < INTERRUPTIBLE:
            self.model.run(self._step)
        else:
            _run_interruptibly(lambda: self.model.run(self._step), self.cancel)
        if self._memory:
            self._memory.advance(len(ids))

    def cancel(self) -> None:
        """From another thread: make a feed() that is running return at once, with CancelledError."""
        self._cancel[0] = 1

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens. ``tokens`` says which are left.

        Those may be fewer where a model has recurrent layers, which remember a few moments only: after the last feed,
        some tokens before the end of the last prompt, and the start.
        """
        if not 0 <= n <= len(self.tokens):
            raise ValueError(f"cannot rewind {len(self.tokens)} tokens to {n}")
        del self.tokens[self._memory.rewind(n) if self._memory else n :]

    def fork(self) -> Session:
        """Another session that continues from here on its own."""
        other = Session(self.model, self.n_ctx)
        other._cache.write(self._cache.read(len(self.tokens)))
        if self._memory and other._memory:
            other._memory.write(self._memory.read(), len(self.tokens))
        other.tokens = list(self.tokens)
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokens and cache to a file, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as f:
                np.savez(
                    f,
                    model=np.array(self.model.fingerprint),
                    tokens=np.array(self.tokens, np.int32),
                    kv=self._cache.read(len(self.tokens)),
                    memory=self._memory.read() if self._memory else np.zeros(0, np.float32),
                )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from what save() wrote. The session is unchanged if that fails.

        Raises CorruptModelError for a damaged file, LutraError for one of another model, ContextLengthError.
        """
        try:
            with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as saved:
                model, tokens, kv, floats = str(saved["model"]), saved["tokens"], saved["kv"], saved["memory"]
        except FileNotFoundError:
            raise LutraError(f"there is no saved session at {path}") from None
        except Exception as error:
            raise CorruptModelError(f"{path} is not a saved session ({error})") from None
        if model != self.model.fingerprint:
            raise LutraError(f"{path} was saved with another model or cache type")
        n = len(tokens)
        if n > self.n_ctx:
            raise ContextLengthError(f"{path} holds {n} tokens, the context {self.n_ctx}")
        due = self._cache.read(0)
        shape = (n, due.shape[1])
        if tokens.shape != (n,) or kv.shape != shape or kv.dtype != due.dtype:
            raise CorruptModelError(f"{path}: a cache of {kv.dtype} {kv.shape} where {shape} is due")
        size = self._memory.size if self._memory else 0
        if floats.shape != (size,) or floats.dtype != np.float32:
            raise CorruptModelError(f"{path}: a memory of {floats.dtype} {floats.shape} where {size} floats are due")
        self._cache.write(kv)
        if self._memory:
            self._memory.write(floats, n)
        self.tokens = tokens.tolist()


def _cuts(n: int, rows: int, recurrent: bool) -> list[int]:
    """Where n tokens are cut into steps of at most ``rows``: the begin of each, and the end.

    A prompt's last step is short where there is a moment before it to come back to: close to the end, because an answer
    goes on from there again, or a conversation in which that answer was shortened.
    """
    last = n - (min(LAST_ROWS, rows) if recurrent and n > LAST_ROWS else n)
    return [*range(0, last, rows), *range(last, n, rows), n]


def _address(array: np.ndarray | None) -> Any:
    return native.ffi.NULL if array is None else native.ffi.cast("void *", array.ctypes.data)


def _context(wanted: int | None, known: int, position: int, once: int) -> int:
    """How many positions of that many bytes to make room for: those wanted, or all the model knows and memory holds.

    once: bytes that are needed besides, however many there are.
    """
    if wanted is None:
        free = memory.available()
        return known if free is None else max(1, min(known, (int(free * CONTEXT_SHARE) - once) // position))
    if not 1 <= wanted <= known:
        raise ContextLengthError(f"a context of {wanted} tokens: this model knows 1 to {known}")
    memory.require(wanted * position + once, f"a context of {wanted} tokens", "ask for a smaller context")
    return wanted


CONTEXT_SHARE = 0.5  # of the free memory, at most, for a session that did not ask for a size
LAST_ROWS = 16  # of a prompt's last step, at most, where the moment before it is kept
INTERRUPTIBLE = 16  # rows: a longer step is waited for in a way that Ctrl-C can break


def _run_interruptibly(run: Any, cancel: Any) -> None:
    """Run in a thread of its own, because Python sees Ctrl-C only between native calls of its main thread."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        thread.join()
    except BaseException:
        cancel()
        thread.join()
        raise
    if errors:
        raise errors[0]

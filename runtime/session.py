"""Sessions: a conversation's KV cache and where it stands. Many per model."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutra import native
from lutra.runtime import memory
from lutra.runtime.cache import Cache, position_bytes
from lutra.runtime.errors import (
    ContextLengthError,
    CorruptModelError,
    LutraError,
)

if TYPE_CHECKING:
    from lutra.runtime.model import Model

__all__ = ["Session"]


class Session:
    """The tokens fed to a model so far, and their keys and values.

    A session belongs to one thread at a time; sessions of one model may run in several. ``tokens`` is what the
    cache holds; ``n_ctx`` how many it has room for.
    """

    def __init__(self, model: Model, n_ctx: int | None = None):
        self.model = model
        c = model.config
        position = position_bytes(model.kv_type, c.layers, c.kv_heads, c.head_dim)
        self.n_ctx = _context(n_ctx, c.n_ctx, position)
        self.tokens: list[int] = []
        self._cache = Cache(model.kv_type, c.layers, c.heads, c.kv_heads, c.head_dim, self.n_ctx)
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
        plan, found = self.model.plan, []
        rows = plan.output_rows if every else plan.rows
        try:
            for begin in range(0, len(ids), rows):
                chunk = ids[begin : begin + rows]
                wanted = len(chunk) if every else int(begin + rows >= len(ids))
                self._run(chunk, wanted)
                self.tokens.extend(chunk.tolist())
                if every:
                    found.append(self._logits[:wanted].copy())
        except BaseException:
            del self.tokens[before:]
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
        if len(ids) < INTERRUPTIBLE:
            self.model.run(self._step)
        else:
            _run_interruptibly(lambda: self.model.run(self._step), self.cancel)

    def cancel(self) -> None:
        """From another thread: make a feed() that is running return at once, with CancelledError."""
        self._cancel[0] = 1

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens."""
        if not 0 <= n <= len(self.tokens):
            raise ValueError(f"cannot rewind {len(self.tokens)} tokens to {n}")
        del self.tokens[n:]

    def fork(self) -> Session:
        """Another session that continues from here on its own."""
        other = Session(self.model, self.n_ctx)
        other._cache.write(self._cache.read(len(self.tokens)))
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
                model, tokens, kv = str(saved["model"]), saved["tokens"], saved["kv"]
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
        shape = (*due.shape[:3], n, due.shape[4])
        if tokens.shape != (n,) or kv.shape != shape or kv.dtype != due.dtype:
            raise CorruptModelError(f"{path}: a cache of {kv.dtype} {kv.shape} where {shape} is due")
        self._cache.write(kv)
        self.tokens = tokens.tolist()


def _context(wanted: int | None, known: int, position: int) -> int:
    """How many positions of that many bytes to make room for: those wanted, or all the model knows and memory holds."""
    if wanted is None:
        free = memory.available()
        return known if free is None else max(1, min(known, int(free * CONTEXT_SHARE) // position))
    if not 1 <= wanted <= known:
        raise ContextLengthError(f"a context of {wanted} tokens: this model knows 1 to {known}")
    memory.require(wanted * position, f"a context of {wanted} tokens", "ask for a smaller context")
    return wanted


CONTEXT_SHARE = 0.5  # of the free memory, at most, for a session that did not ask for a size
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

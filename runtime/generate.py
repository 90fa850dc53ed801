"""The generation loop: prompt in, chunks of text out, one per token."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from lutra.runtime.errors import CancelledError, ContextLengthError, LutraError
from lutra.runtime.sampler import Sampler, SamplingParams, log_probability

__all__ = ["Chunk", "FinishReason", "StopStrings", "generate"]

FinishReason = Literal["stop", "length", "cancelled"]

_WATCH = 0.02  # seconds between looks at the cancel event while a prompt is fed


class Session(Protocol):
    """The model state that generate() drives."""

    @property
    def n_ctx(self) -> int: ...

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens in the cache, exactly those fed."""

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens; logits after the last one, float32 [vocab], a view until the next feed.

        Raises CancelledError after cancel(), and is then as before.
        """

    def cancel(self) -> None:
        """From another thread: make a feed() that is running return at once."""

    def rewind(self, n: int) -> None:
        """Keep the first ``n`` tokens, or as many of them as can be kept, and forget the rest."""


class TextStream(Protocol):
    def push(self, id: int) -> str: ...
    def flush(self) -> str: ...


class Tokenizer(Protocol):
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_ids(self) -> Collection[int]: ...
    def stream(self) -> TextStream: ...
    def answer(self) -> TextStream:
        """As stream(), but what the model says to itself or to tools is left out."""


@dataclass(frozen=True)
class Chunk:
    """What one step produced, with the counts and times so far.

    ``text`` may be empty while a character or a possible stop string is incomplete. ``token`` is
    None if no token was drawn (cancelled, or none were wanted). ``logprob`` is the natural log of
    the token's chance in the model's own distribution, if asked for. Only the last chunk has a
    ``finish_reason``. ``n_generated`` counts drawn tokens, the end-of-sequence one too;
    ``n_cached`` of the ``n_prompt`` prompt tokens were in the session already. Seconds are those
    spent in the model and sampler: a slow reader adds nothing.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens processed per second, cached ones left out."""
        return _rate(self.n_prompt - self.n_cached, self.prompt_seconds)

    @property
    def generation_tps(self) -> float:
        """Tokens per second; the first one is not counted, since the prompt paid for it."""
        return _rate(self.n_generated - 1, self.generation_seconds)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0


class StopStrings:
    """Cuts a text that arrives in pieces before the first stop string that it completes.

    If several are completed by the same character, the longest wins. The result does not depend on
    how the text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str] | str = ()):
        self._stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in self._stops:
            raise ValueError("stop strings must not be empty")
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is now certain not to belong to a stop string; all before it once hit."""
        text = self._held + text
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in text]
        if found:
            self.hit, self._held = True, ""
            end, length = min(found)
            return text[: end + length]
        keep = len(text) - self._holdback(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """The text held back, when no more is coming."""
        held, self._held = self._held, ""
        return held

    def _holdback(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        return next(
            (
                length
                for length in range(min(longest, len(text)), 0, -1)
                if any(stop.startswith(text[-length:]) for stop in self._stops)
            ),
            0,
        )


def generate(
    session: Session,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    params: SamplingParams,
    max_tokens: int | None = None,
    stop: Sequence[str] | str = (),
    cancel: threading.Event | None = None,
    ignore_eos: bool = False,
    logprobs: bool = False,
    continues: bool = False,
) -> Iterator[Chunk]:
    """Continue ``prompt_ids``: an iterator of Chunks, one per token, the last with its reason.

    What ``session`` has already cached of the prompt is not computed again. An empty prompt starts
    from BOS. ``max_tokens`` None goes on until the context is full. ``ignore_eos`` bans the tokens
    that would end the text. ``continues``: the text goes on where the prompt's ends, so a space it
    begins with stays; otherwise it is a text of its own, an answer, of which a user sees only what is
    meant for one. The iterator may be
    closed at any point, and ``cancel`` set from any thread: ``session.tokens`` are then exactly the
    tokens fed. The last token drawn is never fed.

    Raises at once, before anything is fed: ContextLengthError if the prompt does not fit,
    LutraError if it is empty and there is no BOS, ValueError for a senseless argument.
    """
    prompt = list(prompt_ids) or _bos(tokenizer)
    if len(prompt) > session.n_ctx:
        raise ContextLengthError(
            f"the prompt has {len(prompt)} tokens but the context holds {session.n_ctx}",
            hint="shorten the prompt or raise the context size",
        )
    if max_tokens is not None and max_tokens < 0:
        raise ValueError(f"max_tokens is out of range: {max_tokens}")
    stream = tokenizer.stream() if continues else tokenizer.answer()
    if continues:
        for id in prompt:
            stream.push(id)
    run = _Run(session, tokenizer, stream, prompt, params, StopStrings(stop), cancel, ignore_eos, logprobs)
    return run.chunks(math.inf if max_tokens is None else max_tokens)


def _bos(tokenizer: Tokenizer) -> list[int]:
    if tokenizer.bos_id is None:
        raise LutraError("the prompt is empty and this model has no token to start from")
    return [tokenizer.bos_id]


@dataclass
class _Run:
    """One call of generate(): its arguments, and its state between chunks."""

    session: Session
    tokenizer: Tokenizer
    stream: TextStream
    prompt: list[int]
    params: SamplingParams
    stops: StopStrings
    cancel: threading.Event | None
    ignore_eos: bool
    logprobs: bool

    def __post_init__(self) -> None:
        self.stats = Chunk("", n_prompt=len(self.prompt))

    def chunks(self, max_tokens: float) -> Iterator[Chunk]:
        reason: FinishReason = "length"
        try:
            logits = self._feed_prompt()
            sampler = Sampler(self._params_for(len(logits)))
            while self.stats.n_generated < max_tokens:
                self._check_cancel()
                chunk = self._step(sampler, logits, max_tokens)
                yield chunk
                if chunk.finish_reason or chunk.token is None:
                    return
                logits = self._feed([chunk.token], "generation_seconds")
        except CancelledError:  # ours, or the session's own in the middle of a feed
            reason = "cancelled"
        yield replace(self.stats, text=self._rest(), finish_reason=reason)

    def _check_cancel(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError("generation was cancelled")

    def _feed_prompt(self) -> np.ndarray:
        # The last prompt token is always fed: its logits choose the first new one.
        cached = min(_common_prefix(self.session.tokens, self.prompt), len(self.prompt) - 1)
        if cached < len(self.session.tokens):
            self.session.rewind(cached)
            cached = len(self.session.tokens)
        self.stats = replace(self.stats, n_cached=cached)
        with self._watching():
            return self._feed(self.prompt[cached:], "prompt_seconds")

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Pass a cancel on to the session during a long feed."""
        self._check_cancel()
        cancel, done = self.cancel, threading.Event()
        if cancel is None:
            yield
            return

        def watch() -> None:
            while not done.wait(_WATCH):
                if cancel.is_set():
                    self.session.cancel()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _feed(self, tokens: list[int], clock: str) -> np.ndarray:
        started = time.perf_counter()
        logits = self.session.feed(tokens)
        self._tick(clock, started)
        return logits

    def _tick(self, clock: str, started: float) -> None:
        spent = getattr(self.stats, clock) + time.perf_counter() - started
        self.stats = replace(self.stats, **{clock: spent})

    def _params_for(self, vocab: int) -> SamplingParams:
        if not self.ignore_eos:
            return self.params
        banned = {id: -math.inf for id in self.tokenizer.eos_ids if id < vocab}
        return replace(self.params, logit_bias={**self.params.logit_bias, **banned})

    def _step(self, sampler: Sampler, logits: np.ndarray, max_tokens: float) -> Chunk:
        started = time.perf_counter()
        token = sampler.sample(logits, self.session.tokens)
        logprob = log_probability(logits, token) if self.logprobs else None
        self._tick("generation_seconds", started)
        self.stats = replace(self.stats, n_generated=self.stats.n_generated + 1)
        ended = token in self.tokenizer.eos_ids and not self.ignore_eos
        text = "" if ended else self.stops.push(self.stream.push(token))
        reason: FinishReason | None = None
        if ended or self.stops.hit:
            reason = "stop"
        elif self.stats.n_generated >= max_tokens or self._is_full():
            reason = "length"
        if reason:
            text += self._rest()
        return replace(self.stats, text=text, token=token, logprob=logprob, finish_reason=reason)

    def _is_full(self) -> bool:
        return len(self.session.tokens) >= self.session.n_ctx

    def _rest(self) -> str:
        """Whatever the text still holds back at its end."""
        if self.stops.hit:
            return ""
        return self.stops.push(self.stream.flush()) + self.stops.flush()


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)

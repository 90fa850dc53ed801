"""How well a model predicts a text, and how far its predictions are from another model's.

The perplexity is exp of the mean negative log-likelihood of the tokens scored. Which tokens those are, and what they
are predicted from, is one of two customs:

- llama.cpp's: windows of ``n_ctx`` tokens, one after the other; the first token of each is replaced by the one that
  begins a text, if the tokenizer has it begin every text; tokens n_ctx // 2 + 1 and later are scored.
- with ``stride``, Hugging Face's and the papers': windows of ``n_ctx`` tokens that begin every ``stride`` tokens; every
  token but a window's first is scored once, in the first window that has it. stride = n_ctx: windows side by side.

A last window that is not whole is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lutra.runtime.errors import LutraError
from lutra.runtime.model import Model
from lutra.runtime.session import Session

__all__ = ["PERCENTILES", "Divergence", "Result", "perplexity"]

PERCENTILES = (50, 90, 99, 99.9)


@dataclass
class Divergence:
    """How far a model's predictions are from a reference's.

    Of every token scored: the Kullback-Leibler divergence of the reference's distribution P from the model's Q,
    sum P log(P / Q), in nats; and whether both have the same token first.
    """

    each: list[np.ndarray] = field(default_factory=list)
    same_top: int = 0

    def add(self, reference: np.ndarray, found: np.ndarray) -> None:
        """Count rows of log-probabilities."""
        self.each.append((np.exp(reference) * (reference - found)).sum(axis=1, dtype=np.float64))
        self.same_top += int((reference.argmax(axis=1) == found.argmax(axis=1)).sum())

    def json(self) -> dict[str, Any]:
        """Mean with its standard error, maximum, percentiles, and the share of tokens with the same one first."""
        each = np.concatenate(self.each)
        mean, error = _mean(each)
        return {
            "mean": mean,
            "error": error,
            "max": float(each.max()),
            "percentiles": {str(p): float(np.percentile(each, p)) for p in PERCENTILES},
            "same_top": self.same_top / len(each),
        }


@dataclass
class Result:
    """What is known after some windows. losses: of every token scored, in nats. seconds: the model's own."""

    n_ctx: int
    stride: int | None
    n_windows: int
    windows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[np.ndarray] = field(default_factory=list)
    reference_losses: list[np.ndarray] = field(default_factory=list)
    divergence: Divergence | None = None

    @property
    def scored(self) -> int:
        """Tokens scored so far."""
        return sum(map(len, self.losses))

    @property
    def perplexity(self) -> float:
        """Of all tokens scored so far."""
        return math.exp(_mean(np.concatenate(self.losses))[0])

    @property
    def error(self) -> float:
        """The standard error of the perplexity, if the tokens' losses were independent."""
        return self.perplexity * _mean(np.concatenate(self.losses))[1]

    def json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        found: dict[str, Any] = {
            "perplexity": self.perplexity,
            "error": self.error,
            "n_ctx": self.n_ctx,
            "stride": self.stride,
            "windows": self.windows,
            "n_windows": self.n_windows,
            "scored": self.scored,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
        }
        if self.divergence:
            reference = math.exp(_mean(np.concatenate(self.reference_losses))[0])
            found["reference_perplexity"] = reference
            found["ratio"] = found["perplexity"] / reference
            found["divergence"] = self.divergence.json()
        return found


def perplexity(
    model: Model,
    ids: Sequence[int],
    *,
    n_ctx: int = 512,
    stride: int | None = None,
    begin: int | None = None,
    chunks: int | None = None,
    reference: Model | None = None,
) -> Iterator[Result]:
    """Score a text of token ``ids``; gives what is known after each window, the same object every time.

    stride: None scores as llama.cpp does, a number from 1 to n_ctx as Hugging Face does. begin: the token that
    llama.cpp's way puts first in every window, None: none. chunks: how many windows at most. reference: a model to
    measure the distance from, too, with the same vocabulary.

    Raises ContextLengthError if a model knows no context of ``n_ctx``, ValueError for numbers out of range, LutraError
    for a text that is shorter than a window or a reference of another vocabulary.
    """
    if n_ctx < 4 or not (stride is None or 1 <= stride <= n_ctx):
        raise ValueError(f"a context is at least 4 tokens and a stride 1 to {n_ctx}, not {n_ctx} and {stride}")
    if reference and reference.n_vocab != model.n_vocab:
        raise LutraError(f"the models' vocabularies differ: {model.n_vocab} and {reference.n_vocab} tokens")
    if len(ids) < n_ctx:
        raise LutraError(f"the text has {len(ids)} tokens, which is no window of {n_ctx}", "use a longer text, or -c")
    windows = list(_windows(len(ids), n_ctx, stride))[:chunks]
    sessions = [m.session(n_ctx) for m in (model, reference) if m]
    result = Result(n_ctx, stride, len(windows), divergence=Divergence() if reference else None)
    for start, first in windows:
        window = list(ids[start : start + n_ctx])
        if stride is None and begin is not None:
            window[0] = begin
        _score(sessions, window, first, result)
        result.windows += 1
        yield result


def _windows(n: int, n_ctx: int, stride: int | None) -> Iterator[tuple[int, int]]:
    """Where each window begins, and the first of its tokens that is scored."""
    for start in range(0, n - n_ctx + 1, stride or n_ctx):
        if stride is None:
            yield start, n_ctx // 2 + 1
        else:
            yield start, max(1, n_ctx - stride) if start else 1


def _score(sessions: list[Session], window: list[int], first: int, result: Result) -> None:
    """Score tokens ``first`` and later of a window. All logits at once would be too large: they come in pieces."""
    for session in sessions:
        session.rewind(0)
    if first > 1:
        for session, clock in zip(sessions, (result, None), strict=False):
            _timed(lambda s=session: s.feed(window[: first - 1]), clock)  # type: ignore[misc]
    rows = min(session.model.plan.output_rows for session in sessions)
    for at in range(first - 1, len(window) - 1, rows):
        fed, due = window[at : min(at + rows, len(window) - 1)], window[at + 1 : at + 1 + rows]
        found = _timed(lambda fed=fed: _log_softmax(sessions[0].logits(fed)), result)  # type: ignore[misc]
        result.losses.append(-found[np.arange(len(due)), due])
        if result.divergence:
            known = _log_softmax(sessions[1].logits(fed))
            result.reference_losses.append(-known[np.arange(len(due)), due])
            result.divergence.add(known, found)
    result.tokens += len(window) - 1


def _timed(work: Any, clock: Result | None) -> Any:
    started = time.perf_counter()
    value = work()
    if clock:
        clock.seconds += time.perf_counter() - started
    return value


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [rows, vocab]"""
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)


def _mean(x: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    x = x.astype(np.float64)
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.inf

"""Choosing the next token from logits.

Names, defaults, meaning and order are llama.cpp's: logit bias, penalties, top-k, top-p, min-p,
temperature. Filters keep the best tokens; among equals the lower id goes first, so a result never
depends on how a library happens to sort.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lutra import native
from lutra.runtime.errors import LutraError

__all__ = ["Sampler", "SamplingParams", "log_probability"]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens; ValueError names the parameter that makes no sense.

    ``temperature`` 0 takes the likeliest token. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0,
    ``repeat_penalty`` 1 and a penalty of 0 switch a stage off. Penalties look at the last
    ``repeat_last_n`` tokens, prompt included (0: none, -1: all). ``logit_bias`` is added to the
    logits of its token ids; ``-inf`` bans one. ``seed`` None draws a fresh one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf)
        _check("top_k", self.top_k, self.top_k >= 0)
        _check("top_p", self.top_p, 0 <= self.top_p <= 1)
        _check("min_p", self.min_p, 0 <= self.min_p <= 1)
        _check("repeat_penalty", self.repeat_penalty, 0 < self.repeat_penalty < math.inf)
        _check("repeat_last_n", self.repeat_last_n, self.repeat_last_n >= -1)
        _check("presence_penalty", self.presence_penalty, math.isfinite(self.presence_penalty))
        _check("frequency_penalty", self.frequency_penalty, math.isfinite(self.frequency_penalty))
        _check("seed", self.seed, self.seed is None or self.seed >= 0)
        for token, bias in self.logit_bias.items():
            _check(f"logit_bias[{token}]", bias, token >= 0 and bias < math.inf)


def _check(name: str, value: object, sound: bool) -> None:
    if not sound:
        raise ValueError(f"{name} is out of range: {value}")


class Sampler:
    """Draws tokens by ``params``; the same seed and logits give the same tokens everywhere."""

    def __init__(self, params: SamplingParams):
        self.params = params
        # The bit stream of PCG64 is fixed for good, and so is random() made of its top 53 bits.
        self._uniform = np.random.Generator(np.random.PCG64(params.seed)).random

    def sample(self, logits: np.ndarray, history: Sequence[int]) -> int:
        """The next token.

        ``logits``: float32 [vocab], left as they are; -inf bans a token. ``history``: all tokens so
        far. LutraError if the logits hold NaN or +inf, or ban every token.
        """
        logits = _penalized(logits, history, self.params)
        best = int(logits.argmax())  # argmax stops at a NaN, so this one value vouches for all
        if not math.isfinite(logits[best]):
            raise LutraError(f"the model's logits hold {logits[best]}: no token can be chosen")
        if self.params.temperature == 0:
            return best
        tokens, weights = _candidates(logits, float(logits[best]), self.params)
        total = np.cumsum(weights)
        drawn = int(np.searchsorted(total, self._uniform() * total[-1], side="right"))
        return int(tokens[drawn])


def log_probability(logits: np.ndarray, token: int) -> float:
    """Natural logarithm of ``token``'s probability under softmax(``logits``), float32 [vocab]."""
    shifted = logits - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum(dtype=np.float64)))


def _penalized(logits: np.ndarray, history: Sequence[int], params: SamplingParams) -> np.ndarray:
    """``logits`` after bias and penalties: a copy if there are any."""
    counts = _recent(history, params)
    if not counts and not params.logit_bias:
        return logits
    logits = logits.copy()
    for token, bias in params.logit_bias.items():
        if token >= len(logits):
            raise LutraError(f"logit_bias names token {token} of a vocabulary of {len(logits)}")
        logits[token] += bias
    if counts:
        tokens = np.fromiter(counts, dtype=np.int64)
        times = np.fromiter(counts.values(), dtype=np.float32)
        seen = logits[tokens]
        seen = np.where(seen <= 0, seen * params.repeat_penalty, seen / params.repeat_penalty)
        logits[tokens] = seen - times * params.frequency_penalty - params.presence_penalty
    return logits


def _recent(history: Sequence[int], params: SamplingParams) -> Counter[int]:
    """How often each token occurs in the penalties' window; empty if there are no penalties."""
    idle = params.repeat_penalty == 1 and not (params.presence_penalty or params.frequency_penalty)
    if idle or params.repeat_last_n == 0:
        return Counter()
    return Counter(history if params.repeat_last_n < 0 else history[-params.repeat_last_n :])


def _candidates(logits: np.ndarray, highest: float, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """Token ids that pass the filters, and float64 weights proportional to their chances."""
    tokens, mass = _pool(logits, highest, params)
    if params.top_k > 0 or params.top_p < 1:
        best_first = np.argsort(-logits[tokens], kind="stable")
        tokens = tokens[best_first[: params.top_k or None]]
    scores = logits[tokens].astype(np.float64) - highest
    if params.top_p < 1:
        running = np.exp(scores).cumsum()
        needed = running.searchsorted(params.top_p * (mass or running[-1])) + 1
        tokens, scores = tokens[:needed], scores[:needed]
    if params.min_p > 0:
        kept = scores >= math.log(params.min_p)
        tokens, scores = tokens[kept], scores[kept]
    return tokens, np.exp(scores / params.temperature)


def _pool(logits: np.ndarray, highest: float, params: SamplingParams) -> tuple[np.ndarray, float]:
    """Ids of all tokens that the filters might keep, so that few need sorting.

    Also the weight, relative to the highest, that top-p takes its share of; 0 if that is just the
    weight of the tokens which top-k keeps.
    """
    if 0 < params.top_k < len(logits):
        return native.top_k(logits, params.top_k), 0.0
    floor = highest + math.log(params.min_p) if params.min_p > 0 else -math.inf
    mass = 0.0
    if params.top_p < 1:
        mass = float(np.exp(logits - highest).sum(dtype=np.float64))
        # All tokens below this one's weight together weigh less than what top-p leaves out.
        floor = max(floor, highest + math.log((1 - params.top_p) * mass / len(logits)))
    return np.flatnonzero(logits >= floor), mass

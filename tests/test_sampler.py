"""The sampler against exact distributions, plain definitions and transformers' warpers."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.runtime.errors import LutraError
from lutra.runtime.sampler import Sampler, SamplingParams, log_probability

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
# Few levels, so that ties are common; distances well above rounding.
LOGITS = st.lists(st.integers(-8, 8), min_size=1, max_size=40).map(lambda values: np.array(values, np.float32) / 2)


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def distribution(logits: np.ndarray, history: list[int], p: SamplingParams) -> np.ndarray:
    """What each token's chance should be, from the definitions: sort, cut, renormalise."""
    scores = logits.astype(np.float64)
    for token, bias in p.logit_bias.items():
        scores[token] += bias
    window = history if p.repeat_last_n < 0 else history[len(history) - p.repeat_last_n :]
    for token, count in Counter(window if p.repeat_last_n else []).items():
        factor = p.repeat_penalty if scores[token] <= 0 else 1 / p.repeat_penalty
        scores[token] *= factor
        scores[token] -= count * p.frequency_penalty + p.presence_penalty
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    kept = order[: p.top_k or None]
    chances = softmax(scores[kept])
    if p.top_p < 1:
        needed = next(n for n in range(1, len(kept) + 1) if chances[:n].sum() >= p.top_p - 1e-12)
        kept, chances = kept[:needed], chances[:needed]
    kept = [token for token, chance in zip(kept, chances, strict=True) if chance >= p.min_p * chances[0] * (1 - 1e-12)]
    result = np.zeros(len(scores))
    result[kept] = softmax(scores[kept] / p.temperature)
    return result


def support(logits: np.ndarray, params: SamplingParams, history=(), draws: int = 1) -> set[int]:
    sampler = Sampler(params)
    return {sampler.sample(logits, history) for _ in range(draws)}


CASES = {
    "plain": {},
    "temperature": {"temperature": 0.5},
    "hot": {"temperature": 3.0},
    "top k": {"top_k": 3},
    "top p": {"top_p": 0.7},
    "min p": {"min_p": 0.2},
    "default filters": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "repeat": {"repeat_penalty": 1.3},
    "presence": {"presence_penalty": 0.7},
    "frequency": {"frequency_penalty": 0.4, "repeat_last_n": -1},
    "short memory": {"repeat_penalty": 2.0, "repeat_last_n": 2},
    "bias": {"logit_bias": {1: -math.inf, 4: 1.5}},
    "all": {"top_k": 6, "top_p": 0.9, "min_p": 0.1, "temperature": 1.5, "repeat_penalty": 1.2},
}


@pytest.mark.parametrize("case", CASES)
def test_chances_are_exact(case):
    """Pearson's chi-square at fixed seeds; 27.9 is its 99.9 % point for 9 degrees of freedom."""
    logits = np.array([2.0, 1.5, 1.5, 0.5, 0, -0.5, -1, -1, -2, -30], np.float32)
    history = [0, 3, 3, 5, 0]
    params = SamplingParams(**{**OFF, **CASES[case]}, seed=7)
    expected = distribution(logits, history, params)
    sampler, draws = Sampler(params), 5_000
    counts = np.bincount([sampler.sample(logits, history) for _ in range(draws)], minlength=10)
    possible = expected > 1e-6
    assert not counts[~possible].any()
    wanted = expected[possible] * draws
    assert ((counts[possible] - wanted) ** 2 / wanted).sum() < 27.9


@settings(max_examples=100, deadline=None)
@given(
    logits=LOGITS,
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0, 0.13, 0.57, 0.91, 1]),
    min_p=st.sampled_from([0, 0.03, 0.4, 1]),
)
def test_filters_keep_the_right_tokens(logits, top_k, top_p, min_p):
    """At a huge temperature all that is kept is equally likely, so draws show the whole set."""
    params = SamplingParams(temperature=1e6, top_k=top_k, top_p=top_p, min_p=min_p, seed=1)
    expected = distribution(logits, [], params)
    drawn = support(logits, params, draws=150)
    assert drawn <= set(np.flatnonzero(expected))
    if np.count_nonzero(expected) <= 8:
        assert drawn == set(np.flatnonzero(expected))


@pytest.mark.parametrize("vocab", [300, 1024, 32003])
@pytest.mark.parametrize("k", [1, 3, 40, 130, 5000])
@pytest.mark.parametrize("tied", [False, True])
def test_top_k_of_a_large_vocabulary(vocab, k, tied):
    rng = np.random.default_rng(k)
    logits = rng.standard_normal(vocab).astype(np.float32)
    if tied:
        logits = np.round(logits)
    best = sorted(range(vocab), key=lambda token: (-logits[token], token))[:k]
    params = SamplingParams(temperature=1e6, top_k=k, top_p=1, min_p=0, seed=0)
    drawn = support(logits, params, draws=400)
    assert drawn <= set(best)
    assert len(drawn) >= min(k, 30) * 0.9


@settings(max_examples=100, deadline=None)
@given(logits=LOGITS)
def test_zero_temperature_takes_the_first_of_the_best(logits):
    params = SamplingParams(temperature=0, seed=3)
    assert support(logits, params) == {int(np.argmax(logits))}
    last = len(logits) - 1
    biased = SamplingParams(temperature=0, logit_bias={last: 100.0})
    assert support(logits, biased) == {last}


def test_a_seed_fixes_the_draws_for_good():
    """Golden values: they must not change with numpy, machine or version."""
    logits = np.linspace(-2, 2, 50, dtype=np.float32)
    sampler = Sampler(SamplingParams(seed=42))
    assert [sampler.sample(logits, []) for _ in range(12)] == GOLDEN
    again = Sampler(SamplingParams(seed=42))
    assert [again.sample(logits, []) for _ in range(12)] == GOLDEN


GOLDEN = [36, 44, 33, 39, 49, 23, 37, 36, 48, 44, 45, 28]


def test_no_seed_is_a_fresh_seed():
    logits = np.zeros(1000, np.float32)
    params = SamplingParams(**OFF)
    first, second = ([Sampler(params).sample(logits, []) for _ in range(8)] for _ in "ab")
    assert first != second


def test_logits_are_left_alone():
    logits = np.linspace(-2, 2, 50, dtype=np.float32)
    logits.flags.writeable = False  # they may be a view of the engine's own buffer
    params = SamplingParams(repeat_penalty=1.5, logit_bias={3: 2.0}, seed=0)
    Sampler(params).sample(logits, [1, 2, 3])


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 500, 999])
def test_broken_logits(temperature, bad, where):
    logits = np.zeros(1000, np.float32)
    logits[where] = bad
    with pytest.raises(LutraError, match="logits hold"):
        Sampler(SamplingParams(temperature=temperature)).sample(logits, [])


def test_banned_tokens():
    logits = np.full(600, -np.inf, np.float32)
    with pytest.raises(LutraError, match="no token"):
        Sampler(SamplingParams()).sample(logits, [])
    logits[[3, 77]] = 0, 1
    assert support(logits, SamplingParams(**OFF, seed=0), draws=50) == {3, 77}
    only = SamplingParams(**OFF, seed=0, logit_bias={77: -math.inf})
    assert support(logits, only, draws=50) == {3}


def test_bias_outside_the_vocabulary():
    with pytest.raises(LutraError, match=r"token 9 .* vocabulary of 4"):
        Sampler(SamplingParams(logit_bias={9: 1.0})).sample(np.zeros(4, np.float32), [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("min_p", 2),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("seed", -1),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {-1: 1.0}),
    ],
)
def test_senseless_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


@settings(max_examples=100, deadline=None)
@given(logits=LOGITS, data=st.data())
def test_log_probability(logits, data):
    token = data.draw(st.integers(0, len(logits) - 1))
    expected = math.log(softmax(logits.astype(np.float64))[token])
    assert log_probability(logits, token) == pytest.approx(expected, abs=1e-5)


def test_equals_transformers_warpers():
    """Our order is k, p, min-p, temperature, so theirs are run in it; chances must agree."""
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")
    rng = np.random.default_rng(5)
    for _ in range(3):
        logits = (rng.standard_normal(64) * 2).astype(np.float32)
        history = rng.integers(0, 64, 12).tolist()
        params = SamplingParams(temperature=0.7, top_k=20, top_p=0.85, min_p=0.08, repeat_penalty=1.3)
        scores = torch.tensor(logits)[None]
        for warper in (
            hf.RepetitionPenaltyLogitsProcessor(1.3),
            hf.TopKLogitsWarper(20),
            hf.TopPLogitsWarper(0.85),
            hf.MinPLogitsWarper(0.08),
            hf.TemperatureLogitsWarper(0.7),
        ):
            scores = warper(torch.tensor([history]), scores)
        theirs = scores.softmax(-1)[0].numpy()
        np.testing.assert_allclose(distribution(logits, history, params), theirs, atol=1e-6)
        assert chances(logits, history, params) == pytest.approx(theirs, abs=2e-3)


def chances(logits: np.ndarray, history: list[int], params: SamplingParams) -> np.ndarray:
    """The sampler's own chances, read off by asking it at evenly spaced points of [0, 1)."""
    sampler, points = Sampler(params), 1_000
    draws = iter((np.arange(points) + 0.5) / points)
    sampler._uniform = lambda: next(draws)
    counts = np.bincount([sampler.sample(logits, history) for _ in range(points)], minlength=64)
    return counts / points

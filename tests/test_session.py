"""Sessions: many per model, forked, rewound, saved, cancelled; and nothing lost when something goes wrong."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
import tiny

from lutra.models import bitnet, qwen3_5_text
from lutra.runtime.cache import KV_TYPES
from lutra.runtime.errors import (
    CancelledError,
    ContextLengthError,
    CorruptModelError,
    LutraError,
    ModelClosedError,
)

IDS = [1, 5, 9, 42, 77, 3, 8, 127, 0, 64]


@pytest.fixture(scope="module")
def model():
    with tiny.model(bitnet, threads=2) as m:
        yield m


@pytest.fixture(scope="module", params=[bitnet, qwen3_5_text], ids=lambda arch: arch.__name__.rpartition(".")[2])
def any_model(request):
    """One of each kind: that keeps all tokens, and that remembers some."""
    with tiny.model(request.param, threads=2) as m:
        yield m


def greedy(session, first, n):
    """The n tokens that follow, and the last logits."""
    logits, found = session.feed(first), []
    for _ in range(n):
        found.append(int(logits.argmax()))
        logits = session.feed(found[-1:])
    return found, logits.copy()


def test_sessions_at_once_give_what_each_gives_alone(any_model):
    prompts = [IDS[i:] + IDS[:i] for i in range(6)]
    alone = [greedy(any_model.session(), prompt, 20) for prompt in prompts]
    found = [None] * len(prompts)

    def work(i):
        found[i] = greedy(any_model.session(), prompts[i], 20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (tokens, logits), (expected_tokens, expected) in zip(found, alone, strict=True):
        assert tokens == expected_tokens
        np.testing.assert_array_equal(logits, expected)


def test_fork_continues_identically_and_apart(any_model):
    session = any_model.session()
    session.feed(IDS)
    fork = session.fork()
    assert fork.tokens == session.tokens
    assert greedy(fork, [7], 10)[0] != greedy(any_model.session(), [7], 10)[0]
    fork = session.fork()
    expected = greedy(session, [7], 10)
    found = greedy(fork, [7], 10)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_rewind_continues_identically(model):
    session = model.session()
    session.feed(IDS)
    expected = session.feed([7, 8]).copy()
    session.feed([9, 10, 11])
    session.rewind(len(IDS))
    assert session.tokens == IDS
    np.testing.assert_array_equal(session.feed([7, 8]), expected)
    with pytest.raises(ValueError, match="rewind"):
        session.rewind(100)


def test_long_prompts_are_fed_in_steps(any_model):
    ids = (IDS * 10)[:64]
    small, large = any_model.session(), any_model.session()
    assert any_model.plan.rows == 64
    for token in ids:
        expected = small.feed([token])
    np.testing.assert_array_equal(large.feed(ids), expected)
    np.testing.assert_array_equal(any_model.session().logits(ids)[-1], expected)


def test_save_and_load(any_model, tmp_path):
    session, file = any_model.session(), tmp_path / "session"
    session.feed(IDS)
    session.save(file)
    other = any_model.session()
    other.feed([3])
    other.load(file)
    assert other.tokens == IDS
    np.testing.assert_array_equal(other.feed([7]), session.feed([7]))
    assert [f.name for f in tmp_path.iterdir()] == ["session"]


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_every_type_of_cache_forks_rewinds_and_is_saved(kv_type, tmp_path):
    with tiny.model(bitnet, kv_type=kv_type) as m:
        session, loaded = m.session(), m.session(40)
        session.feed((IDS * 2)[:19])
        session.save(tmp_path / "session")
        loaded.load(tmp_path / "session")
        fork = session.fork()
        expected = session.feed([7, 8, 9]).copy()
        for other in (fork, loaded):
            np.testing.assert_array_equal(other.feed([7, 8, 9]), expected)
        session.feed([3, 2, 1])
        session.rewind(19)
        np.testing.assert_array_equal(session.feed([7, 8, 9]), expected)
    unlike = "f16" if kv_type == "f32" else "f32"
    with tiny.model(bitnet, kv_type=unlike) as m, pytest.raises(LutraError, match="cache type"):
        m.session().load(tmp_path / "session")


def test_load_refuses_what_does_not_fit(model, tmp_path):
    session, file = model.session(), tmp_path / "session"
    session.feed(IDS)
    session.save(file)
    whole = file.read_bytes()
    other = model.session()
    for damaged in (whole[:-50], whole[: len(whole) // 2], b"", b"no archive at all", whole[:200] + b"x" * 400):
        file.write_bytes(damaged)
        with pytest.raises(CorruptModelError):
            other.load(file)
    with pytest.raises(LutraError, match="no saved session"):
        other.load(tmp_path / "none")
    file.write_bytes(whole)
    with pytest.raises(ContextLengthError):
        model.session(4).load(file)
    with tiny.model(bitnet, seed=1) as another, pytest.raises(LutraError, match="another model"):
        another.session().load(file)
    assert other.tokens == []


def test_context_is_a_hard_limit(model):
    session = model.session(8)
    session.feed(IDS[:6])
    with pytest.raises(ContextLengthError, match=r"6 \+ 3 tokens .* 8"):
        session.feed([1, 2, 3])
    assert session.tokens == IDS[:6]
    session.feed([1, 2])
    with pytest.raises(ContextLengthError):
        model.session(model.config.n_ctx + 1)
    with pytest.raises(ContextLengthError):
        model.session(0)


@pytest.mark.parametrize("tokens", [[], [-1], [128], [1.5], ["1"], [[1, 2]], [2**40]])
def test_senseless_tokens_are_refused(model, tokens):
    session = model.session()
    with pytest.raises((ValueError, TypeError)):
        session.feed(tokens)
    assert session.tokens == []


def test_cancel_stops_a_feed_and_changes_nothing(model):
    session = model.session()
    session.feed(IDS)
    expected = session.fork().feed([5, 6]).copy()
    stop = threading.Event()

    def keep_cancelling():
        while not stop.is_set():
            session.cancel()

    thread = threading.Thread(target=keep_cancelling)
    thread.start()

    def feed_until_cancelled():
        for _ in range(1000):
            session.feed(IDS * 2)
            session.rewind(len(IDS))
            time.sleep(0)

    try:
        with pytest.raises(CancelledError):
            feed_until_cancelled()
    finally:
        stop.set()
        thread.join()
    assert session.tokens == IDS
    np.testing.assert_array_equal(session.feed([5, 6]), expected)


def test_a_closed_model_says_so():
    m = tiny.model(bitnet)
    session = m.session()
    m.close()
    m.close()
    with pytest.raises(ModelClosedError):
        session.feed([1])


def test_logits_are_the_callers_own(model):
    session = model.session()
    one = session.logits([5])
    before = one.copy()
    session.feed([9])
    np.testing.assert_array_equal(one, before)


def test_close_waits_for_the_step_that_runs():
    m = tiny.model(bitnet, threads=2)
    session, closed = m.session(), threading.Event()

    def feed_until_closed():
        try:
            while True:
                session.feed(IDS)
                session.rewind(0)
        except ModelClosedError:
            closed.set()

    thread = threading.Thread(target=feed_until_closed)
    thread.start()
    time.sleep(0.05)
    m.close()
    thread.join(10)
    assert closed.is_set()


def test_weights_go_with_their_model():
    gc.disable()
    try:
        m = tiny.model(bitnet)
        m.session(8).feed([1, 2])
        weights = [weakref.ref(weight) for weight in m.weights.values()]
        m.close()
        del m
        assert all(weight() is None for weight in weights)
    finally:
        gc.enable()

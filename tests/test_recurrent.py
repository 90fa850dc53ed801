"""Sessions of models that remember instead of keeping every token: cut, cancelled, taken back, forked, saved."""

import numpy as np
import pytest
import tiny

from lutra.models import falcon_h1, granitemoehybrid, lfm2, nemotron_h, qwen3_5_text
from lutra.runtime.cache import MOMENTS, Memory, memory_bytes
from lutra.runtime.errors import CancelledError, CorruptModelError, UnsupportedModelError
from lutra.runtime.generate import generate
from lutra.runtime.sampler import SamplingParams
from lutra.runtime.session import LAST_ROWS

IDS = [(7 * i + i * i) % 128 for i in range(60)]


ARCHS = {
    qwen3_5_text: "qwen3.5",
    lfm2: "lfm2",
    granitemoehybrid: "granite4",
    falcon_h1: "falcon-h1",
    nemotron_h: "nemotron-h",
}


@pytest.fixture(scope="module", params=ARCHS, ids=ARCHS.values())
def model(request):
    with tiny.model(request.param, threads=2) as m:
        yield m


def fed(model, ids):
    """A session that was fed these one by one, and so has no moment to come back to; and its last logits."""
    session = model.session()
    for id in ids:
        logits = session.feed([id])
    return session, logits.copy()


@pytest.mark.parametrize("cuts", [[], [1], [30], [59], [16, 33], [5, 6, 7, 40]])
def test_logits_do_not_depend_on_how_tokens_come(model, cuts):
    expected, session = fed(model, IDS)[1], model.session()
    for begin, end in zip([0, *cuts], [*cuts, len(IDS)], strict=True):
        logits = session.feed(IDS[begin:end])
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(model.session().logits(IDS)[-1], expected)


def test_memory_is_of_the_same_size_for_all_contexts(model):
    floats = model.config.recurrent_floats
    for n_ctx in (8, 64):
        assert model.session(n_ctx)._memory.size == floats
    # A short convolution, and a matrix of each head; a shorter one; Mamba 2's.
    mamba = 3 * (8 * 16 + 2 * 2 * 18) + 8 * 18 * 16
    layer = {qwen3_5_text: 3 * (2 * 2 * 18 + 4 * 24) + 4 * 18 * 32, lfm2: 2 * 64}.get(model.arch, mamba)
    assert floats == 2 * layer
    assert len(model.config.kv_shapes) == (2 if model.arch is falcon_h1 else 1)  # of others' layers, one attends


@pytest.mark.parametrize("arch", ARCHS, ids=ARCHS.values())
def test_memories_whose_places_have_more_than_32_bits_are_refused(arch):
    taps = {"linear_conv_kernel_dim", "conv_L_cache", "mamba_d_conv", "conv_kernel"} & set(arch.Config.DEFAULTS)
    with pytest.raises(UnsupportedModelError, match="no memory of"):
        arch.Config.read(arch.TINY | dict.fromkeys(taps, 1 << 30))


@pytest.mark.parametrize(
    ("n", "left"), [(45, 45), (44, 40 - LAST_ROWS), (40 - LAST_ROWS, 40 - LAST_ROWS), (40 - LAST_ROWS - 1, 0), (0, 0)]
)
def test_rewind_goes_back_to_a_moment_that_is_known(model, n, left):
    session = model.session()
    session.feed(IDS[:40])
    for id in IDS[40:45]:  # as an answer
        session.feed([id])
    session.rewind(n)
    assert session.tokens == IDS[:left]
    np.testing.assert_array_equal(session.feed(IDS[left:]), fed(model, IDS)[1])
    with pytest.raises(ValueError, match="rewind"):
        session.rewind(61)


def test_rewinding_twice(model):
    session = model.session()
    session.feed(IDS[:40])
    session.rewind(39)
    session.feed(IDS[24:40])  # 16 tokens: the moment before them is kept
    session.rewind(30)
    assert session.tokens == IDS[:24]
    session.rewind(3)
    session.feed(IDS[:2])
    session.rewind(1)
    assert session.tokens == []
    np.testing.assert_array_equal(session.feed(IDS), fed(model, IDS)[1])


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_feed_that_fails_in_any_step_has_changed_nothing(model, step, monkeypatch):
    session = model.session()
    session.feed(IDS[:20])
    expected = session.fork().feed([5, 6]).copy()
    run, steps = session.model.run, iter(range(9))

    def fail(native_step):
        run(native_step)  # what it wrote must not matter
        if next(steps) == step:
            raise Cancelled

    monkeypatch.setattr(session.model, "run", fail)
    monkeypatch.setattr(session.model.plan, "rows", 12)
    with pytest.raises(Cancelled):
        session.feed(IDS[20:60])
    monkeypatch.undo()
    assert session.tokens == IDS[:20]
    fork = session.fork()
    np.testing.assert_array_equal(session.feed([5, 6]), expected)
    np.testing.assert_array_equal(fork.feed(IDS[20:]), fed(model, IDS)[1])
    session.rewind(19)
    assert session.tokens == []


def test_what_was_kept_is_still_there_after_a_cancel(model, monkeypatch):
    session = model.session()
    session.feed(IDS[:40])

    def cancelled(step):
        raise CancelledError("the run was cancelled")

    monkeypatch.setattr(session.model, "run", cancelled)
    with pytest.raises(CancelledError):
        session.feed(IDS[40:])
    monkeypatch.undo()
    session.rewind(30)
    assert session.tokens == IDS[:24]
    np.testing.assert_array_equal(session.feed(IDS[24:]), fed(model, IDS)[1])


def test_forks_share_nothing(model):
    session = model.session()
    session.feed(IDS[:30])
    fork = session.fork()
    session.feed([1, 2, 3])
    np.testing.assert_array_equal(fork.feed(IDS[30:]), fed(model, IDS)[1])


def test_damaged_memories_are_refused(model, tmp_path):
    session, file = model.session(), tmp_path / "session.npz"
    session.feed(IDS[:5])
    session.save(file)
    with np.load(file) as saved:
        parts = dict(saved)
    for wrong in (parts["memory"][:-1], parts["memory"].astype(np.float64), np.zeros(0, np.float32)):
        np.savez(file, **{**parts, "memory": wrong})
        with pytest.raises(CorruptModelError, match="a memory of"):
            session.load(file)
    assert session.tokens == IDS[:5]


def test_memory_takes_no_more_than_it_says():
    memory = Memory(100)
    for rows in [(7, 7, 7), (1,), (1,), (7, 7, 7), (1,), (7, 7, 7)]:
        memory.begin()
        for i, n in enumerate(rows):
            if i == 2:
                memory.keep()
            memory.blank()[:] = 1
            memory.advance(n)
    assert len(memory._arrays) == MOMENTS
    assert sum(a.nbytes for a in memory._arrays) == memory_bytes(100)


class Tokenizer:
    bos_id, eos_ids = 0, ()

    class Stream:
        def push(self, id):
            return f"{id} "

        def flush(self):
            return ""

    def stream(self):
        return self.Stream()

    answer = stream


def test_a_conversation_goes_on_from_what_is_kept(model):
    """As a chat whose template drops what the model thought: the new prompt leaves the old one close to its end."""

    def answer(session, prompt):
        chunks = list(generate(session, Tokenizer(), prompt, params=SamplingParams(temperature=0), max_tokens=4))
        return "".join(chunk.text for chunk in chunks), chunks[-1].n_cached

    session = model.session()
    assert answer(session, IDS[:40]) == (answer(model.session(), IDS[:40])[0], 0)
    again = answer(session, IDS[:40])
    assert again == (answer(model.session(), IDS[:40])[0], 40 - LAST_ROWS)
    shorter = [*IDS[:38], 99, 98, 97, *IDS[:10]]
    assert answer(session, shorter) == (answer(model.session(), shorter)[0], 40 - LAST_ROWS)

"""The generation loop on small fake models whose every answer can be told beforehand."""

import itertools
import threading
import time
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.models.tokenizer import Tokenizer
from lutra.runtime.errors import CancelledError, ContextLengthError, LutraError
from lutra.runtime.generate import Chunk, StopStrings, generate
from lutra.runtime.sampler import SamplingParams, log_probability

# Pieces that make stop strings and characters straddle tokens: "é" and the otter come in bytes too.
OTTER = "🦦".encode()
PIECES = ["<bos>", "<eos>", "a", "b", "ab", "ba", "aba", " ", " b", "é", "é", "e\u0301", "🦦"]
PIECES = [piece.encode() for piece in PIECES] + [bytes([byte]) for byte in "é".encode() + OTTER]
BOS, EOS, VOCAB = 0, 1, len(PIECES)
GREEDY = SamplingParams(temperature=0)
IDS = st.lists(st.integers(2, VOCAB - 1), max_size=20)
STOP = st.text("abé 🦦\u0301", min_size=1, max_size=4)


class Backend:
    vocab_size, special_ids, kept_space = VOCAB, frozenset({BOS, EOS}), None
    strip, strip_end = 1, 0
    added = types.MappingProxyType({})

    def encode(self, text, parse_special, start):
        raise NotImplementedError

    def token_id(self, token):
        return None

    def token_bytes(self, id):
        return PIECES[id]


def make_tokenizer(bos: int | None = BOS) -> Tokenizer:
    eos = frozenset({EOS, VOCAB + 9})  # configurations do name ids that the model has no logits for
    return Tokenizer(Backend(), named={}, bos_id=bos, eos_ids=eos, beginning=[], templates={})


TOKENIZER = make_tokenizer()


class FakeSession:
    """Logits are noise fixed by all the tokens in the cache, so no slip in it can go unnoticed."""

    def __init__(self, n_ctx: int = 64):
        self.n_ctx = n_ctx
        self.tokens: list[int] = []
        self.fed = 0
        self.buffer = np.zeros(VOCAB, np.float32)

    def feed(self, tokens):
        assert len(tokens) > 0
        assert len(self.tokens) + len(tokens) <= self.n_ctx
        self.tokens += tokens
        self.fed += len(tokens)
        self.buffer[:] = self.next_logits()  # a view that the next feed overwrites
        return self.buffer

    def next_logits(self):
        logits = np.random.default_rng(self.tokens).standard_normal(VOCAB)
        logits[EOS] = -9
        return logits

    def rewind(self, n):
        assert 0 <= n <= len(self.tokens)
        del self.tokens[n:]

    def cancel(self):
        raise AssertionError("nobody asked for it")


class Script(FakeSession):
    """Says the given ids, then EOS for ever, whatever it is fed."""

    def __init__(self, ids, n_prompt: int = 1):
        super().__init__(n_ctx=1000)
        self.script, self.n_prompt = ids, n_prompt

    def next_logits(self):
        position = len(self.tokens) - self.n_prompt
        logits = np.zeros(VOCAB)
        logits[self.script[position] if position < len(self.script) else EOS] = 1
        return logits


def run(session, prompt=(2, 3, 4), **options) -> list[Chunk]:
    options = {"params": GREEDY, "max_tokens": 12, **options}
    return list(generate(session, TOKENIZER, prompt, **options))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def tokens_of(chunks: list[Chunk]) -> list[int]:
    return [chunk.token for chunk in chunks if chunk.token is not None]


def plain_greedy(prompt, n: int) -> list[int]:
    session, tokens = FakeSession(), []
    logits = session.feed(list(prompt))
    for _ in range(n):
        tokens.append(int(np.argmax(logits)))
        logits = session.feed(tokens[-1:])
    return tokens


def cut(text: str, stops) -> str:
    """Text before the first stop string to be completed; the longest if several are at once."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


# --- what is generated


@pytest.mark.parametrize("prompt", [(5,), (2, 3, 4), tuple(range(2, 12))])
def test_equals_a_plain_greedy_loop(prompt):
    session = FakeSession()
    chunks = run(session, prompt)
    tokens = tokens_of(chunks)
    assert tokens == plain_greedy(prompt, 12)
    assert text_of(chunks) == TOKENIZER.decode(tokens)
    assert session.tokens == [*prompt, *tokens[:-1]], "the last token is not fed"
    assert [chunk.finish_reason for chunk in chunks] == [None] * 11 + ["length"]


def test_counts_and_times():
    chunks = run(FakeSession(), max_tokens=3)
    assert [chunk.n_generated for chunk in chunks] == [1, 2, 3]
    last = chunks[-1]
    assert (last.n_prompt, last.n_cached) == (3, 0)
    assert last.prompt_seconds > 0
    assert last.prompt_tps == 3 / last.prompt_seconds
    assert last.generation_tps == 2 / last.generation_seconds
    assert Chunk("").prompt_tps == Chunk("").generation_tps == 0


def test_a_slow_reader_costs_nothing():
    chunks = generate(FakeSession(), TOKENIZER, [2], params=GREEDY, max_tokens=3)
    seconds = [(time.sleep(0.1), chunk.generation_seconds)[1] for chunk in chunks]
    assert seconds[-1] < 0.1


def test_seed_decides():
    def draw(seed):
        return tokens_of(run(FakeSession(), params=SamplingParams(temperature=2.0, seed=seed)))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_logprobs():
    chunks = run(FakeSession(), logprobs=True, params=SamplingParams(top_k=2, seed=0))
    tokens = [2, 3, 4]
    for chunk in chunks:
        session = FakeSession()
        expected = log_probability(session.feed(tokens), chunk.token)
        assert chunk.logprob == pytest.approx(expected)
        tokens = [*tokens, chunk.token]
    assert run(FakeSession())[0].logprob is None


# --- the end


def test_end_of_sequence():
    chunks = run(Script([2, 3]), prompt=[BOS])
    assert tokens_of(chunks) == [2, 3, EOS]
    assert text_of(chunks) == "ab"
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].n_generated == 3


def test_ignore_eos():
    tokens = tokens_of(run(Script([2, 3]), prompt=[BOS], ignore_eos=True))
    assert len(tokens) == 12
    assert EOS not in tokens


def test_max_tokens():
    (only,) = run(FakeSession(), max_tokens=1)
    assert (only.finish_reason, only.n_generated) == ("length", 1)
    session = FakeSession()
    (none,) = run(session, max_tokens=0)
    assert (none.finish_reason, none.token, none.text) == ("length", None, "")
    assert session.tokens == [2, 3, 4], "the prompt is cached for later"
    with pytest.raises(ValueError, match="max_tokens"):
        run(FakeSession(), max_tokens=-1)


def test_full_context():
    session = FakeSession(n_ctx=8)
    chunks = run(session, max_tokens=None)
    assert chunks[-1].finish_reason == "length"
    assert len(session.tokens) == 8
    assert tokens_of(chunks) == plain_greedy((2, 3, 4), 6)


def test_prompt_of_exactly_the_context():
    session = FakeSession(n_ctx=3)
    (only,) = run(session)
    assert (only.finish_reason, only.n_generated) == ("length", 1)


def test_prompt_too_long():
    session = FakeSession(n_ctx=4)
    with pytest.raises(ContextLengthError, match=r"5 tokens .* holds 4"):
        generate(session, TOKENIZER, [2] * 5, params=GREEDY)  # at once, not at the first chunk
    assert session.fed == 0


def test_empty_prompt():
    session = FakeSession()
    assert run(session, [], max_tokens=1)[0].n_prompt == 1
    assert session.tokens == [BOS]
    with pytest.raises(LutraError, match="prompt is empty"):
        generate(session, make_tokenizer(bos=None), [], params=GREEDY)


# --- the cache


@settings(max_examples=100, deadline=None)
@given(first=IDS.filter(len), second=IDS.filter(len), shared=IDS)
def test_common_prefix_is_reused(first, second, shared):
    first, second = shared + first, shared + second
    session = FakeSession(n_ctx=100)
    run(session, first)
    cached, fed = list(session.tokens), session.fed
    chunks = run(session, second)
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(cached, second, strict=False))
    expected = min(len(list(both)), len(second) - 1)
    assert chunks[-1].n_cached == expected
    assert session.fed - fed == len(second) - expected + 11
    assert tokens_of(chunks) == plain_greedy(second, 12)


def test_same_prompt_again():
    session = FakeSession()
    first = tokens_of(run(session))
    again = run(session)
    assert tokens_of(again) == first
    assert again[0].n_cached == 2, "its last token is fed for the logits"


@pytest.mark.parametrize("read", [0, 1, 2, 5])
def test_closing_leaves_the_session_sound(read):
    session = FakeSession()
    chunks = generate(session, TOKENIZER, [2, 3], params=GREEDY)
    tokens = tokens_of(list(itertools.islice(chunks, read)))
    chunks.close()
    assert session.tokens == ([2, 3, *tokens[:-1]] if read else [])
    assert tokens_of(run(session)) == plain_greedy((2, 3, 4), 12)


def test_interrupt_in_a_feed():
    class Interrupted(FakeSession):
        def feed(self, tokens):
            if len(self.tokens) == 5:
                raise KeyboardInterrupt
            return super().feed(tokens)

    session, seen = Interrupted(), []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(generate(session, TOKENIZER, [2, 3, 4], params=GREEDY))
    assert session.tokens == [2, 3, 4, *plain_greedy((2, 3, 4), 2)]


# --- cancelling


def test_cancelled_before_the_start():
    cancel, session = threading.Event(), FakeSession()
    cancel.set()
    (only,) = run(session, cancel=cancel)
    assert (only.finish_reason, only.token, session.fed) == ("cancelled", None, 0)


def test_cancelled_between_tokens():
    cancel, session = threading.Event(), FakeSession()
    chunks = []
    for chunk in generate(session, TOKENIZER, [2, 3, 4], params=GREEDY, cancel=cancel):
        chunks.append(chunk)
        if len(chunks) == 4:
            cancel.set()
    assert [chunk.finish_reason for chunk in chunks] == [None] * 4 + ["cancelled"]
    assert text_of(chunks) == TOKENIZER.decode(tokens_of(chunks))
    assert session.tokens == [2, 3, 4, *tokens_of(chunks)]


def test_cancelled_inside_a_long_prompt():
    class Slow(FakeSession):
        def __init__(self):
            super().__init__()
            self.cancelled = threading.Event()

        def feed(self, tokens):
            assert self.cancelled.wait(10)
            raise CancelledError("as the engine says it")

        def cancel(self):
            self.cancelled.set()

    cancel, session = threading.Event(), Slow()
    threading.Timer(0.05, cancel.set).start()
    (only,) = run(session, cancel=cancel)
    assert (only.finish_reason, session.tokens) == ("cancelled", [])


def test_cancelling_leaves_no_thread():
    before = threading.active_count()
    run(FakeSession(), cancel=threading.Event())
    assert threading.active_count() == before


# --- stop strings


@settings(max_examples=300, deadline=None)
@given(ids=IDS, stops=st.lists(STOP, max_size=3))
def test_stop_strings_in_a_stream(ids, stops):
    """Pieces joined = the whole text cut before the first stop string, wherever tokens end."""
    chunks = run(Script(ids), prompt=[BOS], stop=stops, max_tokens=None)
    whole = TOKENIZER.decode(ids)
    assert text_of(chunks) == cut(whole, stops)
    assert chunks[-1].finish_reason == "stop"
    assert (chunks[-1].token == EOS) == (chunks[-1].n_generated == len(ids) + 1)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.text("ab", max_size=5)), stops=st.lists(st.text("ab", min_size=1)))
def test_stop_strings_do_not_depend_on_the_pieces(pieces, stops):
    filter, got = StopStrings(stops), ""
    for piece in pieces:
        got += filter.push(piece)
        if filter.hit:
            break
    got += filter.flush()
    whole = "".join(pieces)
    assert got == cut(whole, stops)
    assert filter.hit == any(stop in whole for stop in stops)


def test_text_is_held_back_no_longer_than_needed():
    filter = StopStrings(["abc"])
    assert [filter.push(char) for char in "xababd"] == ["x", "", "", "ab", "", "abd"]


def test_held_text_comes_at_the_end():
    chunks = run(Script([2, 4]), prompt=[BOS], stop="ababab")
    assert [chunk.text for chunk in chunks] == ["", "a", "ab"]
    chunks = run(Script([4, 4]), prompt=[BOS], stop=["ababab"], max_tokens=2)
    assert [chunk.text for chunk in chunks] == ["", "abab"]


def test_one_stop_string_may_be_given_bare():
    assert text_of(run(Script([2, 3, 2]), prompt=[BOS], stop="ba")) == "a"
    with pytest.raises(ValueError, match="stop strings"):
        run(FakeSession(), stop=[""])


# --- spaces and half characters


def test_only_a_continuation_keeps_its_first_space():
    script, prompt = [8, 2], [BOS, 2]
    assert text_of(run(Script(script, 2), prompt)) == "ba"
    assert text_of(run(Script(script, 2), prompt, continues=True)) == " ba"


def test_half_a_character_at_the_end():
    half = VOCAB - 4  # the otter's first byte
    assert text_of(run(Script([2, half]), prompt=[BOS])) == "a\ufffd"
    assert text_of(run(Script([2, half]), prompt=[BOS], stop=["\ufffd"])) == "a"


def test_heads_of_channels_are_no_part_of_an_answer():
    """As gpt-oss's are: but who continues a text sees all of it."""
    start, channel, message, end = marks = (2, 3, 4, 5)
    names = dict(zip(("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"), (*marks, EOS), strict=True))

    class Channels(Backend):
        special_ids = frozenset({BOS, EOS, *marks})
        token_id = staticmethod(names.get)

    tokenizer = Tokenizer(Channels(), named={}, bos_id=BOS, eos_ids=frozenset({EOS}), beginning=[], templates={})
    head, otter = PIECES.index(b"aba"), PIECES.index(OTTER)
    said = [channel, head, message, otter, end, start, channel, head, message, otter]
    for continues, text in ((False, "🦦\n\n🦦"), (True, "aba🦦aba🦦")):
        chunks = list(generate(Script(said), tokenizer, [BOS], params=GREEDY, continues=continues))
        assert text_of(chunks) == text
        assert tokens_of(chunks) == [*said, EOS]
        assert chunks[-1].finish_reason == "stop"

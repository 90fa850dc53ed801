"""The Python API, on real weights."""

import threading
from pathlib import Path

import numpy as np
import pytest

from lutra import LLM
from lutra.runtime.errors import ContextLengthError, ModelClosedError, ModelNotFoundError

WEIGHTS = Path(__file__).parents[2] / "shared" / "assets" / "weights"
STORIES = WEIGHTS / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not there")

# What llama2.c publishes for `./run stories260K.bin -t 0.0` (run.c's own test).
GOLDEN = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, \
she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with \
your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she"""


@pytest.fixture(scope="module")
def stories():
    with LLM(STORIES, seed=1) as llm:
        yield llm


@needs_stories
@pytest.mark.parametrize("path", [STORIES, STORIES / "stories260K.bin"])
def test_greedy_text_is_the_published_one(path):
    with LLM(path) as llm:
        text = llm("", max_tokens=200, temperature=0)["choices"][0]["text"]
    assert text.startswith(GOLDEN)


@needs_stories
def test_completion_object(stories):
    r = stories("Once upon a time", max_tokens=8, temperature=0)
    assert r["object"] == "text_completion"
    assert r["id"].startswith("cmpl-")
    assert r["choices"] == [
        {"text": ", there was a little girl", "index": 0, "logprobs": None, "finish_reason": "length"}
    ]
    n = len(stories.tokenize("Once upon a time"))
    assert r["usage"] == {"prompt_tokens": n, "completion_tokens": 8, "total_tokens": n + 8}


@needs_stories
def test_stream_is_the_same_text_in_pieces(stories):
    whole = stories("Lily", max_tokens=30, temperature=0)
    pieces = list(stories("Lily", max_tokens=30, temperature=0, stream=True))
    assert "".join(p["choices"][0]["text"] for p in pieces) == whole["choices"][0]["text"]
    assert [p["choices"][0]["finish_reason"] for p in pieces][-2:] == [None, "length"]
    assert pieces[-1]["usage"] == whole["usage"]


@needs_stories
def test_stop_echo_and_token_ids(stories):
    r = stories("Once upon a time", max_tokens=60, temperature=0, stop=["girl", "zzz"], echo=True)
    assert r["choices"][0]["text"] == "Once upon a time, there was a little "
    assert r["choices"][0]["finish_reason"] == "stop"
    by_ids = stories(stories.tokenize("Once upon a time"), max_tokens=5, temperature=0)
    assert by_ids["choices"] == stories("Once upon a time", max_tokens=5, temperature=0)["choices"]


@needs_stories
def test_seeds(stories):
    def text(**options):
        return stories("Once", max_tokens=20, temperature=1.2, **options)["choices"][0]["text"]

    assert text(seed=3) == text(seed=3)
    assert len({text() for _ in range(4)}) > 1
    with LLM(STORIES, seed=5) as a, LLM(STORIES, seed=5) as b:
        assert [a("Once", temperature=1.2)["choices"] for _ in range(3)] == [
            b("Once", temperature=1.2)["choices"] for _ in range(3)
        ]


@needs_stories
def test_calls_from_several_threads(stories):
    prompts = ["Once upon a time", "Lily", "The dog", "Tom and", "One day", "Mom said"]
    expected = [stories(p, max_tokens=30, temperature=0)["choices"] for p in prompts]
    found = {}

    def work(prompt):
        found[prompt] = stories(prompt, max_tokens=30, temperature=0)["choices"]

    threads = [threading.Thread(target=work, args=(p,)) for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[p] for p in prompts] == expected


@needs_stories
def test_cancel_and_abandoned_streams(stories):
    cancel = threading.Event()
    stream = stories("Once", max_tokens=100, temperature=0, stream=True, cancel=cancel)
    next(stream)
    cancel.set()
    assert list(stream)[-1]["choices"][0]["finish_reason"] == "cancelled"
    abandoned = stories("Once", max_tokens=100, stream=True)
    next(abandoned)
    abandoned.close()
    assert stories("Once", max_tokens=2)["usage"]["completion_tokens"] == 2


@needs_stories
def test_logits(stories):
    ids = stories.tokenize("Once upon a time")
    logits = stories.logits(ids)
    assert logits.shape == (len(ids), 512)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(stories.logits(ids[:3]), logits[:3])


@needs_stories
def test_bad_arguments(stories):
    for name, value in [("temperature", -1), ("top_p", 2), ("max_tokens", -5), ("stop", [""])]:
        with pytest.raises(ValueError, match=name if name != "stop" else "stop"):
            stories("Once", **{name: value})
    with pytest.raises(TypeError):
        stories("Once", no_such_option=1)
    with pytest.raises(ContextLengthError, match="512"):
        stories("Once upon a time " * 400)
    assert stories("Once", max_tokens=1)["usage"]["completion_tokens"] == 1


@needs_stories
def test_closed(tmp_path):
    llm = LLM(STORIES)
    llm.close()
    llm.close()
    with pytest.raises(ModelClosedError):
        llm("Once")
    with pytest.raises(ModelClosedError):
        llm.logits([1])


def test_no_such_model(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no model at"):
        LLM(tmp_path / "nothing")

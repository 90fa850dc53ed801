"""The Python API: a model that completes text."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lutra import models
from lutra.models.tokenizer import Tokenizer
from lutra.runtime.errors import ModelClosedError, ModelNotFoundError
from lutra.runtime.generate import Chunk, generate
from lutra.runtime.model import Model
from lutra.runtime.sampler import SamplingParams
from lutra.runtime.session import Session

__all__ = ["LLM", "resolve"]


def resolve(path: str | os.PathLike[str] | None) -> Path:
    """Where a model lies; None is the built-in one. Raises ModelNotFoundError."""
    if path is None:
        path = Path(models.__file__).parent / "default"
        if not (path / "config.json").exists():
            raise ModelNotFoundError("this installation has no built-in model", "name a model")
    if not os.fspath(path):  # which Path() takes for the working directory
        raise ModelNotFoundError("the model's name is empty", "is the shell's variable set?")
    path = Path(path)
    if not path.exists():
        raise ModelNotFoundError(
            f"there is no model at {path}", "give a converted model, a Hugging Face directory, a GGUF or llama2.c file"
        )
    return path


class LLM:
    """A model that completes text.

    path: a directory that ``lutra convert`` wrote, a Hugging Face directory, a GGUF or a llama2.c file or its folder;
    None is the built-in model. n_ctx: tokens that prompt and answer may have together; None is as many as the model
    knows and memory holds. n_threads: None is all CPUs that this process may use. seed: makes sampling repeat.
    kv_type: how keys and values are stored: "f16", or "f32", "q8", "q4" for twice, half, a quarter of the memory.

    Raises ModelNotFoundError, UnsupportedModelError, CorruptModelError, OutOfMemoryError. May be used from several
    threads. Close it, or use it in ``with``, to free its threads and memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        seed: int | None = None,
        kv_type: str = "f16",
    ):
        self.model = Model.load(resolve(path), threads=n_threads, kv_type=kv_type)
        self._n_ctx, self._name = n_ctx, str(path or "default")
        self._idle: list[Session] = []  # sessions that wait for a prompt that begins like their last
        self._lock = threading.Lock()
        self._seeds = np.random.SeedSequence(seed)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises a LutraError if the model has none: then only token ids go in."""
        return self.model.tokenizer

    def __call__(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: dict[int, float] | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        stream: bool = False,
        echo: bool = False,
        cancel: threading.Event | None = None,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Complete a prompt, text or token ids. Names and defaults are llama.cpp's.

        max_tokens: None goes on until the model ends or the context is full. Returns OpenAI's ``text_completion``
        object; with ``stream``, an iterator of them, one piece of text each, the last with its ``finish_reason``:
        "stop", "length", or "cancelled" after ``cancel`` was set.

        Raises ContextLengthError for a prompt that does not fit, ValueError naming a parameter out of range.
        """
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias or {},
            seed=self._next_seed() if seed is None else seed,
        )
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        shown = (prompt if isinstance(prompt, str) else self.detokenize(ids)) if echo else ""
        chunks = self._chunks(ids, params=params, max_tokens=max_tokens, stop=stop, cancel=cancel, continues=True)
        frame = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._name,
        }
        pieces = _completions(frame, shown, chunks)
        return pieces if stream else _whole(list(pieces))

    def _next_seed(self) -> int:
        with self._lock:
            return int(self._seeds.spawn(1)[0].generate_state(1)[0])

    def _chunks(self, ids: list[int], **options: Any) -> Iterator[Chunk]:
        """generate() on a session of our own; what can go wrong before the first token does so here."""
        session = self._take()
        try:
            chunks = generate(session, self.tokenizer, ids, **options)
        except BaseException:
            self._idle.append(session)
            raise
        return self._returning(session, chunks)

    def _returning(self, session: Session, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        try:
            yield from chunks
        finally:
            self._idle.append(session)

    def _take(self) -> Session:
        if self.model.closed:
            raise ModelClosedError("the model is closed")
        with self._lock:
            return self._idle.pop() if self._idle else self.model.session(self._n_ctx)

    @contextmanager
    def _borrowed(self) -> Iterator[Session]:
        session = self._take()
        try:
            yield session
        finally:
            self._idle.append(session)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after every token of a sequence: float32 [len(ids), vocab]."""
        with self._borrowed() as session:
            session.rewind(0)
            return session.logits(ids)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the beginning-of-sequence token if the model wants one."""
        return self.tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(ids)

    def close(self) -> None:
        """Free the threads and memory. Closing twice is fine."""
        self.model.close()
        self._idle.clear()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _completions(frame: dict[str, Any], shown: str, chunks: Iterator[Chunk]) -> Iterator[dict[str, Any]]:
    """OpenAI text_completion objects, the last one with the counts."""
    for chunk in chunks:
        choice = {"text": shown + chunk.text, "index": 0, "logprobs": None, "finish_reason": chunk.finish_reason}
        shown = ""
        usage = {
            "prompt_tokens": chunk.n_prompt,
            "completion_tokens": chunk.n_generated,
            "total_tokens": chunk.n_prompt + chunk.n_generated,
        }
        yield {**frame, "choices": [choice], **({"usage": usage} if chunk.finish_reason else {})}


def _whole(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The pieces of a stream as one completion."""
    last = pieces[-1]
    text = "".join(piece["choices"][0]["text"] for piece in pieces)
    return {**last, "choices": [{**last["choices"][0], "text": text}]}

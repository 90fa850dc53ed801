"""What a model's matrices see: the model's own forward() run on calibration texts, stopping at every matrix.

All texts go through the model side by side, each in a thread, one thread at a time. Where forward() multiplies by a
matrix, they wait for each other; then the matrix is quantized, with the second moments of all their activations, and
the texts go on with what it has become. So every matrix is fitted to what the quantized ones before it make of the
text, in one pass, with one matrix in memory; and any architecture that has a forward() can be calibrated.

A mixture's experts are such matrices, too, met one after the other; each sees only the tokens that chose it. With fewer
tokens than columns, second moments say of some directions that nothing ever comes from there, and a matrix fitted to
them is worse than a rounded one. So such experts are left to rounding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from lutra.models import weights
from lutra.models.loaders import Checkpoint
from lutra.models.weights import Planned
from lutra.runtime import formats
from lutra.runtime.errors import LutraError
from lutra.runtime.formats import Packed, to_float32
from lutra.runtime.ops import State

__all__ = ["Calibration", "calibrate"]


CHARACTERS = 8  # a token has fewer, on average
AT_ONCE = 8  # texts whose activations are multiplied together


@dataclass(frozen=True)
class Calibration:
    """A text to calibrate with: ``samples`` pieces, evenly spread, of at most ``length`` tokens each."""

    text: str
    samples: int = 32
    length: int = 512

    def texts(self, checkpoint: Checkpoint, n_ctx: int) -> list[list[int]]:
        """The pieces as token ids, none longer than a model's n_ctx. Raises LutraError for an empty text."""
        tokenizer = checkpoint.tokenizer()
        length = min(self.length, n_ctx)
        size = CHARACTERS * length  # a long text is not tokenized as a whole
        samples = max(1, min(self.samples, len(self.text) // size))
        begins = np.linspace(0, max(0, len(self.text) - size), samples).astype(int)
        found = [tokenizer.encode(self.text[begin : begin + size])[:length] for begin in begins]
        if not all(found):
            raise LutraError("the text to calibrate with is empty")
        return found


def calibrate(
    checkpoint: Checkpoint,
    arch: ModuleType,
    config: Any,
    wanted: Mapping[str, Planned],
    texts: Sequence[Sequence[int]],
    quantized: Callable[..., Packed],
    skip: Callable[[str], bool] = lambda role: False,
) -> None:
    """Run the model on ``texts`` of token ids, and call quantized(role, hessian) for every wanted matrix it meets.

    The hessian is the mean of x x^T over all tokens: float64 [cols, cols]; None for a role to ``skip``. For experts it
    is quantized(role, hessian, expert), one after the other, and None for one that too few tokens chose. Raises
    LutraError if the model's forward() did not meet all of them.
    """
    if not texts:
        raise LutraError("this method needs a text to calibrate with", "-f TEXT")
    crew = _Crew(len(texts))
    met: set[str] = set()

    def visit(role: str, expert: int | None, xs: list[np.ndarray]) -> list[np.ndarray]:
        met.add(role)
        few = expert is not None and sum(map(len, xs)) < xs[0].shape[1]
        hessian = None if few or skip(role) else _second_moments(xs)
        packed = quantized(role, hessian) if expert is None else quantized(role, hessian, expert)
        matrix, bias = to_float32(packed.matrix).T, 0 if packed.bias is None else packed.bias
        return [x @ matrix + bias for x in xs]

    space = {
        p.role: _stop(p, crew, visit) if p.role in wanted else p.pack(checkpoint)
        for p in weights.plan_roles(checkpoint, weights.names_of(arch, config), config.layers)
        if p.role != "head"
    }
    model = _by_layer(space, arch, config)

    def one(text: Sequence[int]) -> None:
        with suppress(_Finished):
            arch.forward(config, model, np.array(text, np.int32)[:, None], _Forgetful(config))

    crew.run([lambda text=text: one(text) for text in texts])  # type: ignore[misc]
    if missed := wanted.keys() - met:
        raise LutraError(f"calibration never met {sorted(missed)[0]}", "use a method that needs no calibration")


def _second_moments(xs: list[np.ndarray]) -> np.ndarray:
    total = np.zeros((xs[0].shape[1],) * 2)
    for begin in range(0, len(xs), AT_ONCE):
        some = np.concatenate(xs[begin : begin + AT_ONCE])
        total += some.T @ some  # in float32: the product of a matrix with itself is half the work
    return total / sum(map(len, xs))


def _by_layer(space: dict[str, Any], arch: ModuleType, config: Any) -> Any:
    if "head" in (shapes := arch.shapes(config)):
        space["head"] = _Shape(shapes["head"])
    model = weights.by_layer(space, arch, config)
    model.head = _End()
    return model


class _Shape:
    """Stands for a weight that nothing reads."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape


class _Finished(Exception):
    """All layers are behind: nobody asks for logits."""


class _End:
    """The output matrix: whoever touches it has gone through all layers."""

    def __getattr__(self, name: str) -> Any:
        raise _Finished


Visit = Callable[[str, "int | None", list[np.ndarray]], list[np.ndarray]]


def _stop(planned: Planned, crew: _Crew, visit: Visit) -> _Stop | _Experts:
    if not planned.each:
        return _Stop(planned.shape, crew, partial(visit, planned.role, None))
    shape = planned.shape[1:]
    each = [_Stop(shape, crew, partial(visit, planned.role, e)) for e in range(len(planned.each))]
    return _Experts(planned.shape, each)


class _Stop:
    """A matrix at which the texts meet, as ops.linear sees one. ``x @ weight.matrix.T`` is the meeting."""

    codec, stack, chains, rotation, bias = formats.codec("f32"), (), (), None, None
    __array_ufunc__ = None  # so that numpy asks __rmatmul__

    def __init__(self, shape: tuple[int, ...], crew: _Crew, visit: Callable[[list[np.ndarray]], list[np.ndarray]]):
        self.shape, self._crew, self._visit = shape, crew, visit

    @property
    def matrix(self) -> _Stop:
        return self

    T = matrix

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        return self._crew.meet(x, self._visit)


class _Experts:
    """A mixture's stops, as ops.experts sees its matrices: it takes each in turn, and multiplies where a text chose it.

    A text that did not choose it meets the others there with no rows.
    """

    codec, stack, bias = _Stop.codec, _Stop.stack, _Stop.bias

    def __init__(self, shape: tuple[int, ...], stops: list[_Stop]):
        self.shape, self._stops = shape, stops

    @property
    def experts(self) -> _Experts:
        return self

    def __len__(self) -> int:
        return len(self._stops)

    def __iter__(self) -> Iterator[_Turn]:
        for stop in self._stops:
            yield (turn := _Turn(stop))
            if not turn.taken:
                np.empty((0, stop.shape[1]), np.float32) @ turn


class _Turn:
    """One text's look at a stop."""

    __array_ufunc__ = None

    def __init__(self, stop: _Stop):
        self._stop, self.taken = stop, False

    @property
    def matrix(self) -> _Turn:
        return self

    T = matrix

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        self.taken = True
        return x @ self._stop


class _Forgetful(State):
    """A session that keeps what the layer at work has stored only, unless later ones see it: no text is fed later."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not config.kv_shared:
            self.kv = _Latest()
        self.memory = _Latest()


class _Latest(dict[int, Any]):
    def __setitem__(self, key: int, value: Any) -> None:
        self.clear()
        super().__setitem__(key, value)


class _Crew:
    """Functions that run in turn, each in a thread of its own, up to the next point where all meet."""

    def __init__(self, n: int):
        self._n = n
        self._turn = threading.Lock()  # held by the one that runs
        self._barrier = threading.Barrier(n)
        self._own = threading.local()
        self._brought: dict[int, Any] = {}
        self._given: list[Any] = []
        self._finished = 0
        self._errors: list[BaseException] = []

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """Run them all to their end. What one of them raises ends all, and is raised here."""
        threads = [threading.Thread(target=self._guarded, args=each, daemon=True) for each in enumerate(works)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._barrier.abort()
            raise
        if self._errors:
            raise self._errors[0]

    def _guarded(self, place: int, work: Callable[[], None]) -> None:
        self._own.place = place
        with self._turn:
            try:
                work()
                self._finished += 1
                self._together(not self._brought)
            except threading.BrokenBarrierError:
                pass  # another one failed
            except BaseException as error:
                self._errors.append(error)
                self._barrier.abort()

    def _together(self, so_far: bool) -> None:
        if not so_far:
            raise LutraError("this model takes different matrices for different texts", "quantize it without a text")

    def meet(self, mine: Any, work: Callable[[list[Any]], list[Any]]) -> Any:
        """Wait for the others; work() then turns what all brought, in order, into what each takes along."""
        self._together(not self._finished)
        self._brought[self._own.place] = mine
        if len(self._brought) == self._n:
            self._given = work([self._brought[place] for place in range(self._n)])
            self._brought = {}
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()
        return self._given[self._own.place]

"""Every kernel in the library against its oracle, in the manner of dav1d's checkasm; and the engine that runs them.

The chain: numpy op -> scalar kernel -> every other kernel of the op. The first step allows what rounding explains
(kernel_cases.py says how much), the second not one bit. Kernels are found in the library: an ISA kernel that is added
is tested without a word here, an op that is added needs cases (kernel_cases.py).
"""

import faulthandler
import inspect
import subprocess
import sys
import threading
import time
from functools import lru_cache
from typing import Any

import kernel_cases
import numpy as np
import pytest
from kernel_cases import Case, Rows, Session

from lutra import native
from lutra.runtime import ops
from lutra.runtime.cache import SPLIT_ROWS, Cache, position_bytes
from lutra.runtime.errors import CancelledError, LutraError, UnsupportedModelError
from lutra.runtime.formats import Packed

KERNELS = native.kernels()
OPS = sorted({name.rpartition("_")[0] for name in KERNELS})
MEASURES = ("stream", "peak")  # ops of the benchmarks: not on rows


@pytest.fixture(autouse=True)
def watchdog():
    """A deadlock ends the test run with the stack of every thread."""
    faulthandler.dump_traceback_later(180, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def seed(request):
    return request.config.getoption("--seed")


@pytest.fixture(scope="session")
def quick(request):
    return request.config.getoption("--quick")


@lru_cache(None)
def engine(threads: int, level: str = "") -> native.Engine:
    return native.Engine(threads, native.feature_mask(level) if level else None)


# One op on guarded memory


class Guarded:
    """An array in memory of its own: guard bytes before its rows, between them and, for an output, behind them.

    An input has none behind it, so the address sanitizer sees a read beyond its end. An output holds noise: what a
    buffer held before must not matter.
    """

    LEAD = 64

    def __init__(self, array: np.ndarray, gap: int, noise: np.random.Generator | None = None):
        rows, cols = array.shape
        self.stride = (cols + gap) * array.itemsize
        end = self.LEAD + rows * self.stride - (gap * array.itemsize if rows else 0)
        self.bytes = np.full(end, 0xFF, np.uint8) if noise is None else noise.integers(0, 256, end + 64, dtype=np.uint8)
        self.array = self.inside(self.bytes, array)
        if noise is None:
            self.array[...] = array
        self.before = self.bytes.copy()
        self.arg = native.Arg(native.ABSOLUTE, self.bytes.ctypes.data + self.LEAD, cols, self.stride)

    def inside(self, memory: np.ndarray, like: np.ndarray) -> np.ndarray:
        return np.ndarray(like.shape, like.dtype, memory, self.LEAD, (self.stride, like.itemsize))

    def untouched(self) -> bool:
        return np.array_equal(self.bytes, self.before)

    def guards_untouched(self) -> bool:
        now = self.bytes.copy()
        self.inside(now, self.array)[...] = self.inside(self.before, self.array)
        return np.array_equal(now, self.before)


class Call:
    """A case laid out in memory as the plan of one op."""

    def __init__(self, case: Case, op: str, like: list[np.ndarray], behind_tail: bool = False):
        s, tail = case.session, case.op is ops.tail
        self.case, self.writes_cache = case, case.op is ops.kv_append
        made = [] if self.writes_cache else like[:-1] if case.recurrent else like
        self.outs = [Guarded(x, 3, np.random.default_rng(1)) for x in made]
        self.ins = [guarded for arg in case.args for guarded in place(arg)]
        self.n_tokens = case.rows + (4 if behind_tail else 0)
        self.n_outputs = s.n_outputs if tail else case.rows
        self.n_ctx = s.pos + self.n_tokens + 2
        self.cache = self.make_cache(s)
        if case.recurrent:
            self.make_memory(s, len(like[-1]))
        args = [x.arg for x in (*self.outs, *self.ins)]
        attributes = [p.name for p in inspect.signature(case.op).parameters.values() if p.kind is p.KEYWORD_ONLY]
        values = [case.attrs[name] for name in attributes]
        ints, floats = ([v for v in values if isinstance(v, float) == wanted] for wanted in (False, True))
        self.op = native.Op(op, args, ints, floats, tail or behind_tail, False)

    def make_cache(self, s: Session) -> Cache | None:
        """What the op may read, and NaN wherever it has no business."""
        if s.keys is None:
            return None
        n_known, kv_heads, head_dim = s.keys.shape
        heads, at = self.case.attrs.get("heads", kv_heads), self.case.attrs["at"]
        some = (kernel_cases.LAYERS[:n] for n in range(len(kernel_cases.LAYERS) + 1))
        before = next(shapes for shapes in some if position_bytes(s.kv_type, shapes) == at)
        cache = Cache(s.kv_type, [*before, (kv_heads, head_dim), (1, 18)], heads, self.n_ctx)
        self.own = np.s_[at : at + position_bytes(s.kv_type, [(kv_heads, head_dim)])]
        cache.memory.fill(0xFF)
        self.counts = cache.work[: SPLIT_ROWS * heads]
        cache.work[len(self.counts) :] = np.nan
        known = cache.read(n_known)
        known[:, self.own] = np.stack([cache.type.encode(x) for x in (s.keys, s.values)], 1).reshape(n_known, -1)
        cache.write(known)
        self.cache_before = cache.read(self.n_ctx)
        return cache

    def make_memory(self, s: Session, size: int) -> None:
        """Before: what the op may read, among NaN. After: noise."""
        self.part = np.s_[self.case.attrs["at"] : self.case.attrs["at"] + size]
        self.before = np.full(self.part.stop + 5, np.nan, np.float32)
        self.after = np.random.default_rng(1).standard_normal(len(self.before)).astype(np.float32)
        if s.memory is not None:
            self.before[self.part] = s.memory
        self.memory_before = self.before.copy(), self.after.copy()

    def run(self, engine: native.Engine, kernel: str | None = None) -> list[np.ndarray]:
        plan = native.Plan(engine, [self.op], [])
        assert kernel in (None, plan.kernels[0]), f"{kernel} is not what its own CPU level binds"
        step = new_step(plan, self.n_tokens, self.n_outputs, self.case.session.pos, self.n_ctx)
        if self.cache is not None:
            step.space[native.KV] = native.ffi.cast("void *", self.cache.memory.ctypes.data)
            step.space[native.WORK] = native.ffi.cast("void *", self.cache.work.ctypes.data)
        if self.case.recurrent:
            step.space[native.BEFORE] = native.ffi.cast("void *", self.before.ctypes.data)
            step.space[native.AFTER] = native.ffi.cast("void *", self.after.ctypes.data)
        plan.run(step)
        plan.close()
        return self.checked()

    def checked(self) -> list[np.ndarray]:
        for i, x in enumerate(self.ins):
            assert x.untouched(), f"input {i} was written to"
        for i, x in enumerate(self.outs):
            assert x.guards_untouched(), f"bytes around the rows of output {i} were written to"
        if self.case.recurrent:
            return [*(x.array.copy() for x in self.outs), self.checked_memory()]
        if self.cache is None:
            return [x.array.copy() for x in self.outs]
        cache, pos = self.cache.read(self.n_ctx), self.case.session.pos
        written = cache[: pos + self.case.rows, self.own].copy()
        if self.writes_cache:
            here = np.s_[pos : pos + self.case.rows, self.own]
            cache[here] = self.cache_before[here]
        assert cache.tobytes() == self.cache_before.tobytes(), "the cache was written to elsewhere"
        assert not self.counts.any(), "the next step would begin with spans that count as done"
        if not self.writes_cache:
            return [x.array.copy() for x in self.outs]
        rows = written.reshape(len(written), 2, self.case.attrs["kv_heads"], -1).swapaxes(0, 1)
        return list(self.cache.type.decode(rows, self.case.attrs["head_dim"]))

    def checked_memory(self) -> np.ndarray:
        found, (before, after) = self.after[self.part].copy(), self.memory_before
        after[self.part] = found
        assert self.before.tobytes() == before.tobytes(), "what was remembered before was written to"
        assert self.after.tobytes() == after.tobytes(), "the memory was written to elsewhere"
        return found


def place(arg: Any) -> list[Guarded]:
    """An argument in the memory it is passed in: activations row by row, weights as their format lays them out."""
    if isinstance(arg, Session):
        return []
    if isinstance(arg, Rows):
        return [Guarded(arg.array, 5)]
    return [Guarded(np.atleast_2d(x), 0) for x in (arg.parts.values() if isinstance(arg, Packed) else [arg])]


def new_step(plan: native.Plan, n_tokens: int = 1, n_outputs: int = 1, pos: int = 0, n_ctx: int = 1 << 20) -> Any:
    step = plan.step()
    step.n_tokens, step.n_outputs, step.pos, step.n_ctx = n_tokens, n_outputs, pos, n_ctx
    return step


# Oracles


@lru_cache(None)
def cases(op: str, seed: int, quick: bool) -> list[tuple[Case, list[np.ndarray]]]:
    """The op's cases, each with what numpy makes of it."""
    if op not in kernel_cases.REGISTRY:
        pytest.fail(f'{op} has no cases: add a function with @register("{op}") to tests/kernel_cases.py')
    made = list(kernel_cases.cases(op, seed))
    made = made[:: 4 if len(made) > 12 else 1] if quick else made
    return [(case, kernel_cases.numpy_outputs(case)) for case in made]


def typed(outputs: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays as a kernel writes them: what numpy computed in float64 is float32."""
    with np.errstate(over="ignore"):
        return [x.astype(np.float32) if x.dtype == np.float64 else x for x in outputs]


@lru_cache(None)
def scalar(op: str, index: int, seed: int, quick: bool) -> list[np.ndarray]:
    """What the scalar kernel, with one thread, makes of a case."""
    case, expected = cases(op, seed, quick)[index]
    return Call(case, op, typed(expected)).run(engine(1, "scalar"))


def same(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Where the bits are the same. NaN is NaN."""
    bits = f"u{got.itemsize}"
    equal = np.ascontiguousarray(got).view(bits) == np.ascontiguousarray(expected).view(bits)
    return equal | (np.isnan(got) & np.isnan(expected)) if got.dtype.kind == "f" else equal


def check(got: list[np.ndarray], expected: list[np.ndarray], bound: Any, label: str) -> None:
    """Fails at the first difference above the bound; without one, at the first different bit."""
    assert len(got) == len(expected), label
    bounds = bound if isinstance(bound, tuple) else (bound,) * len(got)
    for i, (a, b, bound) in enumerate(zip(got, expected, bounds, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) or bound is not None, label
        if bound is None:
            good = same(a, b)
        else:
            with np.errstate(all="ignore"):
                good = (np.abs(a.astype(np.float64) - b) <= bound) | (a == b) | (np.isnan(a) & np.isnan(b))
        if not good.all():
            at = tuple(int(x) for x in np.argwhere(~good)[0])
            allowed = "exactly" if bound is None else f"to within {np.broadcast_to(bound, a.shape)[at]:.3g}"
            wrong = f"{np.count_nonzero(~good)} of {good.size} elements of output {i}"
            pytest.fail(f"{label}: {wrong}, first {at}: {a[at]!r} where {b[at]!r} is due {allowed}")


# Kernels


def recurrent(kernel: str) -> bool:
    """Whether the kernel's op has a place in the session's memory."""
    return "at" in inspect.signature(getattr(ops, kernel.rpartition("_")[0], same)).parameters


def test_every_op_has_a_scalar_kernel():
    assert [op for op in OPS if f"{op}_scalar" not in KERNELS] == []


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_cases(op):
    assert cases(op, 0, True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel(kernel, seed, quick):
    """Against its oracle, with one thread and with three."""
    op, _, level = kernel.rpartition("_")
    if not KERNELS[kernel]:
        pytest.skip(f"this CPU cannot run {kernel}")
    for index, (case, expected) in enumerate(cases(op, seed, quick)):
        label = f"{kernel}, case {index} ({case.label}), --seed {seed}"
        got = Call(case, op, typed(expected)).run(engine(1, level), kernel)
        if level == "scalar":
            check(got, expected, case.bound, f"{label}, against numpy")
        else:
            check(got, scalar(op, index, seed, quick), None, f"{label}, against the scalar kernel")
        threads = Call(case, op, typed(expected)).run(engine(3, level))
        check(threads, got, None, f"{label}, 3 threads against 1")


@pytest.mark.parametrize("kernel", [name for name, runs in KERNELS.items() if runs])
def test_a_row_does_not_depend_on_its_batch(kernel, seed, quick):
    """A prompt's logits are the same bits however it is cut into steps."""
    op, _, level = kernel.rpartition("_")
    if op in ("tail", "line_up", "spread", "owners", *MEASURES) or op.startswith("kv_append"):
        pytest.skip("not an op of which each row gives its own results")
    if cases(op, seed, quick)[0][0].recurrent:
        pytest.skip("an op of which each row gives what those before it decide")
    for index, (case, expected) in enumerate(cases(op, seed, quick)):
        together = Call(case, op, typed(expected)).run(engine(1, level))
        for r in {0, case.rows // 2, case.rows - 1}:
            alone = Call(case.row(r), op, [x[:1] for x in typed(expected)]).run(engine(1, level))
            label = f"{kernel}, case {index} ({case.label}), row {r}, --seed {seed}"
            check(alone, [x[r : r + 1] for x in together], None, label)


@pytest.mark.parametrize("kernel", [name for name, runs in KERNELS.items() if runs and recurrent(name)])
def test_a_memory_does_not_depend_on_steps(kernel, seed, quick):
    """However rows are cut into steps, each gives the same bits, and so does what is remembered in the end."""
    op, _, level = kernel.rpartition("_")
    for index, (case, expected) in enumerate(cases(op, seed, quick)):
        together = Call(case, op, typed(expected)).run(engine(1, level))
        for at in {1, 2, case.rows // 2} & set(range(1, case.rows)):
            parts, memory = [], None
            for begin, end in ((0, at), (at, case.rows)):
                like = [x[begin:end] for x in typed(expected)[:-1]]
                *ys, memory = Call(case.cut(begin, end, memory), op, [*like, together[-1]]).run(engine(3, level))
                parts.append(ys[0])
            label = f"{kernel}, case {index} ({case.label}), cut at {at}, --seed {seed}"
            check([np.concatenate(parts), memory], together, None, label)


@pytest.mark.parametrize("kernel", [name for name, runs in KERNELS.items() if runs])
def test_rows_of_outputs(kernel, seed):
    """An op behind tail() works on the step's n_outputs rows, of which there may be none."""
    op, _, level = kernel.rpartition("_")
    case, expected = cases(op, seed, True)[0]
    if any(isinstance(a, Session) for a in case.args) or op in MEASURES:
        pytest.skip("not an op behind tail()")
    got = Call(case, op, typed(expected), behind_tail=True).run(engine(3, level))
    check(got, scalar(op, 0, seed, True), None, kernel)
    none = Call(case, op, typed(expected), behind_tail=True)
    none.n_outputs = 0
    none.run(engine(3, level))
    assert all(x.untouched() for x in none.outs)


# Binding


def absolute(x: np.ndarray) -> native.Arg:
    """A whole array; one row stands for all."""
    return native.Arg(native.ABSOLUTE, x.ctypes.data, x.shape[-1], x.strides[0] if x.ndim > 1 else 0)


def empty(op: str) -> native.Op:
    return native.Op(op, [], [], [], False, False)


def test_a_level_binds_its_own_kernels_and_never_one_that_cannot_run(monkeypatch):
    monkeypatch.delenv("LUTRA_CPU", raising=False)
    for kernel, runs in native.kernels().items():
        op, _, level = kernel.rpartition("_")
        assert native.Plan(engine(1, "scalar"), [empty(op)], []).kernels == [f"{op}_scalar"]
        assert (native.Plan(engine(1, level), [empty(op)], []).kernels == [kernel]) == runs


def test_the_environment_lowers_the_level(monkeypatch):
    monkeypatch.setenv("LUTRA_CPU", "scalar")
    assert native.cpu_features() == []
    assert {name for name, runs in native.kernels().items() if runs} == {f"{op}_scalar" for op in OPS}
    small = native.Engine(1)
    assert native.Plan(small, [empty("add")], []).kernels == ["add_scalar"]
    monkeypatch.setenv("LUTRA_CPU", "z80")
    with pytest.raises(LutraError, match="z80"):
        native.cpu_features()


def test_an_op_without_kernel_is_named():
    with pytest.raises(UnsupportedModelError, match="no kernel for frobnicate"):
        native.Plan(engine(1), [empty("add"), empty("frobnicate")], [])


@pytest.mark.parametrize("threads", [-1, 1025])
def test_senseless_numbers_of_threads(threads):
    with pytest.raises(LutraError, match=str(threads)):
        native.Engine(threads)


def test_plans_that_make_no_sense():
    with pytest.raises(ValueError, match="a plan needs ops"):
        native.Plan(engine(1), [], [])
    with pytest.raises(ValueError, match="the first of them joined to none"):
        native.Plan(engine(1), [native.Op("add", [], [], [], False, True)], [])
    arg = native.Arg(native.ABSOLUTE, 0, 0, 0)
    for op in (("add", [arg] * 9, [], []), ("add", [], [0] * 7, []), ("add", [], [], [0.0] * 3)):
        with pytest.raises(ValueError, match="add has more"):
            native.Plan(engine(1), [native.Op(*op, False, False)], [])


@pytest.mark.parametrize(
    ("n_tokens", "n_outputs", "pos", "n_ctx"),
    [
        (0, 0, 0, 9),
        (-1, 0, 0, 9),
        (2, 3, 0, 9),
        (1, -1, 0, 9),
        (1, 1, -1, 9),
        (2, 1, 8, 9),
        (10, 1, 0, 9),
        (1, 1, 9, 9),
        (2**31 - 1, 1, 2**31 - 1, 2**31 - 1),
        (1, 1, 0, 0),
        (1, 1, 0, -(2**31)),
    ],
)
def test_steps_out_of_bounds(n_tokens, n_outputs, pos, n_ctx):
    ring = Ring(engine(2), 1)
    with pytest.raises(ValueError, match="bounds"):
        ring.plan.run(new_step(ring.plan, n_tokens, n_outputs, pos, n_ctx))
    assert ring.turned() == 0


# The engine


class Ring:
    """A plan whose every stage turns a vector by one place: each element needs what another thread wrote before."""

    SIZE = 160

    def __init__(self, engine: native.Engine, stages: int):
        assert stages == 1 or stages % 2 == 0
        self.stages = stages
        self.x = np.zeros((2, self.SIZE), np.float32)
        self.x[0] = np.arange(self.SIZE)
        self.weight = np.roll(np.eye(self.SIZE, dtype=np.float32), 1, axis=0)
        self.plan = native.Plan(engine, [self.turn(i) for i in range(stages)], [])
        self.step = new_step(self.plan)

    def turn(self, stage: int) -> native.Op:
        args = [absolute(self.x[(stage + 1) % 2]), absolute(self.x[stage % 2]), absolute(self.weight)]
        return native.Op("linear_f32", args, [], [], False, False)

    def run(self, times: int = 1) -> None:
        for _ in range(times):
            self.plan.run(self.step)

    def turned(self) -> int:
        """By how many places, of SIZE."""
        start = int(np.argmin(self.x[0]))
        assert np.array_equal(self.x[0], np.roll(np.arange(self.SIZE), start))
        return start


THREADS = {1: 2000, 2: 2000, 3: 1000, 8: 300, 33: 60}  # and how often to run: more threads than cores are slow


@pytest.mark.parametrize("threads", THREADS)
def test_many_runs(threads, quick):
    times = THREADS[threads] // (10 if quick else 1)
    own = native.Engine(threads)
    ring = Ring(own, 4)
    ring.run(times)
    assert ring.turned() == 4 * times % Ring.SIZE
    time.sleep(0.02)  # the workers go to sleep, and are woken
    ring.run()
    assert ring.turned() == 4 * (times + 1) % Ring.SIZE
    own.close()


def in_threads(count: int, work: Any) -> None:
    """work(i) in as many Python threads, their first error raised here."""
    errors: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_callers_take_turns(threads, quick):
    times, own = (20 if quick else 200), native.Engine(threads)
    rings = [Ring(own, 2) for _ in range(4)]
    in_threads(4, lambda i: rings[i].run(times))
    assert [ring.turned() for ring in rings] == [2 * times % Ring.SIZE] * 4
    in_threads(4, lambda i: rings[0].run(times))  # of one plan too
    assert rings[0].turned() == 2 * times * 5 % Ring.SIZE
    own.close()


def test_engines_come_and_go(quick):
    before = thread_count()
    for i in range(30 if quick else 300):
        own = native.Engine([1, 2, 3, 8, 33][i % 5])
        if i % 3:
            Ring(own, 2).run(i % 3)
        if i % 40 == 0:
            time.sleep(0.02)  # closed while its workers sleep
        own.close()
    deadline = time.monotonic() + 10  # a thread that was waited for may be counted for a moment more
    while thread_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert thread_count() <= before


def test_closing_engines_at_once(quick):
    """A worker that begins as its engine ends has slept for good: once in some thousand times."""
    for _ in range(100 if quick else 20_000):
        native.Engine(2).close()


def thread_count() -> int:
    """Of this process, native ones included; 0 where that is not known."""
    try:
        with open("/proc/self/status") as f:
            return int(next(line for line in f if line.startswith("Threads:")).split()[1])
    except OSError:
        return 0


def test_python_may_end_with_an_engine_open():
    """Even when that is the last object of all to go."""
    code = "import sys; from lutra import native; sys.kept = native, native.Engine(3)"
    try:
        subprocess.run([sys.executable, "-c", code], check=True)
    except OSError:
        pytest.skip("an emulated process cannot start another here")


# Cancelling


@pytest.mark.parametrize("threads", [1, 3])
def test_cancelled_before_it_runs(threads):
    ring, flag = Ring(engine(threads), 2), np.ones(1, np.int32)
    ring.step.cancel = native.ffi.cast("int32_t *", flag.ctypes.data)
    for _ in range(20):
        with pytest.raises(CancelledError):
            ring.run()
    assert ring.turned() == 0
    flag[0] = 0
    ring.run()
    assert ring.turned() == 2


@pytest.mark.parametrize("threads", [1, 3])
def test_cancelled_between_stages(threads):
    """The middle one of three stages sets the flag itself: so the third never runs."""
    memory = np.array([[0], [1], [1]], np.float32)  # the flag, and what the others write
    one = np.ones(1, np.float32)
    args = [[absolute(y), absolute(y), absolute(one)] for y in (memory[1], memory[0], memory[2])]
    add = [native.Op("add", arg, [], [], False, False) for arg in args]
    plan = native.Plan(engine(threads), add, [])
    step = new_step(plan)
    step.cancel = native.ffi.cast("int32_t *", memory.ctypes.data)
    with pytest.raises(CancelledError):
        plan.run(step)
    assert memory[:, 0].tolist() == [1, 2, 1]


@pytest.mark.parametrize("threads", [1, 3])
def test_cancelled_from_another_thread(threads):
    ring, flag = Ring(engine(threads), 5000), np.zeros(1, np.int32)
    ring.step.n_tokens = 200  # times the same row: about a millisecond a stage
    ring.step.cancel = native.ffi.cast("int32_t *", flag.ctypes.data)
    spent = np.zeros(ring.stages, np.int64)
    ring.step.stage_ns = native.ffi.cast("int64_t *", spent.ctypes.data)
    timer = threading.Timer(0.03, lambda: flag.fill(1))
    timer.start()
    with pytest.raises(CancelledError):
        ring.run()
    timer.join()
    assert spent[0] > 0
    assert spent[-1] == 0


# Profiling


def test_stage_times_add_up():
    ring = Ring(engine(2), 1000)
    spent = np.zeros(ring.stages, np.int64)
    ring.step.stage_ns = native.ffi.cast("int64_t *", spent.ctypes.data)
    began = time.monotonic_ns()
    ring.run()
    wall = time.monotonic_ns() - began
    assert (spent > 0).all()
    assert spent.sum() <= wall
    first = spent.copy()
    ring.run()
    assert (spent > first).all()  # added to, not set


def test_joined_ops_are_one_stage():
    """Four additions to each of many rows, the middle two joined to the first: the same as one after another."""
    x, one = np.zeros((500, 7), np.float32), np.ones(7, np.float32)
    args = [absolute(x), absolute(x), absolute(one)]
    plan = native.Plan(engine(3), [native.Op("add_bias", args, [], [], False, i in (1, 2)) for i in range(4)], [])
    assert plan.stages == [[0, 1, 2], [3]]
    plan.run(new_step(plan, n_tokens=500))
    assert (x == 4).all()


# The k largest


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 32003])
def test_top_k(n, seed):
    rng = np.random.default_rng([seed, n])
    infinite = np.where(rng.random(n) < 0.3, -np.inf, rng.standard_normal(n))
    for x in (rng.standard_normal(n), np.round(rng.standard_normal(n)), np.zeros(n) * rng.choice([-1, 1], n),
              np.arange(n), -np.arange(n), infinite):  # fmt: skip
        x = x.astype(np.float32)
        best = np.argsort(-x, kind="stable")  # ties by lower index
        for k in {1, min(n, 2), min(n, 40), n // 2 or 1, n - 1 or 1, n}:
            assert np.array_equal(native.top_k(x, k), best[:k]), f"{k} of {n}, --seed {seed}"


@pytest.mark.parametrize("k", [0, -1, 4])
def test_top_k_out_of_bounds(k):
    with pytest.raises(ValueError, match="largest of 3"):
        native.top_k(np.zeros(3, np.float32), k)

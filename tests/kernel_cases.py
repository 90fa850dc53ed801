"""Inputs for every kernel, biased to the edges, and how far its results may lie from the numpy op's.

An op's cases are made by the function registered under its name below; ``cases`` finds it. A new op needs one more;
a new format, cache type or ISA none.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import numpy as np

from lutra.runtime import formats, ops
from lutra.runtime.cache import KV_TYPES, position_bytes
from lutra.runtime.formats import Codebook, Coded, Nested, Packed, Planes, Scaled
from lutra.tools.quantizers import rtn, ternary

Rng = np.random.Generator
f32 = np.float32
EPS = 2.0**-24  # half a unit in the last place of a float32: the error of one rounding
TINY = 2.0**-149  # the smallest float32: the error of one rounding near 0
LANES = 16  # partial sums that a kernel keeps; adding them up takes log2(16) = 4 more roundings


@dataclass(frozen=True)
class Rows:
    """An argument that has a row per token."""

    array: np.ndarray


@dataclass(frozen=True)
class Session:
    """The argument that stands for the session: what one step sees of it.

    keys, values: [positions, kv_heads, head_dim], what the cache holds of one layer when the op begins.
    memory: float32 [floats], what a recurrent op remembers then, in its kernels' order.
    """

    kv_type: str = "f32"
    pos: int = 0
    n_outputs: int = 1
    keys: np.ndarray | None = None
    values: np.ndarray | None = None
    memory: np.ndarray | None = None

    def at_row(self, r: int) -> Session:
        """The session when the step's row r comes alone, after those before it."""
        pos = self.pos + r
        keys, values = (None if x is None else x[: pos + 1] for x in (self.keys, self.values))
        return replace(self, pos=pos, keys=keys, values=values)


@dataclass(frozen=True)
class Case:
    """One call of an op.

    bound: how far each element may be from numpy's, or that of each output; None: equal. wide: numpy computes in
    float64 then.
    """

    label: str
    op: Callable[..., Any]
    args: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    bound: np.ndarray | tuple[np.ndarray, ...] | None = None
    wide: bool = True

    @property
    def session(self) -> Session:
        return next((a for a in self.args if isinstance(a, Session)), Session())

    @property
    def rows(self) -> int:
        return next((len(a.array) for a in self.args if isinstance(a, Rows)), 1)

    @property
    def recurrent(self) -> bool:
        """Whether the op remembers what it was given; its last output is then what it remembers."""
        return "at" in self.attrs and "kv_heads" not in self.attrs

    def row(self, r: int) -> Case:
        """The same call with one of its rows alone."""
        args = [Rows(a.array[r : r + 1]) if isinstance(a, Rows) else a for a in self.args]
        args = [a.at_row(r) if isinstance(a, Session) else a for a in args]
        return replace(self, label=f"{self.label}, row {r} alone", args=tuple(args))

    def cut(self, begin: int, end: int, memory: np.ndarray | None) -> Case:
        """The same call of a recurrent op with some of its rows, when it remembers what came before."""
        args = [Rows(a.array[begin:end]) if isinstance(a, Rows) else a for a in self.args]
        memory = self.session.memory if begin == 0 else memory
        args = [replace(a, pos=a.pos + begin, memory=memory) if isinstance(a, Session) else a for a in args]
        return replace(self, label=f"{self.label}, rows {begin}..{end}", args=tuple(args))


REGISTRY: dict[str, Callable[[Rng], Iterator[Case]]] = {}


def register(name: str, suffixes: Any = None) -> Callable[[Any], Any]:
    """The decorated function makes the cases of op ``name``, or of name_suffix, given the suffix."""

    def wrap(function: Any) -> Any:
        if suffixes is None:
            REGISTRY[name] = function
        for suffix in suffixes or ():
            REGISTRY[f"{name}_{suffix}"] = lambda rng, suffix=suffix: function(rng, suffix)
        return function

    return wrap


def cases(op: str, seed: int) -> Iterator[Case]:
    """The op's cases: the same for the same seed, whatever else is run."""
    return REGISTRY[op](np.random.default_rng([seed, zlib.crc32(op.encode())]))


# Data


def mixed(rng: Rng, *shape: int, most: float = 1e12) -> np.ndarray:
    """Floats of all magnitudes up to ``most``, with zeros of both signs and denormals among them."""
    x = rng.standard_normal(shape) * np.exp(rng.uniform(-30, np.log(most) - 2, shape))
    special = np.array([0.0, -0.0, TINY, -TINY, 1e-40, -1e-40, 2.0**-126, 1, -1, 0.5, most, -most])
    return np.where(rng.random(shape) < 0.3, rng.choice(special, shape), x.clip(-most, most)).astype(f32)


def normal(rng: Rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(f32)


KINDS: dict[str, Callable[..., np.ndarray]] = {
    "normal": normal,
    "mixed": mixed,
    "zeros": lambda rng, *shape: np.where(rng.random(shape) < 0.5, f32(0), f32(-0.0)),
    "denormal": lambda rng, *shape: (rng.integers(-1000, 1000, shape) * TINY).astype(f32),
    "huge": lambda rng, *shape: (rng.choice([-1e12, 1e12], shape) * rng.uniform(0.5, 1, shape)).astype(f32),
}

TOKENS = [*range(1, 14), 97]
COLS = [1, 2, 15, 16, 17, 31, 32, 33, 48, 100, 320, 321, 2560, 6912]


def grids(rng: Rng) -> Iterator[tuple[str, int, int]]:
    """Kinds of data and sizes of an activation: every kind, every number of rows and of columns."""
    kinds = list(KINDS)
    for i, (tokens, cols) in enumerate(zip(TOKENS, rng.permutation(COLS).tolist(), strict=True)):
        yield kinds[i % len(kinds)], tokens, cols
    for kind in kinds:
        yield kind, int(rng.integers(1, 6)), int(rng.integers(1, 400))


# Row by row


@register("add")
def add(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        a, b = KINDS[kind](rng, n, cols), KINDS[kind](rng, n, cols)
        yield Case(f"{kind} {n} x {cols}", ops.add, (Rows(a), Rows(b)))


@register("scale")
def scale(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        yield Case(f"{kind} {n} x {cols}", ops.scale, (Rows(KINDS[kind](rng, n, cols)),), {"factor": 0.3})


@register("scale_columns")
def scale_columns(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        x, scale = KINDS[kind](rng, n, cols), KINDS[kind](rng, cols)
        yield Case(f"{kind} {n} x {cols}", ops.scale_columns, (Rows(x), scale))


@register("scale_rows")
def scale_rows(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        x, scale = KINDS[kind](rng, n, cols), KINDS[kind](rng, n, 1)
        yield Case(f"{kind} {n} x {cols}", ops.scale_rows, (Rows(x), Rows(scale)))


@register("hadamard")
def hadamard(rng: Rng) -> Iterator[Case]:
    for kind, n, block in [("normal", 1, 2), ("mixed", 5, 16), ("normal", 3, 32), ("huge", 2, 128), ("mixed", 4, 1024)]:
        x = KINDS[kind](rng, n, block * int(rng.integers(1, 4)))
        # A rounding in every one of log2(block) sums of sums, and those of the scale.
        sizes = np.abs(x.astype(float)).reshape(n, -1, block).sum(axis=2).repeat(block, axis=1) * block**-0.5
        bound = (np.log2(block) + 3) * EPS * sizes + TINY
        yield Case(f"{kind} {x.shape} in {block}", ops.hadamard, (Rows(x),), {"block": block}, bound)


@register("take_columns")
def take_columns(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        x, order = KINDS[kind](rng, n, cols), rng.permutation(cols).astype(np.int32)
        yield Case(f"{kind} {n} x {cols}", ops.take_columns, (Rows(x), order))
        some = rng.integers(-1, cols, cols // 2 + 3).astype(np.int32)  # more than once, or not at all
        yield Case(f"some of {kind} {n} x {cols}", ops.take_columns, (Rows(x), some))


@register("concat")
def concat(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        parts = [Rows(KINDS[kind](rng, n, width)) for width in (cols, 1, 2 * cols)]
        yield Case(f"{kind} {n} x {cols}", ops.concat, tuple(parts))


@register("mul")
def mul(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        a, b = KINDS[kind](rng, n, cols), KINDS[kind](rng, n, cols)
        yield Case(f"{kind} {n} x {cols}", ops.mul, (Rows(a), Rows(b)))


@register("sigmoid")
def sigmoid(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        x = KINDS[kind](rng, n, cols)
        bound = 6 * EPS * reference(ops.sigmoid, x) + 6.1e-39  # which is 1 / e^88, where e^-x ends
        yield Case(f"{kind} {n} x {cols}", ops.sigmoid, (Rows(x),), bound=bound)


@register("decay")
def decay(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        x, rate = KINDS[kind](rng, n, cols), np.exp(3 * normal(rng, cols))
        y = np.exp(-rate.astype(float) * np.logaddexp(0, x.astype(float)))
        # The libraries' doubles may be rounded to either of two neighbours.
        yield Case(f"{kind} {n} x {cols}", ops.decay, (Rows(x), rate), bound=2 * EPS * y + TINY)


@register("add_bias")
def add_bias(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        x, bias = KINDS[kind](rng, n, cols), KINDS[kind](rng, cols)
        yield Case(f"{kind} {n} x {cols}", ops.add_bias, (Rows(x), bias))


@register("rms_norm")
def rms_norm(rng: Rng) -> Iterator[Case]:
    kinds = {**KINDS, "overflow": lambda rng, *shape: np.full(shape, 1e25, f32)}
    for i, (kind, n, cols) in enumerate([*grids(rng), ("overflow", 2, 40)]):
        heads = i % 3 + 1  # of which each has its norm
        x, weight, eps = kinds[kind](rng, n, heads * cols), normal(rng, cols), float(rng.choice([1e-5, 1e-6]))
        # A sum of squares loses a rounding per term of a lane, half of that in its root; then a few more. numpy's
        # mean, which the op takes in float32, is pairwise over runs of 16.
        bound = (cols / LANES / 2 + 24) * EPS * np.abs(reference(ops.rms_norm, x, weight, eps=eps)) + 2 * TINY
        yield Case(f"{kind} {n} x {heads} x {cols}", ops.rms_norm, (Rows(x), weight), {"eps": eps}, bound)


@register("layer_norm")
def layer_norm(rng: Rng) -> Iterator[Case]:
    for i, (kind, n, cols) in enumerate(grids(rng)):
        heads = i % 3 + 1  # of which each has its norm
        x, weight, eps = KINDS[kind](rng, n, heads * cols), normal(rng, 2 * cols), 1e-5
        y, wide = (z.reshape(-1, cols) for z in (reference(ops.layer_norm, x, weight, eps=eps), x.astype(float)))
        # The mean loses a rounding per term of a lane; a deviation that and its own; the variance twice a deviation's,
        # and as many as the mean; y has a part of the deviation's, and of the variance's half.
        terms, variance = (cols / LANES + 8) * EPS, wide.var(axis=1, keepdims=True)
        lost = terms * np.abs(wide).mean(axis=1, keepdims=True) + 2 * EPS * np.abs(wide).max(axis=1, keepdims=True)
        spread = 2 * np.sqrt(variance) * lost + lost**2 + terms * variance
        scale = 1 / np.sqrt(variance + eps)
        scaled = np.abs(y - weight[cols:])
        relative = 8 * EPS + spread / (variance + eps)
        bound = lost * scale * np.abs(weight[:cols]) + relative * scaled + 2 * EPS * np.abs(y) + 2 * TINY
        args = (Rows(x), weight)
        yield Case(f"{kind} {n} x {heads} x {cols}", ops.layer_norm, args, {"eps": eps}, bound.reshape(x.shape))


@register("relu")
def relu(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        yield Case(f"{kind} {n} x {cols}", ops.relu, (Rows(KINDS[kind](rng, n, cols)),), bound=np.zeros((n, cols)))


@register("positions")
def positions(rng: Rng) -> Iterator[Case]:
    for n, pos in [(1, 0), (5, 7), (97, 4000)]:
        args = (Rows(np.zeros((n, 1), np.int32)), Session(pos=pos))
        yield Case(f"{n} rows from {pos}", ops.positions, args, {"offset": 2})


@register("silu_mul")
def silu_mul(rng: Rng) -> Iterator[Case]:
    edges = np.array([0, -0.0, 86.9, 87.1, 88.1, 100, -86.9, -87.1, -88.1, -100, 1e30, -1e30, 1e-45], f32)
    edges = np.tile(edges, (3, 1))
    for kind, n, cols in [*grids(rng), ("edges", *edges.shape)]:
        gate = edges if kind == "edges" else KINDS[kind](rng, n, cols)
        up = normal(rng, n, cols)
        y, product = reference(ops.silu_mul, gate, up), np.abs(gate.astype(float) * up)
        # e^x to 2 units, one rounding each for 1 +, / and *; e^-x ends at e^88, so y does at gate * up * e^-88.
        bound = 8 * EPS * np.abs(y) + 6.1e-39 * product + (1 + np.abs(up)) * TINY
        yield Case(f"{kind} {n} x {cols}", ops.silu_mul, (Rows(gate), Rows(up)), bound=bound)


@register("clamped_swiglu")
def clamped_swiglu(rng: Rng) -> Iterator[Case]:
    attrs = {"alpha": 1.702, "limit": 7.0}
    for kind, n, cols in grids(rng):
        gate, up = KINDS[kind](rng, n, cols), KINDS[kind](rng, n, cols)
        y = reference(ops.clamped_swiglu, gate, up, **attrs)
        g, u = np.minimum(gate.astype(float), 7), np.clip(up.astype(float), -7, 7)
        # As silu_mul, of an exponent with two roundings, which are its own size times as much in e^x.
        exponent = np.abs(1.702 * g).clip(0, 90)
        bound = (10 + 2 * exponent) * EPS * np.abs(y) + 6.1e-39 * np.abs(g * (u + 1)) + 9 * TINY
        yield Case(f"{kind} {n} x {cols}", ops.clamped_swiglu, (Rows(gate), Rows(up)), attrs, bound)


@register("relu2_mul")
def relu2_mul(rng: Rng) -> Iterator[Case]:
    for kind, n, cols in grids(rng):
        gate, up = KINDS[kind](rng, n, cols), KINDS[kind](rng, n, cols)
        bound = 3 * EPS * np.abs(reference(ops.relu2_mul, gate, up)) + (1 + np.abs(up.astype(float))) * TINY
        yield Case(f"{kind} {n} x {cols}", ops.relu2_mul, (Rows(gate), Rows(up)), bound=bound)


@register("gelu_erf")
def gelu_erf(rng: Rng) -> Iterator[Case]:
    for label, x, _ in gelu_inputs(rng):
        # As gelu_tanh: the exponent is off by 2 roundings; above 0, where it is a difference, the tail is below a half.
        exponent = np.minimum(x.astype(float) ** 2 / 2, 89)
        bound = (14 + 3 * exponent) * EPS * np.abs(reference(ops.gelu_erf, x)) + 1.2e-38 * np.abs(x) + 2 * TINY
        yield Case(label, ops.gelu_erf, (Rows(x),), bound=bound)


@register("gelu_tanh")
def gelu_tanh(rng: Rng) -> Iterator[Case]:
    for label, x, _ in gelu_inputs(rng):
        yield Case(label, ops.gelu_tanh, (Rows(x),), bound=gelu_bound(x, reference(ops.gelu_tanh, x), 1))


@register("gelu_tanh_mul")
def gelu_tanh_mul(rng: Rng) -> Iterator[Case]:
    for label, gate, up in gelu_inputs(rng):
        bound = gelu_bound(gate, reference(ops.gelu_tanh_mul, gate, up), np.abs(up))
        yield Case(label, ops.gelu_tanh_mul, (Rows(gate), Rows(up)), bound=bound)


def gelu_inputs(rng: Rng) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    edges = np.array([0, -0.0, 0.5, -0.5, 3, -3, 9.9, -9.9, 10.1, -10.1, 1e13, -1e13, 1e-45], f32)
    edges = np.tile(edges, (3, 1))
    for kind, n, cols in [*grids(rng), ("edges", *edges.shape)]:
        yield f"{kind} {n} x {cols}", edges if kind == "edges" else KINDS[kind](rng, n, cols), normal(rng, n, cols)


def gelu_bound(x: np.ndarray, y: np.ndarray, times: Any) -> np.ndarray:
    """As silu_mul, of an exponent that is off by 6 roundings: those are its own size times as much in e^x."""
    x = np.abs(x.astype(float))
    exponent = np.minimum(1.6 * (x + 0.0448 * x**3), 89)
    return (8 + 6 * exponent) * EPS * np.abs(y) + 6.1e-39 * x * times + (1 + times) * TINY


@register("soft_cap")
def soft_cap(rng: Rng) -> Iterator[Case]:
    near = np.tile(np.concatenate([s * np.geomspace(1e-6, 400, 333) for s in (1, -1)]).astype(f32), (2, 1))
    for i, (kind, n, cols) in enumerate([*grids(rng), ("near", *near.shape)]):
        x, cap = near if kind == "near" else KINDS[kind](rng, n, cols), (30.0, 50.0, 0.7)[i % 3]
        # A quotient, e^x - 1 to 4 units, a sum, a quotient, a product. Less than 2^-126 may become 0 on the way.
        bound = 12 * EPS * np.abs(reference(ops.soft_cap, x, cap=cap)) + 2 * cap * 2.0**-126
        yield Case(f"{kind} {n} x {cols} to {cap}", ops.soft_cap, (Rows(x),), {"cap": cap}, bound)


@register("quantize")
def quantize(rng: Rng) -> Iterator[Case]:
    for group, least in ((0, 1e-5), (128, 1e-30), (32, 1e-30)):
        attrs = {"group": group, "least": least}
        for kind, n, cols in grids(rng):
            yield Case(f"{kind} {n} x {cols} by {group}", ops.quantize, (Rows(KINDS[kind](rng, n, cols)),), attrs)
        halves = rng.integers(-127, 127, (9, 333)) + 0.5  # a scale of 1, and every value halfway between two codes
        halves[:, :: group or 333] = 127
        yield Case("ties", ops.quantize, (Rows(halves.astype(f32)),), attrs)
        yield Case("largest floats", ops.quantize, (Rows(rng.choice([3.4e38, -3.4e38], (4, 50)).astype(f32)),), attrs)
        yield Case("below 1e-5", ops.quantize, (Rows(rng.uniform(-1e-5, 1e-5, (4, 50)).astype(f32)),), attrs)


@register("rope_angles")
def rope_angles(rng: Rng) -> Iterator[Case]:
    for n, pairs, pos in [(1, 1, 0), (3, 4, 1), (7, 24, 63), (13, 50, 4095), (97, 64, 131071)]:
        frequency, ids = (10000.0 ** -(np.arange(pairs) / pairs)).astype(f32), np.zeros((n, 1), np.int32)
        for magnitude in (1.0, 1.19):
            bound = np.full((n, 2 * pairs), 4 * EPS * magnitude)  # two libraries' cosines, rounded, and a product
            args, attrs = (Rows(ids), frequency, Session(pos=pos)), {"magnitude": magnitude}
            # The angle itself is rounded to float32, by numpy too.
            yield Case(f"{n} rows from {pos}, {pairs} pairs", ops.rope_angles, args, attrs, bound, wide=False)


@register("rope")
def rope(rng: Rng) -> Iterator[Case]:
    for head_dim, pairs, heads in [(2, 1, 3), (8, 4, 1), (48, 24, 5), (100, 50, 3), (128, 64, 20), (100, 13, 2)]:
        for interleaved in (False, True):
            for kind in ("normal", "mixed"):
                n = int(rng.integers(1, 14))
                x = KINDS[kind](rng, n, heads * head_dim)
                angle = rng.uniform(0, 7, (n, pairs))
                angles = np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(f32)
                attrs = {"head_dim": head_dim, "interleaved": interleaved}
                # Two products and their sum, each rounded: |x c| + |x' s| bounds them, with one sign of s or the other.
                turns = [np.abs(angles) * np.repeat(np.array([1, sign], f32), pairs) for sign in (1, -1)]
                size = np.maximum(*(reference(ops.rope, np.abs(x), turn, **attrs) for turn in turns))
                args = (Rows(x), Rows(angles))
                yield Case(f"{kind} {n} x {heads} x {head_dim}", ops.rope, args, attrs, 3 * EPS * size + 2 * TINY)


@register("tail")
def tail(rng: Rng) -> Iterator[Case]:
    for n, n_outputs, cols in [(1, 1, 1), (5, 1, 33), (5, 5, 16), (97, 13, 320), (3, 0, 7)]:
        x = mixed(rng, n, cols)
        yield Case(f"{n_outputs} of {n} x {cols}", ops.tail, (Rows(x), Session(n_outputs=n_outputs)))


# Experts

CHOICES = [(1, 1, 1), (1, 8, 3), (5, 8, 8), (13, 60, 4), (97, 128, 8), (193, 1024, 10)]  # rows, experts, choices


# groups, those kept, and how many of the best count, by what divides the experts
GROUPS = {128: (8, 3, 2), 1024: (4, 1, 1)}


@register("route")
def route(rng: Rng) -> Iterator[Case]:
    for i, (n, experts, k) in enumerate(CHOICES):
        for kind in ("normal", "ties", "far", "sigmoid", "sigmoid ties", "biased", "biased sigmoid"):
            logits = {
                "ties": rng.integers(0, 3, (n, experts)).astype(f32),
                "far": 200 * normal(rng, n, experts),
            }.get(kind.rpartition(" ")[2], normal(rng, n, experts))
            sigmoid, groups = "sigmoid" in kind, GROUPS.get(experts) if "sigmoid" in kind else None
            attrs: dict[str, Any] = {"k": k, "normalize": i % 2 == 0, "sigmoid": sigmoid}
            attrs |= dict(zip(("groups", "kept", "leading"), groups or (1, 1, 1), strict=True))
            bias = [0.2 * normal(rng, experts)] if "biased" in kind else []
            if "ties" not in kind:
                logits = clear(rng, logits, *bias, **attrs)
            _, share = reference(ops.route, logits, *bias, **attrs)
            # e^x of a rounded difference, a sum over lanes, a quotient; e^x ends at e^-87.
            size = np.abs(logits) if sigmoid else np.ptp(logits, axis=1, keepdims=True)
            size = size.max(axis=1, keepdims=True).clip(0, 90)
            bound = (2 * size + experts / LANES + 12) * EPS * share + 1e-37
            yield Case(f"{kind} {k} of {experts}, {n} rows", ops.route, (Rows(logits), *bias), attrs, bound)


def clear(rng: Rng, logits: np.ndarray, *bias: np.ndarray, **attrs: Any) -> np.ndarray:
    """The rows whose choice does not hang on how a score is rounded; others become the first that is such, or zeros."""
    off = 1 + 1e-5 * rng.uniform(-1, 1, logits.shape)
    (expected, _), (found, _) = (ops.route(x, *bias, **attrs) for x in (logits.astype(np.float64), logits * off))
    same = (expected == found).all(axis=1)
    first = logits[same.argmax()] if same.any() else np.zeros_like(logits[0])
    return np.where(same[:, None], logits, first)


def choices(rng: Rng, n: int, experts: int, k: int) -> np.ndarray:
    return np.stack([rng.permutation(experts)[:k] for _ in range(n)]).astype(np.int32)


@register("line_up")
def line_up(rng: Rng) -> Iterator[Case]:
    for n, experts, k in CHOICES:
        chosen = choices(rng, n, experts, k)
        yield Case(f"{n} rows, {k} of {experts}", ops.line_up, (Rows(chosen),), {"experts": experts})


@register("spread")
def spread(rng: Rng) -> Iterator[Case]:
    for (n, experts, k), cols in zip(CHOICES, (1, 17, 64, 100, 320, 33), strict=True):
        place = ops.line_up(choices(rng, n, experts, k), experts=experts)
        yield Case(f"{n} x {cols} to {k} places", ops.spread, (Rows(mixed(rng, n, cols)), Rows(place)))


@register("owners")
def owners(rng: Rng) -> Iterator[Case]:
    for n, experts, k in CHOICES:
        chosen = choices(rng, n, experts, k)
        args = (Rows(chosen), Rows(ops.line_up(chosen, experts=experts)))
        yield Case(f"{n} rows, {k} of {experts}", ops.owners, args)


@register("gather")
def gather(rng: Rng) -> Iterator[Case]:
    for (n, experts, k), cols in zip(CHOICES, (1, 17, 64, 100, 320, 33), strict=True):
        place = ops.line_up(choices(rng, n, experts, k), experts=experts)
        x, share = mixed(rng, n * k, cols), rng.random((n, k)).astype(f32)
        args = (x, Rows(place), Rows(share))
        bound = (k + 1) * (EPS * reference(ops.gather, np.abs(x), *args[1:]) + TINY)
        yield Case(f"{k} places to {n} x {cols}", ops.gather, args, bound=bound)


# Matrices


def float_matrix(rng: Rng, format: str, rows: int, cols: int, kind: str) -> Packed:
    """A matrix in a format of float activations, with that format's extremes."""
    codec = formats.codec(format)
    if codec.KERNEL == "f8":
        values = rng.integers(0, 127, (rows, cols), np.uint8) | rng.integers(0, 2, (rows, cols), np.uint8) << 7
        if kind == "extremes":
            values[:] = rng.choice(np.array([0, 1, 126, 254], np.uint8), (rows, cols))
        scale = normal(rng, rows, -(-cols // (codec.group or cols)))
        return formats.pack(Scaled(values.view(formats.E4M3), scale, codec.group), format)
    extremes = Coded(rng.choice([-127, 127], (rows, cols)).astype(np.int8), np.exp(normal(rng, rows, 1)))
    if codec.accepts(extremes):
        if kind == "normal":
            extremes = Coded(rng.integers(-127, 128, (rows, cols), dtype=np.int8), extremes.scale)
        return formats.pack(extremes, format)
    return formats.pack(normal(rng, rows, cols) if kind == "normal" else mixed(rng, rows, cols, most=6e4), format)


TERNARY = Coded(np.array([[-1, 0, 1]], np.int8), np.ones((1, 1), f32))


def int8_matrix(rng: Rng, format: str, rows: int, cols: int, kind: str) -> Packed:
    """A matrix in a format of int8 activations: codes as large as the format holds."""
    codec = formats.codec(format)
    if hasattr(codec, "planes") and codec.KERNEL == "bcq":
        return formats.pack(planes(rng, codec, rows, cols, kind), format)
    if codec.KERNEL in ("c3", "c4", "c4i32", "c4f16"):
        return formats.pack(codebook(rng, getattr(codec, "_FORMAT", codec), rows, cols, kind), format)
    if hasattr(codec, "block"):
        return formats.pack(nested(rng, codec, rows, cols, kind), format)
    levels = 0 if codec.accepts(TERNARY) and codec.ACT_GROUP == 0 else 1 << codec.bits
    least, most = (0, levels - 1) if levels else (-1, 1)
    codes = rng.integers(least, most + 1, (rows, cols))
    if kind == "extremes":
        codes[:] = rng.choice([least, most], (rows, 1))
    group = codec.group if levels else 0
    shape = (rows, -(-cols // group) if group else 1)
    scale = np.exp(normal(rng, *shape) * (1 if group else 3)) * rng.choice([-1, 1], shape)
    zero = None
    if levels:
        zero = rng.integers(0, 2 * levels + 1, shape) / 2 if codec.zeros else np.full(shape, (levels - 1) / 2)
        zero = zero.astype(f32)
    return formats.pack(Coded(codes.astype(np.uint8 if levels else np.int8), scale.astype(f32), zero, group), format)


def nested(rng: Rng, codec: Any, rows: int, cols: int, kind: str) -> Nested:
    least = 0 if codec.offsets else -(1 << codec.bits - 1)
    most = least + (1 << codec.bits) - 1
    codes = rng.integers(least, most + 1, (rows, cols)).astype(np.uint8 if codec.offsets else np.int8)
    if kind == "extremes":
        codes[:] = rng.choice([least, most], (rows, 1))
    scale = rng.integers(-128, 128, (1 + codec.offsets, rows, -(-cols // codec.ACT_GROUP)), dtype=np.int8)
    unit = normal(rng, len(scale) * rows, -(-cols // codec.block)).astype(np.float16).astype(f32)
    return Nested(codes, scale, unit.reshape(len(scale), rows, -1), codec.ACT_GROUP, codec.block)


def codebook(rng: Rng, codec: Any, rows: int, cols: int, kind: str) -> Codebook:
    last = len(codec.values) - 1
    codes = rng.integers(0, last + 1, (rows, cols), dtype=np.uint8)
    if kind == "extremes":
        codes[:] = rng.choice([0, last // 2, last // 2 + 1, last], (rows, 1))
    groups = -(-cols // codec.ACT_GROUP)
    if hasattr(codec, "block"):
        scale = rng.integers(-128, 128, (rows, groups), dtype=np.int8)
        if codec.floats:
            scale = np.where(scale & 127 == 127, 0, scale).view(np.uint8).view(formats.E4M3)
        unit = np.exp(normal(rng, rows, -(-cols // codec.block) if codec.block else 1))
        values = np.array(codec.values, f32)
        return Codebook(codes, values, scale, codec.ACT_GROUP, unit=unit, block=codec.block)
    scale = normal(rng, rows, groups).astype(np.float16).astype(f32)
    own = rng.choice(codec.own, scale.shape).astype(f32) if codec.own else None
    return Codebook(codes, np.array(codec.values, f32), scale, codec.ACT_GROUP, own)


def planes(rng: Rng, codec: Any, rows: int, cols: int, kind: str) -> Planes:
    bits = rng.integers(0, 2, (codec.planes, rows, cols), dtype=np.uint8)
    if kind == "extremes":
        bits[:] = rng.integers(0, 2, (codec.planes, rows, 1))
    grids = rng.standard_normal((codec.planes + 1, rows, -(-cols // codec.ACT_GROUP))).astype(np.float16).astype(f32)
    return Planes(bits, grids[1:], codec.ACT_GROUP, grids[0] if codec.offsets else None, codec.zero)


def variants(format: str) -> list[str]:
    """The formats of a family, or the one there is."""
    suffixes = ["", "g32", "g64z", "g128", "z", "g128z", "1g32", "2g64", "3g128", "3g128z", "4g128"]
    suffixes += ["g16s256", "g16s64", "g16s256m", "g32s256m", "g32s32m", "g32s256"]
    suffixes = [suffix for suffix in suffixes if FAMILIES.get(format, lambda _: None)(suffix)]
    return [format] if format not in FAMILIES else [format + suffix for suffix in suffixes]


FAMILIES = {base: module.variant for base, module in formats.modules().items() if hasattr(module, "variant")}
NAMED: dict[str, list[str]] = {}  # formats by the name of their kernels


for base in formats.modules():
    for name in variants(base):
        if formats.codec(name).KERNEL:  # else made of other formats
            NAMED.setdefault(formats.codec(name).KERNEL, []).append(name)

MATRIX_ROWS = [1, 15, 16, 17, 31, 32, 33, 48, 65]
MATRIX_COLS = [1, 5, 19, 20, 21, 40, 100, 301, 320, 321, 640, 1000]


def matrix_sizes(rng: Rng) -> Iterator[tuple[str, int, int, int]]:
    """Kinds of data, tokens, rows, columns."""
    kinds = ["normal", "extremes", "zeros"]
    for i, tokens in enumerate([*TOKENS, *TOKENS, *TOKENS]):
        yield kinds[i // len(TOKENS)], tokens, int(rng.choice(MATRIX_ROWS)), int(rng.choice(MATRIX_COLS))
    yield "normal", 5, 1000, 40  # ranges of several parts
    yield "normal", 1, 33, 6912
    yield "normal", 6, 17, 2560


@register("linear", NAMED)
def linear(rng: Rng, kernel: str) -> Iterator[Case]:
    named = NAMED[kernel]
    int8 = formats.codec(named[0]).ACT_GROUP is not None
    yield from linear_int8(rng, named) if int8 else linear_float(rng, named)


def linear_int8(rng: Rng, named: list[str]) -> Iterator[Case]:
    longest = [("extremes", 1, 17, 65536), ("extremes", 4, 16, 65536), ("extremes", 13, 2, 65536)]
    tables = [("normal", 2, 2100, 2080)]  # more blocks and more columns than share a kernel's tables
    tiles = [("normal", n, 47, int(rng.choice(MATRIX_COLS))) for n in (15, 16, 17, 31, 32, 33, 70)]  # of AMX
    sizes = [*matrix_sizes(rng), ("normal", 193, 33, 340), *longest, *tables, *tiles]
    for format, (kind, n, rows, cols) in zip(cycle(named), sizes, strict=False):
        weight = int8_matrix(rng, format, rows, cols, kind)
        group = weight.codec.ACT_GROUP
        codes = np.zeros((n, -(-cols // ops.INT8_PAD) * ops.INT8_PAD), np.int8)
        if kind == "normal":
            codes[:, :cols] = rng.integers(-127, 128, (n, cols))
        elif kind == "extremes":
            codes[:, :cols] = rng.choice([-127, 127], (n, 1))  # all of one sign: no larger sum is possible
        begins = range(0, cols, group or cols)
        scale = np.exp(normal(rng, n, len(begins)))
        sums = np.add.reduceat(codes[:, :cols], begins, axis=1, dtype=np.int32).astype(f32)
        args, attrs = (Rows(codes), Rows(scale), Rows(sums), weight), {"group": group}
        label = f"{format} {kind} {n} x {cols} -> {rows}"
        yield Case(label, ops._linear_int8, args, attrs, grouped_bound(*args, **attrs) if group else None)


def grouped_bound(codes: Rows, scale: Rows, sums: Rows, weight: Packed, *, group: int) -> np.ndarray:
    """The integers are exact; a group's scale and its product are rounded, and the sum after every group."""
    matrix: Any = weight.matrix
    cols, groups = matrix.shape[1], scale.array.shape[1]
    activations = np.abs(codes.array[:, :cols] * np.repeat(scale.array, group, axis=1)[:, :cols].astype(float))
    size = activations @ np.abs(magnitudes(matrix)).T.astype(float)
    groups *= len(getattr(matrix, "bits", "1")) + 1
    return (groups + 3) * EPS * size + groups * TINY


def linear_float(rng: Rng, named: list[str]) -> Iterator[Case]:
    for format, (kind, n, rows, cols) in zip(cycle(named), matrix_sizes(rng), strict=False):
        x = KINDS[{"extremes": "mixed"}.get(kind, kind)](rng, n, cols)
        weight = float_matrix(rng, format, rows, cols, kind)
        # Each product is fused into one of 16 partial sums: a rounding per term of a lane, 4 for the tree, 1 to scale;
        # of a group, 1 when it is added.
        size = np.abs(x).astype(float) @ np.abs(formats.to_float32(weight.matrix)).astype(float).T
        groups = weight.parts["scale"].shape[1] if weight.codec.KERNEL == "f8" else 0
        bound = (cols / LANES + groups + 6) * (EPS * size + scales(weight) * TINY)
        yield Case(f"{format} {kind} {n} x {cols} -> {rows}", ops._linear, (Rows(x), weight), bound=bound)


def magnitudes(matrix: Any) -> np.ndarray:
    """How large the terms are whose sum is each weight."""
    if isinstance(matrix, Coded):
        return formats.to_float32(matrix)
    if isinstance(matrix, Codebook):  # digits from 0 around a zero in the middle
        largest = np.abs(matrix.looked_up).max(initial=0) + np.nanmax(np.abs(matrix.values))
        values = np.full_like(matrix.values, 3 * largest)
        return formats.to_float32(replace(matrix, values=values, scale=np.abs(matrix.scales), own=None, unit=None))
    if isinstance(matrix, Nested):
        own = np.arange(matrix.shape[1]) // matrix.group
        scale, *offset = np.abs(matrix.scales[:, :, own])
        return np.abs(matrix.codes.astype(f32)) * scale + sum(offset)
    offset = None if matrix.offset is None else np.abs(matrix.offset)
    return formats.to_float32(
        replace(matrix, bits=np.ones_like(matrix.bits), scale=np.abs(matrix.scale), zero=0.0, offset=offset)
    )


def scales(weight: Packed) -> np.ndarray:
    return 1 + np.abs(weight.parts["scale"]).max().astype(float) if "scale" in weight.parts else np.ones(1)


@register("embed", NAMED)
def embed(rng: Rng, kernel: str) -> Iterator[Case]:
    sizes = [(1, 1, 1), (3, 7, 15), (13, 50, 16), (5, 9, 17), (97, 33, 100), (4, 5, 2560)]
    for format, (n, rows, cols) in zip(cycle(NAMED[kernel]), sizes, strict=False):
        ids = np.r_[0, rows - 1, rng.integers(0, rows, n)][-n:, None].astype(np.int32)
        int8 = formats.codec(format).ACT_GROUP is not None
        table = (int8_matrix if int8 else float_matrix)(rng, format, rows, cols, "mixed")
        attrs = {"group": table.codec.ACT_GROUP or 0}
        yield Case(f"{format}: {n} of {rows} x {cols}", ops._embed, (Rows(ids), table), attrs)
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(64, 1024)
    ids = np.arange(64, dtype=np.int32)[:, None]
    every = {"f16": bits.view(np.float16), "bf16": bits.view(formats.BF16)}.get(kernel)
    if every is not None:
        yield Case("every 16-bit number", ops._embed, (Rows(ids), formats.pack(every, kernel)), {"group": 0})


# The cache


def stored(kv_type: str, x: np.ndarray) -> np.ndarray:
    """The numbers that the cache holds for x."""
    codec = KV_TYPES[kv_type]
    return codec.decode(codec.encode(x), x.shape[-1])


# heads, kv heads, head_dim
HEADS = [(1, 1, 8), (4, 2, 48), (6, 3, 100), (20, 5, 128), (9, 3, 17), (3, 1, 2), (40, 1, 32), (2, 1, 300), (7, 1, 64)]


LAYERS = [(3, 34), (1, 100), (2, 16)]  # kv heads and head_dim of layers before


def place(rng: Rng, kv_type: str) -> int:
    """Behind some of these."""
    return position_bytes(kv_type, LAYERS[: rng.integers(len(LAYERS) + 1)])


@register("kv_append", KV_TYPES)
def kv_append(rng: Rng, kv_type: str) -> Iterator[Case]:
    def case(label: str, k: np.ndarray, v: np.ndarray, kv_heads: int, pos: int) -> Case:
        head_dim = k.shape[1] // kv_heads
        old = [stored(kv_type, normal(rng, pos, kv_heads, head_dim)) for _ in "kv"]
        attrs = {"at": place(rng, kv_type), "kv_heads": kv_heads, "head_dim": head_dim}
        return Case(label, ops.kv_append, (Rows(k), Rows(v), Session(kv_type, pos, 1, *old)), attrs)

    for _, kv_heads, head_dim in HEADS:
        n, pos = int(rng.integers(1, 14)), int(rng.integers(0, 70))
        x = [mixed(rng, n, kv_heads * head_dim) for _ in "kv"]
        yield case(f"{n} x {kv_heads} x {head_dim} at {pos}", *x, kv_heads, pos)
    # Every half float, what lies halfway to the next, and both neighbours of that.
    with np.errstate(invalid="ignore"):
        half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(f32)
        middle = ((half + np.roll(half, -1)) / 2).astype(f32)
    near = [half, middle, np.nextafter(middle, f32(np.inf)), np.nextafter(middle, f32(-np.inf))]
    edges = np.stack([*near, np.resize(np.array([65519.996, 65520, -65520, 3e38, -np.inf, 1e-40], f32), 1 << 16)])
    edges = np.where(np.isnan(edges), f32(1), edges).reshape(-1, 1024)
    yield case("every rounding", edges, edges[::-1].copy(), 8, 3)


@register("attention", KV_TYPES)
def attention(rng: Rng, kv_type: str) -> Iterator[Case]:
    # Rows, position. Every place comes with two shapes of heads, every shape at two places at least.
    places = [(1, 0), (2, 0), (3, 5), (5, 61), (4, 63), (1, 64), (2, 130), (13, 200), (45, 100), (1, 600), (70, 500),
              (8, 509)]  # fmt: skip
    for i, (n, pos) in enumerate([*places, *places]):
        heads, kv_heads, head_dim = HEADS[i % len(HEADS)]
        kind = ["mild", "sharp", "equal"][i % 3]  # sharp: nearly all weight on one position; equal: ties
        size = {"mild": 1.0, "sharp": 6.0, "equal": 0.0}[kind]
        q = normal(rng, n, heads * head_dim) * f32(size)
        keys, values = (stored(kv_type, normal(rng, pos + n, kv_heads, head_dim)) for _ in "kv")
        attrs = {"at": place(rng, kv_type), "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        attrs["scale"] = head_dim**-0.5
        attrs["window"] = (0, 1, 5, 64, 0, 70, 255)[i % 7]
        attrs["cap"] = (0.0, 0.0, 0.0, 2.5)[i % 4]
        sinks = [] if i % 5 else [normal(rng, heads) * f32((1, 20)[i // 5 % 2])]
        args = (Rows(q), Session(kv_type, pos, 1, keys, values), *sinks)
        bound = attention_bound(q, keys, values, heads, attrs, KV_TYPES[kv_type].bits)
        label = f"{kind} {n} x {heads}/{kv_heads} x {head_dim} at {pos}, window {attrs['window']}, cap {attrs['cap']}"
        label += ", sinks" * len(sinks)
        yield Case(label, ops.attention, args, attrs, bound)


def attention_bound(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, heads: int, attrs: dict[str, Any], bits: int
) -> np.ndarray:
    """A score is off by a rounding for each of its products; a weight, e^(score - most), by that twice and those of
    e^x; then there is a sum over positions above and one below the line, rescaled once a tile.

    An integer cache of so many bits rounds queries to half of 2^-13 of the largest number in 32 columns, or of 1/127 of
    it at 4 bits, and weights times scales to half of 2^-13 of the largest in 128 positions: each position's value is
    off by that."""
    positions, kv_heads, head_dim = keys.shape
    scale = attrs["scale"]
    k, v = (np.abs(x.astype(float)).repeat(heads // kv_heads, axis=1) for x in (keys, values))
    x = np.abs(q.astype(float)).reshape(len(q), heads, head_dim)
    size = np.einsum("qhd,phd->hqp", x, k).max(axis=2) * scale
    score = (head_dim + 3) * EPS * size + 12 * EPS * attrs["cap"]  # capping makes no error larger
    rounded = 0
    if bits:
        query_step = 1.01 / (254 if bits == 4 else 2**14)  # and the floats on the way
        for at in range(0, head_dim, 32):
            some = x[:, :, at : at + 32].max(axis=2).T
            score = score + query_step * scale * some * k[:, :, at : at + 32].sum(axis=2).max(axis=0)[:, None]
        step = 2.0**-14 * 1.01
        weight = attention_weights(q, keys, heads, attrs)
        for at in range(0, positions, 128):
            some = weight[:, :, at : at + 128]
            most = v[at : at + 128].max(axis=(0, 2))[:, None]  # the largest code times the largest scale
            rounded = rounded + some.shape[2] * step * some.max(axis=2) * most
    relative = np.expm1(2 * score) + (2 * positions + 40) * EPS
    bound = relative.T[:, :, None] * v.max(axis=0)
    if bits:
        bound = bound + (rounded * (1 + np.expm1(2 * score))).T[:, :, None]
    return bound.reshape(q.shape) + positions * TINY


def attention_weights(q: np.ndarray, keys: np.ndarray, heads: int, attrs: dict[str, Any]) -> np.ndarray:
    """Softmax of the scores: [heads, rows, positions]."""
    k = keys.astype(float).repeat(heads // keys.shape[1], axis=1)
    scores = np.einsum("qhd,phd->hqp", q.astype(float).reshape(len(q), heads, -1), k) * attrs["scale"]
    if attrs["cap"]:
        scores = attrs["cap"] * np.tanh(scores / attrs["cap"])
    seen = np.tri(len(q), len(keys), len(keys) - len(q), dtype=bool)
    if attrs["window"]:
        seen &= ~np.tri(len(q), len(keys), len(keys) - len(q) - attrs["window"], dtype=bool)
    scores[:, ~seen] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True)


# Recurrent layers

PLACES = [(1, 0), (1, 7), (2, 0), (3, 1), (5, 0), (4, 100), (13, 0), (70, 0), (33, 64)]  # rows, position


@register("short_conv")
def short_conv(rng: Rng) -> Iterator[Case]:
    sizes = [(1, 4), (15, 1), (16, 2), (17, 3), (100, 4), (256, 4), (257, 4), (600, 5), (1000, 4)]
    for (n, pos), (cols, taps), kind in zip(PLACES, sizes, cycle(KINDS), strict=False):
        x, weight = KINDS[kind](rng, n, cols), normal(rng, taps, cols)
        bias = [] if cols % 2 else [normal(rng, cols)]
        before = KINDS[kind](rng, taps - 1, cols) if pos else np.zeros((taps - 1, cols), f32)
        rows = np.concatenate([before, x]).astype(float)
        terms = np.stack([rows[i : i + n] * weight[i] for i in range(taps)])
        # A rounding for every tap, of which silu makes little more; then its own, as in silu_mul.
        lost = (taps + 2) * (EPS * (np.abs(terms).sum(axis=0) + sum(map(np.abs, bias))) + TINY)
        total = terms.sum(axis=0) + sum(bias)
        silu = cols % 3 != 1
        y = total / (1 + np.exp(-np.maximum(total, -700))) if silu else total
        bound = 1.1 * lost + 8 * EPS * np.abs(y) + 6.1e-39 * np.abs(total) + 2 * TINY
        session = Session(pos=pos, memory=before.ravel() if pos else None)
        attrs = {"at": int(rng.integers(0, 40)), "taps": taps, "silu": silu}
        bounds = bound, np.zeros((taps - 1) * cols)
        yield Case(f"{kind} {n} x {cols} at {pos}", ops.short_conv, (Rows(x), weight, session, *bias), attrs, bounds)


@register("delta_rule")
def delta_rule(rng: Rng) -> Iterator[Case]:
    # heads of k, of v, columns of k, of v
    sizes = [(1, 1, 1, 1), (1, 2, 5, 16), (2, 4, 16, 24), (2, 2, 17, 33), (3, 6, 20, 7), (2, 6, 64, 48),
             (4, 8, 32, 32), (1, 3, 128, 128), (2, 4, 100, 17)]  # fmt: skip
    for i, ((n, pos), (k_heads, heads, dim, width)) in enumerate(zip(PLACES, sizes, strict=True)):
        q, k = (normal(rng, n, k_heads, dim) for _ in "qk")
        k /= np.sqrt((k * k).sum(axis=2, keepdims=True) * f32(1.001))  # a little less than 1: see delta_bound
        k[rng.random((n, k_heads)) < 0.1] = 0
        v = normal(rng, n, heads, width) * f32(10.0 ** rng.integers(-3, 4))
        decay, beta = (rng.choice([0, 1, *rng.random(5)], (n, heads)).astype(f32) for _ in range(2))
        memory = normal(rng, heads, dim, width) if pos else None
        rows = tuple(Rows(x.reshape(n, -1)) for x in (q, k, v, decay, beta))
        attrs = {"at": int(rng.integers(0, 40)), "k_heads": k_heads, "tiled": i % 2 == 1}
        bounds = delta_bound(q, k, v, decay, beta, memory, attrs["tiled"])
        session = Session(pos=pos, memory=None if memory is None else delta_floats(memory))
        label = f"{n} x {heads}/{k_heads} x {dim} x {width} at {pos}"
        yield Case(label, ops.delta_rule, (*rows, session), attrs, bounds)


@register("softplus")
def softplus(rng: Rng) -> Iterator[Case]:
    for i, (kind, n, cols) in enumerate(grids(rng)):
        x, attrs = KINDS[kind](rng, n, cols), {"least": (0.0, 0.1)[i % 2], "most": (np.inf, 1.5)[i // 2 % 2]}
        y = np.logaddexp(0, x.astype(float)).clip(*attrs.values())
        yield Case(f"{kind} {n} x {cols}", ops.softplus, (Rows(x),), attrs, bound=2 * EPS * y + TINY)


@register("state_space")
def state_space(rng: Rng) -> Iterator[Case]:
    # groups, heads, columns of b and c, of x
    sizes = [(1, 1, 1, 1), (1, 2, 5, 16), (2, 4, 16, 24), (2, 2, 17, 33), (3, 6, 20, 7), (2, 6, 64, 48),
             (4, 8, 32, 32), (1, 3, 128, 64), (2, 4, 100, 17)]  # fmt: skip
    for (n, pos), (groups, heads, dim, width) in zip(PLACES, sizes, strict=True):
        x = normal(rng, n, heads, width) * f32(10.0 ** rng.integers(-3, 4))
        b, c = (normal(rng, n, groups, dim) for _ in "bc")
        dt, rate, skip = np.exp(normal(rng, n, heads)), np.exp(2 * normal(rng, heads)), normal(rng, heads)
        dt[rng.random((n, heads)) < 0.1] = 0
        memory = normal(rng, heads, dim, width) if pos else None
        rows = tuple(Rows(each.reshape(n, -1)) for each in (x, b, c, dt))
        session = Session(pos=pos, memory=None if memory is None else delta_floats(memory))
        attrs = {"at": int(rng.integers(0, 40)), "groups": groups}
        label = f"{n} x {heads}/{groups} x {dim} x {width} at {pos}"
        args = (*rows, rate, skip, session)
        yield Case(label, ops.state_space, args, attrs, state_space_bound(x, b, c, dt, rate, skip, memory))


def state_space_bound(
    x: np.ndarray, b: np.ndarray, c: np.ndarray, dt: np.ndarray, rate: np.ndarray, skip: np.ndarray, S: Any
) -> tuple[np.ndarray, np.ndarray]:
    """How far results and memory may be off: a step rounds what is shrunk, by e^x of a rounded x, and what is brought,
    and adds both; a result is a sum over dim / 4 terms, and three more."""
    n, heads, width = x.shape
    x, b, c, dt, rate, skip = (np.abs(each.astype(float)) for each in (x, b, c, dt, rate, skip))
    b, c = (each.repeat(heads // each.shape[1], axis=1) for each in (b, c))
    S = np.zeros((heads, b.shape[2], width)) if S is None else np.abs(S.astype(float))
    lost, bound = np.zeros_like(S), np.empty((n, heads, width))
    for t in range(n):
        shrunk = np.exp(-rate * dt[t])[:, None, None]
        brought = b[t, :, :, None] * (dt[t, :, None] * x[t])[:, None]
        lost = shrunk * lost + EPS * ((8 + 2 * (rate * dt[t])[:, None, None]) * shrunk * S + 3 * brought) + TINY
        S = S * shrunk + brought
        bound[t] = np.einsum("hk,hkv->hv", c[t], lost + (S.shape[1] / 4 + 5) * EPS * S) + TINY * S.shape[1]
        bound[t] += 3 * EPS * skip[:, None] * x[t] + TINY
    return bound.reshape(n, -1), delta_floats(lost + 3 * EPS * S)


def delta_floats(S: np.ndarray) -> np.ndarray:
    """S, [heads, dim, width], as kernels lay it out: columns by sixteens, those beyond the width 0."""
    heads, dim, width = S.shape
    padded = np.concatenate([S, np.zeros((heads, dim, -width % 16), S.dtype)], axis=2)
    return padded.reshape(heads, dim, -1, 16).transpose(0, 2, 1, 3).ravel()


def delta_bound(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, decay: np.ndarray, beta: np.ndarray, S: Any, tiled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """How far results and memory may be off. By the length of each column of S: a step makes its error no longer, since
    that is multiplied by decay (1 - beta k k^T), and adds the roundings of sums over dim / 4 terms."""
    n, heads, width = v.shape
    q, k, v, decay, beta = (x.astype(float) for x in (q, k, v, decay, beta))
    own = np.arange(heads) % k.shape[1] if tiled else np.arange(heads) * k.shape[1] // heads
    q, k, terms = q[:, own], k[:, own], q.shape[2] / 4 + 4
    S = np.zeros((heads, q.shape[2], width)) if S is None else S.astype(float)
    lost, bound = np.zeros((heads, width)), np.empty((n, heads, width))
    for t in range(n):
        S = S * decay[t, :, None, None]
        size = np.sqrt((S * S).sum(axis=1))
        delta = beta[t, :, None] * (v[t] - np.einsum("hk,hkv->hv", k[t], S))
        lost = lost + EPS * (3 * size + (terms + 3) * size + 3 * np.abs(v[t]) + 3 * np.abs(delta)) + TINY * terms
        S = S + k[t, :, :, None] * delta[:, None]
        length = np.sqrt((q[t] * q[t]).sum(axis=1))[:, None]
        bound[t] = length * (lost + terms * EPS * np.sqrt((S * S).sum(axis=1))) + TINY * terms
    memory = np.repeat(lost[:, None], q.shape[2], axis=1)
    return bound.reshape(n, -1), delta_floats(memory)


# What quantizers do


@register("fit_grids")
def fit_grids(rng: Rng) -> Iterator[Case]:
    sizes = cycle([(37, 32), (16, 64), (3, 1), (5, 77), (50, 7), (2, 4100)])
    for bits in (2, 3, 4, 5, 6, 8):
        for zeros, halves in [(False, True), (True, True), (bool(bits % 2), False)]:
            n, group = next(sizes)
            x = normal(rng, n, group) * f32(0.02)
            for i, kind in enumerate(("mixed", "zeros", "denormal", "huge")):
                x[i + 1 : i + 2] = KINDS[kind](rng, *x[i + 1 : i + 2].shape)
            x[5:6], x[6:7] = x[5:6] + 10, -3.5
            attrs = {"bits": bits, "zeros": zeros, "halves": halves}
            yield Case(f"{n} groups of {group}, {attrs}", rtn.fit_grids, (Rows(x),), attrs, wide=False)


@register("fit_ternary")
def fit_ternary(rng: Rng) -> Iterator[Case]:
    for n, cols in [(30, 200), (9, 32), (5, 1), (8, 7), (40, 1000)]:
        x = rng.standard_t(rng.choice([1.5, 3, 50], (n, 1)), (n, cols)).astype(
            f32
        )  # an outlier may leave many in doubt
        for i, kind in enumerate(("mixed", "zeros", "denormal", "huge")):
            x[i + 1 : i + 2] = KINDS[kind](rng, *x[i + 1 : i + 2].shape)
        x[5:6], x[6:7] = -3.5, rng.integers(-3, 4, x[6:7].shape)  # as many as there are of each, and ties
        yield Case(f"{n} rows of {cols}", ternary.fit_ternary, (Rows(x),), wide=False)


# Reading memory, multiplying bytes


@register("stream")
def stream(rng: Rng) -> Iterator[Case]:
    yield Case("3 parts", ops.stream, (rng.integers(0, 256, (3, 1 << 20), dtype=np.uint8),))


@register("peak")
def peak(rng: Rng) -> Iterator[Case]:
    for parts, steps, most in [(3, 64, False), (1, 1000, False), (2, 640, True), (5, 0, False)]:
        weights = rng.integers(0, 3, (parts, 16), dtype=np.uint8)
        codes = rng.integers(-127, 128, (parts, 16), dtype=np.int8)
        if most:
            weights[:], codes[:] = 2, [[127], [-127]]
        yield Case(f"{parts} parts, {steps} steps", ops.peak, (weights, codes), {"steps": steps})


# The numpy op


def reference(op: Callable[..., Any], *args: Any, wide: bool = True, **attrs: Any) -> Any:
    """What the numpy op makes of the arguments, its float inputs widened so that it adds no error of its own."""

    def plain(x: Any) -> Any:
        x = x.array if isinstance(x, Rows) else x
        return x.astype(np.float64) if wide and isinstance(x, np.ndarray) and x.dtype == f32 else x

    with np.errstate(all="ignore"):
        return op(*map(plain, args), **attrs)


def as_numpy(case: Case, floats: np.ndarray) -> np.ndarray:
    """What a recurrent op remembers, in the order of numpy's op."""
    shapes = [a.array.shape[1] for a in case.args if isinstance(a, Rows)]
    if case.op is ops.short_conv:
        return floats.reshape(-1, shapes[0])
    heads, keys, values = shapes[3], shapes[0], shapes[2]
    if case.op is ops.state_space:
        keys, values = shapes[1], shapes[0]
    dim = keys // case.attrs["groups" if case.op is ops.state_space else "k_heads"]
    blocks = floats.reshape(heads, -1, dim, 16).transpose(0, 2, 1, 3)
    return blocks.reshape(heads, dim, -1)[:, :, : values // heads]


def numpy_outputs(case: Case) -> list[np.ndarray]:
    """The outputs of the case by the numpy op; for one that writes the cache, the keys and values it then holds."""
    s, state = case.session, ops.State(case.session.kv_type)
    state.pos, state.n_outputs = s.pos, s.n_outputs
    at = case.attrs.get("at", 0)
    if s.keys is not None:
        state.kv[at] = (s.keys, s.values)
    if s.memory is not None:
        state.memory[case.attrs["at"]] = as_numpy(case, s.memory)
    args = [state if isinstance(a, Session) else a for a in case.args]
    result = reference(case.op, *args, wide=case.wide and case.bound is not None, **case.attrs)
    if result is None:
        return list(state.kv[at])
    if case.recurrent:
        memory = state.memory[case.attrs["at"]]
        return [result, delta_floats(memory) if memory.ndim == 3 else memory.ravel()]
    return list(result) if isinstance(result, tuple) else [result]

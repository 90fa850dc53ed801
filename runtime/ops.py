"""The ops. Each is a numpy function, and that function is the reference of every kernel of that name.

Called with arrays an op computes; called with symbols it records a node (graph.py). So a model's forward() is at
once the model, its numpy reference, and the source of its plan. Activations are float32 [rows, features], a row
per token. A new op needs: a function here, and native/kernels/<op>.c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from lutra.runtime.cache import KV_TYPES, position_bytes
from lutra.runtime.formats import Codebook, Coded, Nested, Packed, to_float32, walsh_hadamard
from lutra.runtime.graph import StateSymbol, Symbol, op

__all__ = [
    "State",
    "add",
    "add_bias",
    "attention",
    "clamped_swiglu",
    "concat",
    "decay",
    "delta_floats",
    "delta_rule",
    "embed",
    "experts",
    "gather",
    "gelu_erf",
    "gelu_tanh",
    "gelu_tanh_mul",
    "hadamard",
    "kv_append",
    "kv_place",
    "layer_norm",
    "line_up",
    "linear",
    "mul",
    "owners",
    "peak",
    "positions",
    "quantize",
    "relu",
    "relu2_mul",
    "rms_norm",
    "rope",
    "rope_angles",
    "route",
    "scale",
    "scale_columns",
    "scale_experts",
    "scale_rows",
    "short_conv",
    "sigmoid",
    "silu_mul",
    "soft_cap",
    "softplus",
    "split",
    "spread",
    "state_space",
    "stream",
    "tail",
    "take_columns",
]

Array = Any  # np.ndarray or Symbol
f32 = np.float32

INT8_PAD = 320  # int8 rows are padded to a multiple of this: of every format's group, and of 64


class State:
    """What a session is to the numpy reference: keys and values, and the step's place in them.

    kv, memory: keys and values, and what recurrent ops remember, by where kernels have it (``at``); nothing is 0.
    kv_type: how the cache stores them, one of cache.KV_TYPES. Feed n tokens: call forward(), then ``advance(n)``.
    """

    def __init__(self, kv_type: str = "f32"):
        self.kv_type = kv_type
        self.kv: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.memory: dict[int, np.ndarray] = {}
        self.pos = 0
        self.n_outputs = 1

    def advance(self, n: int) -> None:
        """Move past the n tokens just fed."""
        self.pos += n


def _like(x: Array, *_: Any, **__: Any) -> list[tuple[int, Any]]:
    return [(x.shape[1], f32)]


def _kv_suffix(*args: Any) -> str:
    return "_" + next(a.kv_type for a in args if isinstance(a, StateSymbol))


def _format_suffix(*args: Any) -> str:
    return "_" + next(a.codec.KERNEL for a in args if isinstance(a, Packed))


def embed(ids: Array, table: Packed) -> Array:
    """Rows of the table. ids: int32 [rows, 1]."""
    if table.rotation:
        signs, order, matrix = table.rotation
        x = scale_columns(hadamard(embed(ids, matrix), block=table.codec.block), signs)
        return x if order is None else take_columns(x, np.argsort(order).astype(np.int32))
    return _embed(ids, table, group=table.codec.ACT_GROUP or 0)


@op(lambda ids, table, **_: [(table.shape[1], f32)], name="embed", suffix=_format_suffix)
def _embed(ids: Array, table: Packed, *, group: int) -> Array:
    return to_float32(table.matrix[ids[:, 0]])


@op(_like, over=True)
def rms_norm(x: Array, weight: np.ndarray, *, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), of every run of len(weight) columns."""
    runs = x.reshape(len(x), -1, len(weight))
    mean = np.mean(runs * runs, axis=-1, keepdims=True, dtype=f32)
    return (runs * (f32(1) / np.sqrt(mean + f32(eps))) * weight).reshape(x.shape)


@op(_like, over=True)
def layer_norm(x: Array, weight: np.ndarray, *, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016), of every run of len(weight) / 2 columns.

    weight: the two, one after the other.
    """
    n = len(weight) // 2
    runs = x.reshape(len(x), -1, n)
    deviation = runs - np.mean(runs, axis=-1, keepdims=True, dtype=x.dtype)
    variance = np.mean(deviation * deviation, axis=-1, keepdims=True, dtype=x.dtype)
    return (deviation * (f32(1) / np.sqrt(variance + f32(eps))) * weight[:n] + weight[n:]).reshape(x.shape)


@op(lambda ids, state, **_: [(1, np.int32)])
def positions(ids: Array, state: Any, *, offset: int) -> Array:
    """Each row's position, counted from ``offset``: int32 [rows, 1]. ids only says how many rows."""
    return (state.pos + offset + np.arange(len(ids), dtype=np.int32))[:, None]


def _quantized(x: Array, *, group: int, **_: Any) -> list[tuple[int, Any]]:
    groups = -(-x.shape[1] // group) if group else 1
    return [(-(-x.shape[1] // INT8_PAD) * INT8_PAD, np.int8), (groups, f32), (groups, f32)]


@op(_quantized)
def quantize(x: Array, *, group: int, least: float) -> Array:
    """Activations as int8, with one scale per ``group`` columns, or per token if it is 0.

    Returns codes int8 [rows, cols padded with 0]; scale float32 [rows, groups] with x ~ codes * scale; and the sums of
    the groups' codes, float32 [rows, groups]: whole numbers, exact up to 2^17 columns. A group whose values are all
    below ``least`` is scaled as if they were not.
    """
    n, cols = x.shape
    (padded, _), (groups, _), _ = _quantized(x, group=group)
    whole = np.zeros((n, groups, group or cols), x.dtype)
    whole.reshape(n, -1)[:, :cols] = x
    most = np.maximum(np.abs(whole).max(axis=2), f32(least))
    rounded = np.rint(whole * (f32(127) / most)[:, :, None]).reshape(n, -1).astype(np.int8)
    codes = np.zeros((n, padded), np.int8)
    codes[:, :cols] = rounded[:, :cols]
    return codes, most / f32(127), rounded.reshape(whole.shape).sum(axis=2, dtype=f32)


LEAST = {True: 1e-5, False: 1e-30}  # by "one scale per token": BitNet b1.58's (Ma et al. 2024), and no float's inverse


def linear(x: Array, weight: Packed) -> Array:
    """x W^T + bias. A format says whether it sees x as floats, or as int8 and in which groups."""
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"{x.shape[1]} features meet a matrix of shape {weight.shape}")
    group = weight.codec.ACT_GROUP
    if weight.rotation:
        signs, order, matrix = weight.rotation
        x = x if order is None else take_columns(x, order)
        y = linear(hadamard(scale_columns(x, signs), block=weight.codec.block), matrix)
    elif weight.stack:
        y = concat(*(linear(x, matrix) for matrix in weight.stack))
    elif weight.chains:
        y = reduce(add, [_chain(x, chain) for chain in weight.chains])
    elif group is None:
        y = _linear(x, weight)
    else:
        y = _linear_int8(*quantize(x, group=group, least=LEAST[group == 0]), weight, group=group)
    return y if weight.bias is None else add_bias(y, weight.bias)


def _chain(x: Array, links: Any) -> Array:
    for columns, matrix in links:
        if columns is not None:
            x = scale_columns(x, columns) if columns.dtype == f32 else take_columns(x, columns)
        x = linear(x, matrix)
    return x


@op(lambda *args, **_: [(args[-1].shape[0], f32)], name="linear", suffix=_format_suffix, local=False)
def _linear_int8(codes: Array, scale: Array, sum: Array, weight: Packed, *, group: int) -> Array:
    """The sum over groups of (scale * the weights' scale) * (codes . weights' codes - their zero * the codes' sum)."""
    matrix: Any = weight.matrix
    cols, sums = matrix.shape[1], []
    for g, begin in enumerate(range(0, cols, group or cols)):
        some = slice(begin, min(begin + (group or cols), cols))
        for c, s, zero, offset in _grids(matrix, some):
            dot = codes[:, some].astype(np.float64) @ c.T.astype(np.float64)  # exact for integers
            dot -= zero * sum[:, g, None].astype(np.float64)
            part = (scale[:, g, None] * s) * dot.astype(scale.dtype)
            sums.append(part if offset is None else part + scale[:, g, None] * sum[:, g, None] * offset)
    return reduce(np.add, sums)


def _grids(matrix: Any, columns: slice) -> list[tuple[Any, Any, Any, Any]]:
    """Codes, scale, zero and offset of every plane of a group of columns."""
    own = columns.start // matrix.group if matrix.group else 0
    if isinstance(matrix, Coded):
        zero = 0 if matrix.zero is None else matrix.zero[:, own]
        return [(matrix.codes[:, columns], matrix.scale[:, own], zero, None)]
    if isinstance(matrix, Nested):
        scale, *offset = matrix.scales[:, :, own]
        return [(matrix.codes[:, columns], scale, 0, *(offset or [None]))]
    if isinstance(matrix, Codebook):
        return [(matrix.looked_up[:, columns].astype(np.float64), matrix.scales[:, own], 0, None)]
    offsets = [None if matrix.offset is None else matrix.offset[:, own], *[None] * len(matrix.bits)]
    planes = zip(matrix.bits[:, :, columns], matrix.scale[:, :, own], offsets, strict=False)
    return [(bits, scale, matrix.zero, offset) for bits, scale, offset in planes]


@op(lambda x, weight: [(weight.shape[0], f32)], name="linear", suffix=_format_suffix, local=False)
def _linear(x: Array, weight: Packed) -> Array:
    matrix: Any = weight.matrix
    if isinstance(matrix, Coded):
        return (x @ matrix.codes.T.astype(f32)) * matrix.scale[:, 0]
    return x @ matrix.T


@op(lambda logits, *_, k, **__: [(k, np.int32), (k, f32)])
def route(
    logits: Array,
    bias: np.ndarray | None = None,
    *,
    k: int,
    normalize: bool,
    sigmoid: bool,
    groups: int,
    kept: int,
    leading: int,
) -> Array:
    """The k best experts of each row, best first, ties by lower index: which, and their shares.

    Returns int32 and float32 [rows, k]. A share is an expert's part of the softmax, or its sigmoid. Best are the
    largest logits; with a bias, float32 [experts], the largest sums of share and bias (Wang et al. 2024), which weighs
    nothing.
    Of several groups only the ``kept`` are chosen from whose ``leading`` best have the largest sums (DeepSeek-AI 2024).
    normalize: the chosen ones' shares are divided by their sum.
    """
    with np.errstate(over="ignore"):
        powers = 1 / (1 + np.exp(-logits)) if sigmoid else np.exp(logits - logits.max(axis=1, keepdims=True))
    total = f32(1) if sigmoid else powers.sum(axis=1, keepdims=True)
    score = powers / total if sigmoid or bias is not None else logits
    score = score if bias is None else score + bias
    if groups > 1:
        score = _best_groups(score.reshape(len(score), groups, -1), kept, leading)
    chosen = np.argsort(-score, axis=1, kind="stable")[:, :k].astype(np.int32)
    share = np.take_along_axis(powers, chosen, axis=1)
    return chosen, share / (share.sum(axis=1, keepdims=True) + f32(1e-20) if normalize else total)


def _best_groups(score: np.ndarray, kept: int, leading: int) -> np.ndarray:
    """score: [rows, groups, experts] -> [rows, groups * experts], what is in other groups below everything."""
    sums = np.sort(score, axis=2)[:, :, : -leading - 1 : -1].sum(axis=2)
    best = np.argsort(-sums, axis=1, kind="stable")[:, :kept]
    keep = (best[:, :, None] == np.arange(score.shape[1])).any(axis=1)
    return np.where(keep[:, :, None], score, -np.inf).astype(score.dtype).reshape(len(score), -1)


@op(lambda chosen, **_: [(chosen.shape[1], np.int32)], local=False)
def line_up(chosen: Array, *, experts: int) -> Array:
    """Where each of all rows' choices comes in the order of experts, those of the same one in the order of rows.

    chosen: int32 [rows, k], each < experts. Returns int32 [rows, k].
    """
    place = np.empty(chosen.size, np.int32)
    place[np.argsort(chosen, axis=None, kind="stable")] = np.arange(chosen.size, dtype=np.int32)
    return place.reshape(chosen.shape)


@op(lambda x, place: [(x.shape[1], f32)], local=False, times=lambda x, place: place.shape[1])
def spread(x: Array, place: Array) -> Array:
    """A copy of each row in all of its places. place: int32 [rows, k]. Returns [rows * k, columns]."""
    y = np.empty((place.size, x.shape[1]), x.dtype)
    y[place] = x[:, None]
    return y


@op(lambda chosen, place: [(1, np.int32)], local=False, times=lambda chosen, place: place.shape[1])
def owners(chosen: Array, place: Array) -> Array:
    """Which expert each lined-up row belongs to. chosen, place: int32 [rows, k]. Returns int32 [rows * k, 1]."""
    owner = np.empty((place.size, 1), np.int32)
    owner[place.ravel(), 0] = chosen.ravel()
    return owner


def experts(x: Array, weight: Packed, chosen: Array) -> Array:
    """linear(), every row with the expert's matrix that it chose.

    x: [rows * k, in], lined up. weight: one of a format experts-<format>, [experts, out, in]. chosen: int32 [rows, k].
    """
    if weight.bias is not None:
        return add(experts(x, weight.with_bias(None), chosen), _of_experts(weight.bias, chosen))
    if weight.stack:
        return concat(*(experts(x, matrices, chosen) for matrices in weight.stack))
    group = weight.codec.ACT_GROUP
    if group is None:
        return _experts(x, weight, chosen)
    return _experts_int8(*quantize(x, group=group, least=LEAST[group == 0]), weight, chosen, group=group)


def scale_experts(x: Array, scale: np.ndarray, chosen: Array) -> Array:
    """x [rows * k, columns], lined up, each row times the scale of its expert. scale: float32 [experts]."""
    return scale_rows(x, _of_experts(np.ascontiguousarray(scale[:, None]), chosen))


def _of_experts(table: np.ndarray, chosen: Array) -> Array:
    """Each lined-up row's own row of a table that has one for every expert."""
    owner = owners(chosen, line_up(chosen, experts=len(table)))
    return embed(owner, Packed("f32", table.shape, {"data": table}))


def _experts_out(*args: Any, **_: Any) -> list[tuple[int, Any]]:
    return [(args[-2].shape[1], f32)]


def _choices(*args: Any) -> int:
    return args[-1].shape[1]


@op(_experts_out, name="linear", suffix=_format_suffix, local=False, times=_choices)
def _experts_int8(codes: Array, scale: Array, sum: Array, weight: Packed, chosen: Array, *, group: int) -> Array:
    def one(rows: Any, expert: Packed) -> Array:
        return _linear_int8(codes[rows], scale[rows], sum[rows], expert, group=group)

    return _by_expert(weight, chosen, one)


@op(_experts_out, name="linear", suffix=_format_suffix, local=False, times=_choices)
def _experts(x: Array, weight: Packed, chosen: Array) -> Array:
    return _by_expert(weight, chosen, lambda rows, expert: _linear(x[rows], expert))


def _by_expert(weight: Packed, chosen: Array, one: Any) -> Array:
    stops = np.cumsum(np.bincount(chosen.ravel(), minlength=len(weight.experts)))
    each = zip(np.r_[0, stops[:-1]], stops, weight.experts, strict=True)
    return np.concatenate([one(slice(begin, end), expert) for begin, end, expert in each if begin < end])


@op(lambda x, place, share: [(x.shape[1], f32)], local=False, times=lambda *_: 1)
def gather(x: Array, place: Array, share: Array) -> Array:
    """The sum of the rows of x at a row's places, each times its share. place, share: [rows, k]."""
    return np.einsum("rkc,rk->rc", x[place], share)


@op(_like, over=True)
def add(a: Array, b: Array) -> Array:
    """a + b"""
    return a + b


@op(_like, over=True)
def mul(a: Array, b: Array) -> Array:
    """a * b"""
    return a * b


@op(_like, over=True)
def add_bias(x: Array, bias: np.ndarray) -> Array:
    """x + bias, the same for every row."""
    return x + bias


@op(lambda *parts: [(sum(x.shape[1] for x in parts), f32)])
def concat(*parts: Array) -> Array:
    """The parts' columns side by side, at most seven of them."""
    return np.concatenate(parts, axis=1)


@op(_like, over=True)
def scale(x: Array, *, factor: float) -> Array:
    """x * factor"""
    return x * f32(factor)


@op(_like, over=True)
def scale_columns(x: Array, scale: np.ndarray) -> Array:
    """x * scale, the same for every row."""
    return x * scale


@op(_like, over=True)
def scale_rows(x: Array, scale: Array) -> Array:
    """x * scale, one for each row. scale: [rows, 1]."""
    return x * scale


@op(lambda x, order: [(len(order), f32)])
def take_columns(x: Array, order: np.ndarray) -> Array:
    """Some of x's columns, the same for every row. order: int32, which of them, or -1: zeros."""
    return np.where(order < 0, x.dtype.type(0), x[:, order])


@op(_like)
def hadamard(x: Array, *, block: int) -> Array:
    """Runs of ``block`` columns, each times the normalized Walsh-Hadamard matrix. block: a power of two."""
    return walsh_hadamard(x, block)


@op(_like, over=True)
def silu_mul(gate: Array, up: Array) -> Array:
    """gate * sigmoid(gate) * up (SwiGLU: Shazeer 2020)."""
    with np.errstate(over="ignore"):
        return gate / (f32(1) + np.exp(-gate)) * up


@op(_like, over=True)
def clamped_swiglu(gate: Array, up: Array, *, alpha: float, limit: float) -> Array:
    """g * sigmoid(alpha g) * (u + 1), g the gate up to the limit, u what lies between both limits (gpt-oss, 2025)."""
    gate, up = np.minimum(gate, f32(limit)), np.clip(up, f32(-limit), f32(limit))
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(f32(-alpha) * gate)) * (up + 1)


@op(_like, over=True)
def relu(x: Array) -> Array:
    """max(x, 0)"""
    return np.maximum(x, 0)


@op(_like, over=True)
def relu2_mul(gate: Array, up: Array) -> Array:
    """max(gate, 0)^2 * up (squared ReLU: So et al. 2021)."""
    return np.maximum(gate, 0) ** 2 * up


@op(_like, over=True)
def gelu_erf(x: Array) -> Array:
    """x (1 + erf(x / sqrt(2))) / 2 (Hendrycks & Gimpel 2016)."""
    return (x * _below(x.astype(np.float64))).astype(x.dtype)


def _below(x: np.ndarray) -> np.ndarray:
    """The chance of a normal number below x."""
    return np.frompyfunc(lambda each: math.erfc(-each / math.sqrt(2)) / 2, 1, 1)(x).astype(np.float64)


@op(_like, over=True)
def gelu_tanh(x: Array) -> Array:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Hendrycks & Gimpel 2016)."""
    with np.errstate(over="ignore"):
        inner = x + f32(0.044715) * x**3
        return x / (f32(1) + np.exp(f32(-2 * np.sqrt(2 / np.pi)) * inner))


@op(_like, over=True)
def gelu_tanh_mul(gate: Array, up: Array) -> Array:
    """gelu_tanh(gate) * up."""
    return gelu_tanh(gate) * up


@op(_like, over=True)
def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)"""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


@op(_like, over=True)
def decay(x: Array, rate: np.ndarray) -> Array:
    """e^(-rate log(1 + e^x)): the share of its memory that each head keeps (Mamba 2: Dao & Gu 2024). rate: [heads]."""
    return np.exp(-rate.astype(np.float64) * np.logaddexp(0, x.astype(np.float64))).astype(x.dtype)


@op(_like, over=True)
def soft_cap(x: Array, *, cap: float) -> Array:
    """cap * tanh(x / cap): the values bent towards -cap..cap (Gemma 2, 2024)."""
    return f32(cap) * np.tanh(x / f32(cap))


def split(x: Array, *widths: int) -> list[Array]:
    """x's columns in consecutive ranges of these widths, as views."""
    stops = np.cumsum(widths)
    if stops[-1] != x.shape[1]:
        raise ValueError(f"cannot split {x.shape[1]} columns into {widths}")
    if isinstance(x, Symbol):
        return [x.columns(int(stop) - width, int(stop)) for width, stop in zip(widths, stops, strict=True)]
    return [x[:, stop - width : stop] for width, stop in zip(widths, stops, strict=True)]


@op(lambda ids, frequency, state, **_: [(2 * len(frequency), f32)])
def rope_angles(ids: Array, frequency: np.ndarray, state: Any, *, magnitude: float) -> Array:
    """The rotary angles of each row's position: float32 [rows, cosines | sines]. ids only says how many rows."""
    positions = np.arange(state.pos, state.pos + len(ids), dtype=f32)
    angles = (positions[:, None] * frequency).astype(np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(f32) * f32(magnitude)


@op(_like)
def rope(x: Array, angles: Array, *, head_dim: int, interleaved: bool) -> Array:
    """Rotary position embedding (Su et al. 2021) of each head's first 2n elements, n angles per row.

    Pairs are (j, j + n), or (2j, 2j + 1) when interleaved.
    """
    n = angles.shape[1] // 2
    cosine, sine = angles[:, None, :n], angles[:, None, n:]
    heads = x.reshape(len(x), -1, head_dim)
    y = heads.copy()
    first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if interleaved else (slice(0, n), slice(n, 2 * n))
    y[..., first] = heads[..., first] * cosine - heads[..., second] * sine
    y[..., second] = heads[..., second] * cosine + heads[..., first] * sine
    return y.reshape(x.shape)


def kv_place(state: Any, shapes: Sequence[tuple[int, int]]) -> int:
    """Where a layer's keys and values are: bytes of a position in those before, of ``shapes`` (kv_heads, head_dim)."""
    return position_bytes(state.kv_type, shapes)


@op(lambda *_, **__: [], suffix=_kv_suffix)
def kv_append(k: Array, v: Array, state: Any, *, at: int, kv_heads: int, head_dim: int) -> None:
    """Write each row's keys and values, [rows, kv_heads * head_dim], at the row's position. at: their ``kv_place``."""
    codec = KV_TYPES[state.kv_type]
    new = [codec.decode(codec.encode(x.reshape(len(x), kv_heads, head_dim)), head_dim) for x in (k, v)]
    old = state.kv.get(at, (new[0][:0], new[1][:0]))
    state.kv[at] = tuple(np.concatenate([o[: state.pos], n]) for o, n in zip(old, new, strict=True))


@op(lambda q, *_, **__: [(q.shape[1], f32)], suffix=_kv_suffix, local=False)
def attention(
    q: Array,
    state: Any,
    sinks: np.ndarray | None = None,
    *,
    at: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    scale: float,
    cap: float,
) -> Array:
    """softmax(q k^T * scale) v over each row's own and earlier positions; heads share kv heads in groups.

    at: where keys and values are, their ``kv_place``; the last position in them is that of q's last row.
    window: how many positions a row sees, its own included; 0: all. cap: scores are soft_cap()ped; 0: they are not.
    sinks: float32 [heads], a score of every head's for the softmax alone, that has no value (Xiao et al. 2024).
    """
    keys, values = (x.astype(f32).repeat(heads // kv_heads, axis=1) for x in state.kv[at])
    queries = q.reshape(len(q), heads, head_dim).swapaxes(0, 1)
    scores = queries @ keys.transpose(1, 2, 0) * f32(scale)
    if cap:
        scores = soft_cap(scores, cap=cap)
    behind = len(keys) - len(q) + np.arange(len(q))[:, None] - np.arange(len(keys))
    scores = np.where((behind >= 0) & (behind < (window or len(keys))), scores, -np.inf)
    sink = np.full((heads, 1, 1), -np.inf, f32) if sinks is None else sinks[:, None, None]
    most = np.maximum(scores.max(axis=-1, keepdims=True), sink)
    weights = np.exp(scores - most)
    weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sink - most)
    return (weights @ values.swapaxes(0, 1)).swapaxes(0, 1).reshape(q.shape)


@op(_like, local=False)
def short_conv(
    x: Array, weight: np.ndarray, state: Any, bias: np.ndarray | None = None, *, at: int, taps: int, silu: bool
) -> Array:
    """A causal convolution of each column on its own, over a row and the taps - 1 before it.

    weight: float32 [taps, columns], the row's own tap last. bias: float32 [columns], what is added. silu: whether the
    result is its silu. at: where the session remembers the rows before, (taps - 1) * columns floats.
    """
    before = state.memory.get(at, np.zeros((taps - 1, x.shape[1]), x.dtype))
    rows = np.concatenate([before, x])
    state.memory[at] = rows[len(x) :]
    y: Any = sum(rows[i : i + len(x)] * weight[i] for i in range(taps)) + (0 if bias is None else bias)
    if not silu:
        return y
    with np.errstate(over="ignore"):
        return y / (1 + np.exp(-y))


@op(lambda q, k, v, *_, **__: [(v.shape[1], f32)], local=False)
def delta_rule(
    q: Array, k: Array, v: Array, decay: Array, beta: Array, state: Any, *, at: int, k_heads: int, tiled: bool
) -> Array:
    """The gated delta rule (Yang et al. 2025): a head remembers a matrix S, which each row decays, corrects and asks.

    S = decay S;  S += k (beta (v - k S));  y = q S. q, k: [rows, k_heads * dim]. v: [rows, heads * width]. decay, beta:
    [rows, heads]. Heads share those of q and k: consecutive ones; tiled: those k_heads apart. at: where the session
    remembers S, ``delta_floats`` floats.
    """
    rows, heads = decay.shape
    shared = np.arange(heads) % k_heads if tiled else np.arange(heads) // (heads // k_heads)
    q, k = (x.reshape(rows, k_heads, -1)[:, shared] for x in (q, k))
    values = v.reshape(rows, heads, -1)
    S = state.memory.get(at, np.zeros((heads, q.shape[2], values.shape[2]), v.dtype))
    y = np.empty_like(values)
    for t in range(rows):
        S = S * decay[t, :, None, None]
        delta = (values[t] - np.einsum("hk,hkv->hv", k[t], S)) * beta[t, :, None]
        S = S + k[t, :, :, None] * delta[:, None]
        y[t] = np.einsum("hk,hkv->hv", q[t], S)
    state.memory[at] = S
    return y.reshape(v.shape)


@op(_like, over=True)
def softplus(x: Array, *, least: float, most: float) -> Array:
    """log(1 + e^x), within these limits."""
    return np.logaddexp(0, x.astype(np.float64)).clip(least, most).astype(x.dtype)


@op(lambda x, *_, **__: [(x.shape[1], f32)], local=False)
def state_space(
    x: Array, b: Array, c: Array, dt: Array, rate: np.ndarray, skip: np.ndarray, state: Any, *, at: int, groups: int
) -> Array:
    """Mamba 2's recurrence (Dao & Gu 2024): a head remembers a matrix S, which each row shrinks, adds to and asks.

    S = e^(-rate dt) S + b (dt x);  y = c S + skip x. x: [rows, heads * width]. b, c: [rows, groups * dim], each of
    consecutive heads. dt: [rows, heads]. rate, skip: float32 [heads]. at: where the session remembers S,
    ``delta_floats`` floats.
    """
    rows, heads = dt.shape
    shared = np.arange(heads) // (heads // groups)
    b, c = (each.reshape(rows, groups, -1)[:, shared] for each in (b, c))
    values = x.reshape(rows, heads, -1)
    S = state.memory.get(at, np.zeros((heads, b.shape[2], values.shape[2]), x.dtype))
    y = np.empty_like(values)
    for t in range(rows):
        S = S * np.exp(-rate * dt[t])[:, None, None] + b[t, :, :, None] * (dt[t, :, None] * values[t])[:, None]
        y[t] = np.einsum("hk,hkv->hv", c[t], S) + skip[:, None] * values[t]
    state.memory[at] = S
    return y.reshape(x.shape)


def delta_floats(heads: int, dim: int, width: int) -> int:
    """Floats that delta_rule() and state_space() remember: their kernels have columns of v or x by sixteens."""
    return heads * dim * -(-width // 16) * 16


@op(_like, local=False)
def tail(x: Array, state: Any) -> Array:
    """The last rows: those whose logits are wanted."""
    return x[len(x) - state.n_outputs :]


@op(lambda data: [(len(data), np.int64)], local=False)
def stream(data: np.ndarray) -> np.ndarray:
    """The exclusive or of each part's 64-bit words. data: uint8 [parts, 1 MiB]. For measuring read bandwidth."""
    return np.bitwise_xor.reduce(data.view(np.int64), axis=1)[None, :]


PEAK_BYTES, PEAK_STEP, PEAK_STEPS = 16, 1536, 64  # a vector; multiply-adds of one step; steps come by so many


@op(lambda weights, codes, **_: [(len(weights), np.int64)] * 2, local=False)
def peak(weights: np.ndarray, codes: np.ndarray, *, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiply-adds, as many as a CPU can: how many there were for each part, and their sum modulo 2^32.

    weights: uint8 [parts, 16], 0..2. codes: int8 [parts, 16]. For measuring the rate of int8 arithmetic.
    """
    n = steps // PEAK_STEPS * PEAK_STEPS * PEAK_STEP
    once = (weights.astype(np.int64) * codes).sum(axis=1)
    return np.full((1, len(weights)), n), (once * (n // PEAK_BYTES) % (1 << 32))[None, :]

"""The ops. Each is a numpy function, and that function is the reference of every kernel of that name.

Called with arrays an op computes; called with symbols it records a node (graph.py). So a model's forward() is at
once the model, its numpy reference, and the source of its plan. Activations are float32 [rows, features], a row
per token. A new op needs: a function here, and native/kernels/<op>.c.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.cache import KV_TYPES
from lutra.runtime.formats import Coded, Packed, to_float32
from lutra.runtime.graph import StateSymbol, Symbol, op

__all__ = [
    "State",
    "add",
    "add_bias",
    "attention",
    "embed",
    "kv_append",
    "linear",
    "quantize",
    "relu2_mul",
    "rms_norm",
    "rope",
    "rope_angles",
    "silu_mul",
    "split",
    "stream",
    "tail",
]

Array = Any  # np.ndarray or Symbol
f32 = np.float32

INT8_PAD = 320  # int8 rows are padded to a multiple of this: of every format's group, and of 64


class State:
    """What a session is to the numpy reference: keys and values by layer, and the step's place in them.

    kv_type: how the cache stores them, one of cache.KV_TYPES. Feed n tokens: call forward(), then ``advance(n)``.
    """

    def __init__(self, kv_type: str = "f32"):
        self.type = KV_TYPES[kv_type]
        self.kv: dict[int, tuple[np.ndarray, np.ndarray]] = {}
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
    return "_" + next(a.format for a in args if isinstance(a, Packed))


@op(lambda ids, table: [(table.shape[1], f32)], suffix=_format_suffix)
def embed(ids: Array, table: Packed) -> Array:
    """Rows of the table. ids: int32 [rows, 1]."""
    rows = ids[:, 0]
    matrix = table.matrix
    if isinstance(matrix, Coded):
        return to_float32(Coded(matrix.codes[rows], matrix.scale[rows]))
    return to_float32(matrix[rows])


@op(_like)
def rms_norm(x: Array, weight: np.ndarray, *, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019)."""
    mean = np.mean(x * x, axis=-1, keepdims=True, dtype=f32)
    return x * (f32(1) / np.sqrt(mean + f32(eps))) * weight


@op(lambda x: [(-(-x.shape[1] // INT8_PAD) * INT8_PAD, np.int8), (1, f32), (1, np.int32)])
def quantize(x: Array) -> Array:
    """Activations as int8, one scale per token (BitNet b1.58, Ma et al. 2024).

    Returns codes int8 [rows, cols padded with 0], scale float32 [rows, 1] with x ~ codes * scale, and the sum of
    the codes, int32 [rows, 1].
    """
    most = np.maximum(np.abs(x).max(axis=1, keepdims=True), f32(1e-5))
    codes = np.zeros((len(x), -(-x.shape[1] // INT8_PAD) * INT8_PAD), np.int8)
    codes[:, : x.shape[1]] = np.rint(x * (f32(127) / most))
    return codes, most / f32(127), codes.sum(axis=1, keepdims=True, dtype=np.int32)


def linear(x: Array, weight: Packed) -> Array:
    """x W^T + bias. Formats of integer weights see x as int8, the others as float."""
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"{x.shape[1]} features meet a matrix of shape {weight.shape}")
    y = _linear_int8(*quantize(x), weight) if weight.codec.INT8 else _linear(x, weight)
    return y if weight.bias is None else add_bias(y, weight.bias)


@op(lambda codes, scale, sum, weight: [(weight.shape[0], f32)], name="linear", suffix=_format_suffix, local=False)
def _linear_int8(codes: Array, scale: Array, sum: Array, weight: Packed) -> Array:
    matrix: Any = weight.matrix
    products = codes[:, : weight.shape[1]].astype(np.float64) @ matrix.codes.T.astype(np.float64)  # exact
    return products.astype(f32) * (scale * matrix.scale)


@op(lambda x, weight: [(weight.shape[0], f32)], name="linear", suffix=_format_suffix, local=False)
def _linear(x: Array, weight: Packed) -> Array:
    matrix = weight.matrix
    if isinstance(matrix, Coded):
        return (x @ matrix.codes.T.astype(f32)) * matrix.scale
    return x @ matrix.T


@op(_like)
def add(a: Array, b: Array) -> Array:
    """a + b"""
    return a + b


@op(_like)
def add_bias(x: Array, bias: np.ndarray) -> Array:
    """x + bias, the same for every row."""
    return x + bias


@op(_like)
def silu_mul(gate: Array, up: Array) -> Array:
    """gate * sigmoid(gate) * up (SwiGLU: Shazeer 2020)."""
    with np.errstate(over="ignore"):
        return gate / (f32(1) + np.exp(-gate)) * up


@op(_like)
def relu2_mul(gate: Array, up: Array) -> Array:
    """max(gate, 0)^2 * up (squared ReLU: So et al. 2021)."""
    return np.maximum(gate, 0) ** 2 * up


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


@op(lambda *_, **__: [], suffix=_kv_suffix)
def kv_append(k: Array, v: Array, state: Any, *, layer: int, kv_heads: int, head_dim: int) -> None:
    """Write each row's keys and values, [rows, kv_heads * head_dim], at the row's position."""
    rows = [state.type.encode(x.reshape(len(x), kv_heads, head_dim)) for x in (k, v)]
    new = [state.type.decode(x, head_dim) for x in rows]
    old = state.kv.get(layer, (new[0][:0], new[1][:0]))
    state.kv[layer] = tuple(np.concatenate([o[: state.pos], n]) for o, n in zip(old, new, strict=True))


@op(lambda q, *_, **__: [(q.shape[1], f32)], suffix=_kv_suffix, local=False)
def attention(q: Array, state: Any, *, layer: int, heads: int, kv_heads: int, head_dim: int, scale: float) -> Array:
    """softmax(q k^T * scale) v over each row's own and earlier positions; heads share kv heads in groups."""
    keys, values = (x.astype(f32).repeat(heads // kv_heads, axis=1) for x in state.kv[layer])
    scores = np.einsum("qhd,phd->hqp", q.reshape(len(q), heads, head_dim), keys) * f32(scale)
    seen = np.arange(len(keys)) <= state.pos + np.arange(len(q))[:, None]
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqp,phd->qhd", weights, values).reshape(q.shape)


@op(_like, local=False)
def tail(x: Array, state: Any) -> Array:
    """The last rows: those whose logits are wanted."""
    return x[len(x) - state.n_outputs :]


@op(lambda data: [(len(data), np.int64)], local=False)
def stream(data: np.ndarray) -> np.ndarray:
    """The exclusive or of each part's 64-bit words. data: uint8 [parts, 1 MiB]. For measuring read bandwidth."""
    return np.bitwise_xor.reduce(data.view(np.int64), axis=1)[None, :]

"""Qwen3.5 (2026), text: most layers remember by the gated delta rule (Yang et al. 2025), the others attend.

Those that remember do as Qwen3-Next's (2025): queries, keys and values pass a short convolution, the first two become
unit vectors. Those that attend are Qwen3's, with a gate on what they found, and turn the first columns of a head only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks
from lutra.models.weights import Names
from lutra.runtime import ops
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import to_float32

UNIT_EPS = 1e-6  # of the lengths of queries and keys
QKVZ, GATES = "linear_qkvz_by_head", "linear_gates_by_head"  # keys of ours: whether heads of keys come one by one

ATTENDING: dict[str, tuple[str, ...]] = {
    "layers.{}.qkv": tuple(f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkv"),  # q: each head's, then its gate's
    "layers.{}.q_norm": ("model.layers.{}.self_attn.q_norm",),
    "layers.{}.k_norm": ("model.layers.{}.self_attn.k_norm",),
    "layers.{}.o": ("model.layers.{}.self_attn.o_proj",),
}
REMEMBERING: dict[str, tuple[str, ...]] = {
    "layers.{}.qkvz": tuple(f"model.layers.{{}}.linear_attn.in_proj_{x}" for x in ("qkv", "z")),
    "layers.{}.gates": tuple(f"model.layers.{{}}.linear_attn.in_proj_{x}" for x in "ba"),
    "layers.{}.conv": ("model.layers.{}.linear_attn.conv1d",),
    "layers.{}.A_log": ("model.layers.{}.linear_attn.A_log",),
    "layers.{}.dt_bias": ("model.layers.{}.linear_attn.dt_bias",),
    "layers.{}.memory_norm": ("model.layers.{}.linear_attn.norm",),
    "layers.{}.o": ("model.layers.{}.linear_attn.out_proj",),
}
TINY = {
    "model_type": "qwen3_5_text",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 18,
    "linear_value_head_dim": 24,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Config(blocks.Config):
    """Qwen3's, and that of the layers which remember.

    Layers that do not attend remember. taps: of the convolution. key_heads, value_heads: how many
    of each share of q and k, and of v; key_dim, value_dim: their columns. tiled: heads of v that share q and k are
    key_heads apart, not neighbours. norm_offset: what is added to a norm's stored weight, as in Gemma 2. logarithms:
    whether A_log holds those of rates, not the rates below 0. order: where the columns of q | k | v | gate lie in the
    rows of layers.{}.qkv. qkvz_order, gates_order: where those of q | k | v | z, and of b | a, lie in what layers that
    remember project; None: so.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "vocab_size": 248320,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_heads_tiled": False,
        "linear_rates_as_logarithms": True,
        QKVZ: False,
        GATES: False,
        "norm_offset": 1,
    }

    taps: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    tiled: bool
    norm_offset: float
    logarithms: bool
    order: np.ndarray
    qkvz_order: np.ndarray | None
    gates_order: np.ndarray | None

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        c = blocks.Config.read(config | {"layer_types": None, "sliding_window": None})
        if c.activation not in ("silu", "swish"):
            raise UnsupportedModelError(f"lutra has no convolution with activation {c.activation!r}")
        names = ("conv_kernel_dim", "num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
        taps, key_heads, value_heads, key_dim, value_dim = (blocks.size(config, f"linear_{name}") for name in names)
        if value_heads % key_heads:
            raise CorruptModelError(f"config.json: {value_heads} heads of values cannot share {key_heads} of keys")
        q, kv = c.heads * c.head_dim, 2 * c.kv_heads * c.head_dim
        rows = np.arange(2 * q, dtype=np.int32).reshape(c.heads, 2, c.head_dim)
        shared = value_heads // key_heads
        return cls(
            **vars(c) | {"attending": _attending(config, c.layers)},
            taps=taps,
            key_heads=key_heads,
            value_heads=value_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            tiled=bool(config["linear_heads_tiled"]),
            norm_offset=blocks.factor(config, "norm_offset") if config["norm_offset"] else 0.0,
            logarithms=bool(config["linear_rates_as_logarithms"]),
            order=np.r_[rows[:, 0].ravel(), np.arange(2 * q, 2 * q + kv, dtype=np.int32), rows[:, 1].ravel()],
            qkvz_order=_apart(key_heads, key_dim, key_dim, *[shared * value_dim] * 2) if config[QKVZ] else None,
            gates_order=_apart(key_heads, shared, shared) if config[GATES] else None,
        )

    @property
    def conv_columns(self) -> int:
        """Columns of q, k and v of a layer that remembers."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def memory_parts(self) -> tuple[int, int]:
        """Floats that a layer remembers: of the convolution, and of the delta rule."""
        matrices = ops.delta_floats(self.value_heads, self.key_dim, self.value_dim)
        return (self.taps - 1) * self.conv_columns, matrices

    @property
    def recurrent_floats(self) -> int:
        """Floats that recurrent layers remember."""
        return (self.layers - len(self.attending)) * sum(self.memory_parts)

    def norm(self, x: Any, weight: np.ndarray) -> Any:
        """x normalized, with a weight as it is stored."""
        return ops.rms_norm(x, self.weight(weight), eps=self.eps)

    def weight(self, stored: np.ndarray) -> np.ndarray:
        """A norm's weight."""
        return stored + np.float32(self.norm_offset)


def _apart(heads: int, *widths: int) -> np.ndarray:
    """Where the columns of all heads' first parts lie, then those of their second ones, ...: heads come one by one."""
    columns = np.arange(heads * sum(widths), dtype=np.int32).reshape(heads, -1)
    return np.concatenate([part.ravel() for part in np.split(columns, np.cumsum(widths)[:-1], axis=1)])


def _attending(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    if (kinds := config.get("layer_types")) is None:
        every = blocks.size(config, "full_attention_interval")
        return tuple(i for i in range(layers) if (i + 1) % every == 0)
    kinds = blocks.layer_kinds(kinds, layers, ("full_attention", "linear_attention"))
    return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    found = {role: stems for role, stems in blocks.LLAMA_NAMES.items() if role not in ATTENDING}
    for i in range(c.layers):
        for role, stems in (ATTENDING if i in c.attending else REMEMBERING).items():
            found[role.format(i)] = tuple(stem.format(i) for stem in stems)
    return found


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    q, kv, values = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.value_heads * c.value_dim
    attending = {
        "layers.{}.qkv": (2 * q + 2 * kv, c.hidden),
        "layers.{}.q_norm": (c.head_dim,),
        "layers.{}.k_norm": (c.head_dim,),
        "layers.{}.o": (c.hidden, q),
    }
    remembering = {
        "layers.{}.qkvz": (c.conv_columns + values, c.hidden),
        "layers.{}.gates": (2 * c.value_heads, c.hidden),
        "layers.{}.conv": (c.conv_columns, c.taps),
        "layers.{}.A_log": (c.value_heads,),
        "layers.{}.dt_bias": (c.value_heads,),
        "layers.{}.memory_norm": (c.value_dim,),
        "layers.{}.o": (c.hidden, values),
    }
    found = {role: shape for role, shape in blocks.shapes(c).items() if role not in attending}
    for i in range(c.layers):
        own = attending if i in c.attending else remembering
        found |= {role.format(i): shape for role, shape in own.items()}
    return found


def attend(c: Config, layer: Any, x: Any, angles: Any, state: Any, i: int) -> Any:
    """The i-th layer's attention, whose result is gated."""
    q, kv = c.heads * c.head_dim, 2 * c.kv_heads * c.head_dim
    qkv, gate = ops.split(ops.take_columns(ops.linear(x, layer.qkv), c.order), q + kv, q)
    norms = c.weight(layer.q_norm), c.weight(layer.k_norm)
    h = blocks.attend(c, qkv, angles, state, i, norms)
    return ops.linear(ops.mul(h, ops.sigmoid(gate)), layer.o)


def remember(c: Config, layer: Any, x: Any, state: Any, at: int) -> Any:
    """The gated delta rule, and what goes in and out of it. at: where its floats are in the session's memory."""
    keys, values = c.key_heads * c.key_dim, c.value_heads * c.value_dim
    qkv, z = ops.split(_ordered(ops.linear(x, layer.qkvz), c.qkvz_order), c.conv_columns, values)
    b, a = ops.split(_ordered(ops.linear(x, layer.gates), c.gates_order), c.value_heads, c.value_heads)
    weight = np.ascontiguousarray(to_float32(layer.conv.matrix).T)
    q, k, v = ops.split(ops.short_conv(qkv, weight, state, at=at, taps=c.taps, silu=True), keys, keys, values)
    # Vectors of length 1, by the norm that there is: its mean is of dim squares. Queries are shorter, as in attention.
    unit, eps = np.full(c.key_dim, c.key_dim**-0.5, np.float32), UNIT_EPS / c.key_dim
    q, k = ops.rms_norm(q, unit * unit, eps=eps), ops.rms_norm(k, unit, eps=eps)
    rate = np.exp(layer.A_log) if c.logarithms else -layer.A_log
    decay = ops.decay(ops.add_bias(a, layer.dt_bias), rate)
    at += c.memory_parts[0]
    h = ops.delta_rule(q, k, v, decay, ops.sigmoid(b), state, at=at, k_heads=c.key_heads, tiled=c.tiled)
    return ops.linear(ops.silu_mul(z, ops.rms_norm(h, layer.memory_norm, eps=c.eps)), layer.o)


def _ordered(x: Any, order: np.ndarray | None) -> Any:
    return x if order is None else ops.take_columns(x, order)


def forward(c: Config, w: Any, ids: Any, state: Any, feed_forward: Any = blocks.feed_forward) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]. feed_forward: what the i-th layer adds behind the rest."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    remembering = 0
    for i, layer in enumerate(w.layers):
        h = c.norm(x, layer.attn_norm)
        if i in c.attending:
            h = attend(c, layer, h, angles, state, i)
        else:
            h = remember(c, layer, h, state, remembering * sum(c.memory_parts))
            remembering += 1
        x = ops.add(x, h)
        x = ops.add(x, feed_forward(c, layer, i, c.norm(x, layer.mlp_norm)))
    return ops.linear(c.norm(ops.tail(x, state), w.norm), w.head)

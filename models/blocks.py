"""What several architectures share: reading a configuration, rotary frequencies, attention, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.runtime import ops
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

__all__ = [
    "LLAMA_NAMES",
    "Config",
    "Rope",
    "attend",
    "depth",
    "factor",
    "feed_forward",
    "gated",
    "layer_kinds",
    "rope_of",
    "shapes",
    "size",
    "ungated",
    "yarn_magnitude",
]

# Role -> the checkpoint tensors whose rows make it up. {} is the layer.
LLAMA_NAMES: dict[str, tuple[str, ...]] = {
    "embed": ("model.embed_tokens",),
    "layers.{}.attn_norm": ("model.layers.{}.input_layernorm",),
    "layers.{}.qkv": tuple(f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkv"),
    "layers.{}.o": ("model.layers.{}.self_attn.o_proj",),
    "layers.{}.mlp_norm": ("model.layers.{}.post_attention_layernorm",),
    "layers.{}.gate_up": tuple(f"model.layers.{{}}.mlp.{x}_proj" for x in ("gate", "up")),
    "layers.{}.down": ("model.layers.{}.mlp.down_proj",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}

LAYERS = 4096
HEAD_DIM = 8192  # at most, in native/kernels/attention.h
MEMORY = 1 << 31  # floats of a session's: places in it are 32-bit numbers
ACTIVATIONS = {
    "silu": ops.silu_mul,
    "swish": ops.silu_mul,
    "relu2": ops.relu2_mul,
    "gelu": lambda gate, up: ops.mul(ops.gelu_erf(gate), up),
    "gelu_pytorch_tanh": ops.gelu_tanh_mul,
    "gelu_new": ops.gelu_tanh_mul,
}
UNGATED: dict[str, Callable[[Any], Any]] = {
    "relu2": lambda x: ops.mul(ops.relu(x), ops.relu(x)),
    "gelu": ops.gelu_erf,
    "gelu_pytorch_tanh": ops.gelu_tanh,
    "gelu_new": ops.gelu_tanh,
}


@dataclass(frozen=True)
class Config:
    """A decoder's shape.

    frequency: float32 [n], the rotary angle per position of each of a head's first n pairs; magnitude: what rotated
    pairs are multiplied by. n_ctx: positions for which frequencies hold. windows: how many positions each layer's
    attention sees, 0: all. rotated: whether each layer's queries and keys are; others know no positions (NoPE).
    attending: the layers that have keys and values of their own.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {}  # what a configuration means that is silent

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    n_ctx: int
    windows: tuple[int, ...]
    rotated: tuple[bool, ...]
    attending: tuple[int, ...]
    eps: float
    activation: str
    frequency: np.ndarray
    magnitude: float
    rope_interleaved: bool
    tied: bool

    def __post_init__(self) -> None:
        if (floats := self.recurrent_floats) >= MEMORY:
            raise UnsupportedModelError(f"lutra has no memory of {floats} floats", f"it goes up to {MEMORY - 1}")

    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]:
        """Of each of these: heads of keys and values, and columns of each; one more than none, for the cache's sake."""
        return ((self.kv_heads, self.head_dim),) * max(1, len(self.attending))

    @property
    def kv_shared(self) -> bool:
        """Whether layers see keys and values of other layers."""
        return False

    @property
    def recurrent_floats(self) -> int:
        """Floats that recurrent layers remember."""
        return 0

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """Read a Hugging Face configuration as ``open_checkpoint`` normalizes it.

        Raises CorruptModelError for values that make no model, UnsupportedModelError for ones lutra cannot run.
        """
        config = cls.DEFAULTS | config
        heads = size(config, "num_attention_heads")
        kv_heads = size(config, "num_key_value_heads", heads)
        hidden = size(config, "hidden_size")
        head_dim = size(config, "head_dim", hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise CorruptModelError(f"{heads} heads of {head_dim} cannot share {kv_heads} key-value heads")
        if head_dim > HEAD_DIM:
            raise UnsupportedModelError(f"lutra has no attention for heads of {head_dim}", f"it goes up to {HEAD_DIM}")
        activation = config.get("hidden_act", "silu")
        if activation not in list(ACTIVATIONS):  # it may be anything
            raise UnsupportedModelError(f"lutra has no activation {activation!r}", f"it has {', '.join(ACTIVATIONS)}")
        n_ctx = size(config, "max_position_embeddings", 2048)
        layers = depth(config)
        rope = rope_of(config, head_dim)
        return cls(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=size(config, "intermediate_size"),
            vocab=size(config, "vocab_size"),
            n_ctx=min(n_ctx, rope.positions or n_ctx),
            windows=_windows(config, layers),
            rotated=_rotated(config, layers),
            attending=tuple(range(layers)),
            eps=0.0 if config.get("rms_norm_eps") == 0 else factor(config, "rms_norm_eps", 1e-6),
            activation=activation,
            frequency=rope.frequency,
            magnitude=rope.magnitude,
            rope_interleaved=bool(config.get("rope_interleaved", False)),
            tied=bool(config.get("tie_word_embeddings", False)),
        )


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight in a Llama-like model."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    head = {} if c.tied else {"head": (c.vocab, c.hidden)}
    return {
        "embed": (c.vocab, c.hidden),
        "layers.{}.attn_norm": (c.hidden,),
        "layers.{}.qkv": (q + 2 * kv, c.hidden),
        "layers.{}.o": (c.hidden, q),
        "layers.{}.mlp_norm": (c.hidden,),
        "layers.{}.gate_up": (2 * c.intermediate, c.hidden),
        "layers.{}.down": (c.hidden, c.intermediate),
        "norm": (c.hidden,),
        **head,
    }


def size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """A number of things that the configuration gives. CorruptModelError for anything else."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise CorruptModelError(f"config.json: {key} is {value!r}, which is no size")
    return value


def depth(config: dict[str, Any]) -> int:
    """Layers. UnsupportedModelError for more than any model has: what is made for each would not end."""
    layers = size(config, "num_hidden_layers")
    if layers > LAYERS:
        raise UnsupportedModelError(f"lutra has no models of {layers} layers", f"it goes up to {LAYERS}")
    return layers


def layer_kinds(said: Any, layers: int, known: Collection[str]) -> list[str]:
    """Each layer's kind, as ``layer_types`` says it.

    Raises CorruptModelError for what is no list of that many, UnsupportedModelError for a kind that is not known.
    """
    if not isinstance(said, list) or len(said) != layers or not all(isinstance(kind, str) for kind in said):
        raise CorruptModelError(f"config.json: layer_types is {said!r:.80}, which is no list of {layers} layers")
    if unknown := [kind for kind in said if kind not in known]:
        raise UnsupportedModelError(f"lutra has no layers {unknown[0]!r:.40} here", f"it has {', '.join(known)}")
    return said


def _windows(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    """Each layer's sliding window. Those that have one are listed, come by a pattern, or begin with a certain layer."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    window = size(config, "sliding_window") if window else 0
    if (kinds := config.get("layer_types")) is None:
        if (every := config.get("sliding_window_pattern")) is not None:
            every = size(config, "sliding_window_pattern")
            return tuple(window if (i + 1) % every else 0 for i in range(layers))
        first = size(config, "max_window_layers") if config.get("max_window_layers") else 0
        return tuple(window if i >= first else 0 for i in range(layers))
    kinds = layer_kinds(kinds, layers, ("full_attention", "sliding_attention"))
    if not window and "sliding_attention" in kinds:
        raise CorruptModelError("config.json: layer_types has windows, but no sliding_window says how wide they are")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _rotated(config: dict[str, Any], layers: int) -> tuple[bool, ...]:
    """Whether each layer's queries and keys are rotated. A list has 1 for those that are; or else every nth is not."""
    if (listed := config.get("no_rope_layers")) is None:
        every = size(config, "no_rope_layer_interval") if config.get("no_rope_layer_interval") else layers + 1
        return tuple((i + 1) % every != 0 for i in range(layers))
    if not isinstance(listed, list) or len(listed) < layers or not all(each in (0, 1) for each in listed):
        raise CorruptModelError(f"config.json: no_rope_layers is {listed!r:.80}, which is no list of {layers} layers")
    return tuple(bool(each) for each in listed[:layers])


def factor(config: dict[str, Any], key: str, default: float = 1.0) -> float:
    """A positive number of the configuration. CorruptModelError for anything else."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise CorruptModelError(f"config.json: {key} is {value!r}, which is no positive number")
    return float(value)


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies, float32 [pairs]; the factor of what they turn; the positions they hold for, None: any."""

    frequency: np.ndarray
    magnitude: float = 1.0
    positions: int | None = None


def rope_of(config: dict[str, Any], head_dim: int) -> Rope:
    """theta^(-2j / d) for the pairs j of the d = head_dim columns that turn, scaled as ``rope_scaling`` says."""
    theta, scaling = factor(config, "rope_theta", 10000.0), config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise CorruptModelError(f"config.json: rope_scaling is {scaling!r:.80}, which is no table")
    turning = int(head_dim * factor(config, "partial_rotary_factor"))
    if not 0 < turning <= head_dim or turning % 2:
        raise CorruptModelError(f"config.json: partial_rotary_factor turns {turning} of a head's {head_dim} columns")
    exponents = np.arange(0, turning, 2, dtype=np.float32) / np.float32(turning)
    frequency = (1.0 / theta**exponents).astype(np.float32)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in list(_ROPES):
        raise UnsupportedModelError(f"lutra does not know rope_type {kind!r}", f"it knows {', '.join(_ROPES)}")
    try:
        return _ROPES[kind](frequency, scaling, config)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CorruptModelError(f"rope_scaling {scaling!r:.200} makes no {kind} rope: {error!r}") from None


def _linear_rope(frequency: np.ndarray, scaling: dict[str, Any], _: Any) -> Rope:
    return Rope(frequency / np.float32(factor(scaling, "factor")))


def _llama3_rope(frequency: np.ndarray, scaling: dict[str, Any], _: Any) -> Rope:
    """Llama 3.1's context extension: long wavelengths slowed by ``factor``, short ones kept, a ramp between."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(scaling["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    ramp = np.clip((turns - low) / (high - low), 0, 1)
    return Rope(((1 - ramp) * frequency / factor + ramp * frequency).astype(np.float32))


def _yarn_rope(frequency: np.ndarray, scaling: dict[str, Any], config: dict[str, Any]) -> Rope:
    """YaRN (Peng et al. 2023, 3.2): pairs that turn often are kept, those that turn seldom are slowed by ``factor``."""
    pairs, theta = len(frequency), float(config.get("rope_theta", 10000.0))
    original = float(scaling.get("original_max_position_embeddings") or config["max_position_embeddings"])
    factor = float(scaling["factor"])

    def pair(turns: float) -> float:
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair(float(scaling.get("beta_fast") or 32)), pair(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    slowed = np.clip((np.arange(pairs) - low) / max(high - low, 0.001), 0, 1)
    magnitude = _yarn_magnitude(scaling, factor)
    positions = int(original) if scaling.get("llama_4_scaling_beta") else None  # beyond, queries are scaled, too
    return Rope((frequency / factor * slowed + frequency * (1 - slowed)).astype(np.float32), magnitude, positions)


def _yarn_magnitude(scaling: dict[str, Any], factor: float) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return yarn_magnitude(factor, float(scaling["mscale"])) / yarn_magnitude(
            factor, float(scaling["mscale_all_dim"])
        )
    return yarn_magnitude(factor)


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """What queries and keys are multiplied by when contexts grow by a factor (Peng et al. 2023, 3.4)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _long_rope(frequency: np.ndarray, scaling: dict[str, Any], config: dict[str, Any]) -> Rope:
    """LongRoPE (Ding et al. 2024): a factor per pair. Those for contexts as long as the original's are used.

    Longer contexts have others, under which all that was cached before would have to be made anew.
    """
    short = np.array(scaling["short_factor"], np.float32)
    if short.shape != frequency.shape:
        raise ValueError(f"{len(short)} factors for {len(frequency)} pairs")
    longest = int(config["max_position_embeddings"])
    original = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
    original = size({"original_max_position_embeddings": original or longest}, "original_max_position_embeddings")
    factor = longest / original if original < longest else float(scaling.get("factor") or 1.0)
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(frequency / short, float(magnitude), original)


def _factored_rope(frequency: np.ndarray, scaling: dict[str, Any], _: Any) -> Rope:
    """A factor per pair, as GGUF files keep what llama3's scaling makes."""
    factors = np.array(scaling["factors"], np.float32)
    if factors.shape != frequency.shape or not (factors > 0).all():
        raise ValueError(f"{factors.size} factors for {len(frequency)} pairs")
    return Rope(frequency / factors)


_ROPES: dict[str, Callable[[np.ndarray, dict[str, Any], dict[str, Any]], Rope]] = {
    "default": lambda frequency, scaling, config: Rope(frequency),
    "dynamic": lambda frequency, scaling, config: Rope(frequency),  # up to max_position_embeddings, nothing is scaled
    "factors": _factored_rope,
    "linear": _linear_rope,
    "mrope": lambda frequency, scaling, config: Rope(frequency),  # several dimensions for images, in text all one
    "llama3": _llama3_rope,
    "yarn": _yarn_rope,
    "longrope": _long_rope,
    "su": _long_rope,  # as the first releases call it
}


def attend(
    c: Config,
    qkv: Any,
    angles: Any,
    state: Any,
    layer: int,
    norms: Sequence[np.ndarray] = (),
    *,
    norms_last: bool = False,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> Any:
    """The layer's queries and keys rotated, appended to the cache, and attended to.

    qkv: [rows, q | k | v] -> [rows, heads * head_dim].
    norms: the weights [head_dim] of norms of each head's queries and keys, before they are rotated; norms_last: after
    it. scale: of scores; None: head_dim ** -0.5. cap, sinks: as ops.attention's. angles None: nothing is rotated.
    """
    q, k, v = ops.split(qkv, c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
    if norms and not norms_last:
        q, k = _normed(c, q, k, norms)
    if angles is not None and c.rotated[layer]:
        q, k = (ops.rope(x, angles, head_dim=c.head_dim, interleaved=c.rope_interleaved) for x in (q, k))
    if norms and norms_last:
        q, k = _normed(c, q, k, norms)
    at = ops.kv_place(state, c.kv_shapes[: c.attending.index(layer)])
    ops.kv_append(k, v, state, at=at, kv_heads=c.kv_heads, head_dim=c.head_dim)
    return ops.attention(
        q,
        state,
        *([] if sinks is None else [sinks]),
        at=at,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        window=c.windows[layer],
        scale=c.head_dim**-0.5 if scale is None else scale,
        cap=cap,
    )


def _normed(c: Config, q: Any, k: Any, norms: Sequence[np.ndarray]) -> list[Any]:
    return [ops.rms_norm(x, weight, eps=c.eps) for x, weight in zip((q, k), norms, strict=True)]


def gated(c: Config, gate_up: Any) -> Any:
    """activation(gate) * up; gate_up: [rows, gate | up]."""
    width = gate_up.shape[1] // 2
    gate, up = ops.split(gate_up, width, width)
    return ACTIVATIONS[c.activation](gate, up)


def feed_forward(c: Config, layer: Any, i: int, x: Any) -> Any:
    """The i-th layer's two matrices of gates and what is up, and the one down. Mixtures have one that looks at i."""
    return ops.linear(gated(c, ops.linear(x, layer.gate_up)), layer.down)


def ungated(c: Config, layer: Any, x: Any) -> Any:
    """A layer's two matrices, an activation between. UnsupportedModelError for one that lutra has with a gate only."""
    if c.activation not in UNGATED:
        raise UnsupportedModelError(f"lutra has no {c.activation!r} without a gate", f"it has {', '.join(UNGATED)}")
    return ops.linear(UNGATED[c.activation](ops.linear(x, layer.up)), layer.down)

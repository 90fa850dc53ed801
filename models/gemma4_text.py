"""Gemma 4 (2026), text: Gemma 3 whose global layers have heads of a size of their own, and more ideas in some models.

A token has a vector for each layer, beside the one it begins with. The last layers see keys and values of others before
them, so only tokens whose logits are wanted pass them. Mixtures have experts beside a feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, gemma3_text, qwen3_moe
from lutra.models.weights import Experts, Names, Unused
from lutra.runtime import ops
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import experts

LAYER = "model.layers.{}"
NORMS = {  # role -> its tensor
    "attn_norm": "input_layernorm",
    "attn_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}
MIXTURE_NORMS = {
    "dense_out_norm": "post_feedforward_layernorm_1",
    "experts_norm": "pre_feedforward_layernorm_2",
    "experts_out_norm": "post_feedforward_layernorm_2",
}
TINY = gemma3_text.TINY | {
    "model_type": "gemma4_text",
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "global_head_dim": 40,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 12,
    "vocab_size_per_layer_input": 128,
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 3,
    "moe_intermediate_size": 40,
}


@dataclass(frozen=True)
class Config(gemma3_text.Config):
    """Gemma 3's; ``head_dim`` and ``kv_heads`` are those of local layers.

    global_head_dim, global_kv_heads: of the others, whose ``frequency`` is 0 where pairs do not turn. values_are_keys:
    whether these have no values of their own. sources: the layer whose keys and values each layer sees. widths: of each
    layer's feed-forward. layer_vector: columns of a token's vector for each layer, 0: there is none. experts: of a
    layer's mixture, 0: there is none; routing and the rest as qwen3_moe's.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = gemma3_text.Config.DEFAULTS | {
        "num_hidden_layers": 30,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "sliding_window": 512,
        "global_head_dim": 512,
        "num_global_key_value_heads": None,
        "attention_k_eq_v": False,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "enable_moe_block": False,
        "rope_scaling": {"rope_type": "proportional"},
        "partial_rotary_factor": 0.25,
        "query_pre_attn_scalar": 1,  # scores are not scaled
        "norm_offset": 0,
    }

    global_head_dim: int
    global_kv_heads: int
    values_are_keys: bool
    sources: tuple[int, ...]
    widths: tuple[int, ...]
    layer_vector: int
    layer_vocab: int
    experts: int
    routing: qwen3_moe.Routing | None
    biased: bool
    expert_intermediate: int

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As gemma3_text.Config.read."""
        if "rope_theta" in config:  # what is silent about angles means others than what says that they are not scaled
            config = {"rope_scaling": None, "partial_rotary_factor": 1.0} | config
        config = cls.DEFAULTS | config
        if config.get("use_bidirectional_attention") == "vision":  # of images' tokens only
            config["use_bidirectional_attention"] = None
        layers = blocks.depth(config)
        config["layer_types"] = _kinds(config, layers)
        c = gemma3_text.Config.read(config | {"rope_scaling": None, "partial_rotary_factor": 1.0})
        head_dim, kv_heads = _global_heads(config, c)
        if c.heads % kv_heads or head_dim % 2 or head_dim > blocks.HEAD_DIM:
            raise CorruptModelError(f"config.json: {c.heads} heads of {head_dim} cannot share {kv_heads}")
        shared = _count(config, "num_kv_shared_layers")
        wide = 2 if config["use_double_wide_mlp"] else 1
        mixture = bool(config["enable_moe_block"])
        count = blocks.size(config, "num_experts") if mixture else 0
        routing = {"num_experts_per_tok": config.get("top_k_experts"), "norm_topk_prob": True}
        if count > experts.MOST:
            raise UnsupportedModelError(f"lutra has no mixtures of {count} experts", f"it goes up to {experts.MOST}")
        vector = _count(config, "hidden_size_per_layer_input")
        layer_vocab = blocks.size(config, "vocab_size_per_layer_input") if vector else 0
        if vector and layer_vocab < c.vocab:
            raise UnsupportedModelError(f"lutra runs no Gemma 4 with {layer_vocab} vectors for {c.vocab} tokens")
        rope = _global_rope(config, head_dim)
        own = {"frequency": rope.frequency, "magnitude": rope.magnitude, "attending": tuple(range(layers - shared))}
        return cls(
            **vars(c) | own,
            global_head_dim=head_dim,
            global_kv_heads=kv_heads,
            values_are_keys=bool(config["attention_k_eq_v"]),
            sources=_sources(c.windows, shared),
            widths=tuple(c.intermediate * (wide if i >= layers - shared else 1) for i in range(layers)),
            layer_vector=vector,
            layer_vocab=layer_vocab,
            experts=count,
            routing=qwen3_moe.Routing.read(routing, count) if mixture else None,
            biased=False,
            expert_intermediate=blocks.size(config, "moe_intermediate_size") if mixture else 0,
        )

    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]:
        """Of each layer that has keys and values: heads of keys and values, and columns of each."""
        return tuple(self.heads_of(i) for i in self.attending)

    @property
    def kv_shared(self) -> bool:
        """Whether layers see keys and values of other layers."""
        return len(self.attending) < self.layers

    def heads_of(self, i: int) -> tuple[int, int]:
        """The i-th layer's heads of keys and values, and the columns of each."""
        return (self.kv_heads, self.head_dim) if self.windows[i] else (self.global_kv_heads, self.global_head_dim)

    def parts_of(self, i: int) -> tuple[int, ...]:
        """Columns of what the i-th layer projects: queries, and keys and values where it has them."""
        kv_heads, head_dim = self.heads_of(i)
        own = 0 if self.sources[i] != i else 1 if self.values_are_keys and not self.windows[i] else 2
        return (self.heads * head_dim, *[kv_heads * head_dim] * own)


def _count(config: dict[str, Any], key: str) -> int:
    return blocks.size(config, key) if config.get(key) else 0


def _kinds(config: dict[str, Any], layers: int) -> Any:
    """The layers' types, of which the last is always global."""
    kinds, every = config.get("layer_types"), blocks.size(config, "sliding_window_pattern")
    if kinds is None:
        kinds = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]
    return [*kinds[:-1], "full_attention"] if isinstance(kinds, list) and len(kinds) == layers else kinds


def _global_heads(config: dict[str, Any], c: gemma3_text.Config) -> tuple[int, int]:
    """Columns of a global layer's head, and its heads of keys and values. transformers 5 lists these layer by layer."""
    if (listed := config.get("per_layer_config")) is None:
        own = config["attention_k_eq_v"] and config["num_global_key_value_heads"]
        heads = blocks.size(config, "num_global_key_value_heads") if own else c.kv_heads
        return blocks.size(config, "global_head_dim"), heads
    if not isinstance(listed, dict) or not all(isinstance(own, dict) for own in listed.values()):
        raise CorruptModelError(f"config.json: per_layer_config is {listed!r:.80}, which is no table of layers")
    each = [
        {"head_dim": c.head_dim, "num_key_value_heads": c.kv_heads} | listed.get(str(i), {})
        for i, window in enumerate(c.windows)
        if not window
    ]
    local = {str(i) for i, window in enumerate(c.windows) if window}
    if local & set(listed) or any(own != each[0] or len(own) > 2 for own in each):
        raise UnsupportedModelError(f"lutra runs no Gemma 4 with layers of {listed!r:.200}")
    return blocks.size(each[0], "head_dim"), blocks.size(each[0], "num_key_value_heads")


def _global_rope(config: dict[str, Any], head_dim: int) -> blocks.Rope:
    """Of proportional angles the first pairs turn as if all did, and the others do not."""
    scaling = config["rope_scaling"]
    if not isinstance(scaling, dict) or scaling.get("rope_type") != "proportional":
        return blocks.rope_of(config | {"partial_rotary_factor": 1.0}, head_dim)
    rope = blocks.rope_of(config | {"rope_scaling": None, "partial_rotary_factor": 1.0}, head_dim)
    turning = int(blocks.factor(config, "partial_rotary_factor") * head_dim // 2)
    turns = np.arange(head_dim // 2) < turning
    return blocks.Rope((rope.frequency * turns / np.float32(blocks.factor(scaling, "factor"))).astype(np.float32))


def _sources(windows: tuple[int, ...], shared: int) -> tuple[int, ...]:
    """Layers have their own keys and values; the last see those of the last layer of their kind that has."""
    own = len(windows) - shared
    last = {bool(window): i for i, window in enumerate(windows[: max(own, 0)])}
    if missing := [i for i in range(max(own, 0), len(windows)) if bool(windows[i]) not in last]:
        raise CorruptModelError(f"config.json: there are no keys and values that layer {missing[0]} could share")
    return tuple(i if i < own else last[bool(window)] for i, window in enumerate(windows))


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    found: dict[str, Any] = {"embed": ("model.embed_tokens",), "norm": ("model.norm",), "head": ("lm_head",)}
    norms = NORMS | (MIXTURE_NORMS if c.experts else {})
    if c.layer_vector:
        found["layer_embed"] = ("model.embed_tokens_per_layer",)
        found["layer_vectors"] = ("model.per_layer_model_projection",)
        found["layer_vectors_norm"] = ("model.per_layer_projection_norm",)
        norms = norms | {"vector_out_norm": "post_per_layer_input_norm"}
        found["layers.{}.vector_gate"] = (f"{LAYER}.per_layer_input_gate",)
        found["layers.{}.vector_out"] = (f"{LAYER}.per_layer_projection",)
    found |= {f"layers.{{}}.{role}": (f"{LAYER}.{tensor}",) for role, tensor in norms.items()}
    found["layers.{}.q_norm"] = (f"{LAYER}.self_attn.q_norm",)
    found["layers.{}.o"] = (f"{LAYER}.self_attn.o_proj",)
    found["layers.{}.gate_up"] = blocks.LLAMA_NAMES["layers.{}.gate_up"]
    found["layers.{}.down"] = blocks.LLAMA_NAMES["layers.{}.down"]
    found["layers.{}.layer_scalar"] = (f"{LAYER}.layer_scalar",)
    unused: list[str] = []
    for i in range(c.layers):
        layer, projected = LAYER.format(i), "qkv"[: len(c.parts_of(i))]
        found[f"layers.{i}.qkv"] = tuple(f"{layer}.self_attn.{x}_proj" for x in projected)
        if c.sources[i] == i:
            found[f"layers.{i}.k_norm"] = (f"{layer}.self_attn.k_norm",)
        else:
            unused += [f"{layer}.self_attn.{part}" for part in ("k_proj", "v_proj", "k_norm")]
        if c.experts:
            each = [f"{layer}.experts.{e}" for e in range(c.experts)]
            found[f"layers.{i}.router"] = (f"{layer}.router.proj",)
            found[f"layers.{i}.router_norm"] = (f"{layer}.router.scale",)
            found[f"layers.{i}.expert_scale"] = (f"{layer}.router.per_expert_scale",)
            found[f"layers.{i}.experts_gate_up"] = Experts((f"{one}.gate_proj", f"{one}.up_proj") for one in each)
            found[f"layers.{i}.experts_down"] = Experts((f"{one}.down_proj",) for one in each)
    return found | {"unused": Unused(unused)}


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    found: dict[str, tuple[int, ...]] = {"embed": (c.vocab, c.hidden), "norm": (c.hidden,)}
    if not c.tied:
        found["head"] = (c.vocab, c.hidden)
    norms = [*NORMS, *(MIXTURE_NORMS if c.experts else ())]
    if c.layer_vector:
        columns = c.layers * c.layer_vector
        found["layer_embed"] = (c.layer_vocab, columns)
        found["layer_vectors"] = (columns, c.hidden)
        found["layer_vectors_norm"] = (c.layer_vector,)
        found["layers.{}.vector_gate"] = (c.layer_vector, c.hidden)
        found["layers.{}.vector_out"] = (c.hidden, c.layer_vector)
        norms.append("vector_out_norm")
    found |= {f"layers.{{}}.{role}": (c.hidden,) for role in norms}
    found["layers.{}.layer_scalar"] = (1,)
    for i in range(c.layers):
        _, head_dim = c.heads_of(i)
        found[f"layers.{i}.qkv"] = (sum(c.parts_of(i)), c.hidden)
        found[f"layers.{i}.q_norm"] = (head_dim,)
        found[f"layers.{i}.o"] = (c.hidden, c.heads * head_dim)
        found[f"layers.{i}.gate_up"] = (2 * c.widths[i], c.hidden)
        found[f"layers.{i}.down"] = (c.hidden, c.widths[i])
        if c.sources[i] == i:
            found[f"layers.{i}.k_norm"] = (head_dim,)
        if c.experts:
            found[f"layers.{i}.router"] = (c.experts, c.hidden)
            found[f"layers.{i}.router_norm"] = (c.hidden,)
            found[f"layers.{i}.expert_scale"] = (c.experts,)
            found[f"layers.{i}.experts_gate_up"] = (c.experts, 2 * c.expert_intermediate, c.hidden)
            found[f"layers.{i}.experts_down"] = (c.experts, c.hidden, c.expert_intermediate)
    return found


def attend(c: Config, layer: Any, i: int, x: Any, angles: Any, state: Any) -> Any:
    """The i-th layer's attention; keys and values are appended to the cache, or those of another layer are seen."""
    kv_heads, head_dim = c.heads_of(i)
    q, *own = ops.split(ops.linear(x, layer.qkv), *c.parts_of(i))
    q = ops.rope(c.norm(q, layer.q_norm), angles, head_dim=head_dim, interleaved=False)
    at = ops.kv_place(state, c.kv_shapes[: c.sources[i]])
    if own:
        k = ops.rope(c.norm(own[0], layer.k_norm), angles, head_dim=head_dim, interleaved=False)
        v = ops.rms_norm(own[-1], np.ones(head_dim, np.float32), eps=c.eps)
        ops.kv_append(k, v, state, at=at, kv_heads=kv_heads, head_dim=head_dim)
    h = ops.attention(
        q,
        state,
        at=at,
        heads=c.heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=c.windows[i],
        scale=c.score_scale,
        cap=c.score_cap,
    )
    return ops.linear(h, layer.o)


def mixture(c: Config, layer: Any, x: Any) -> Any:
    """What the chosen experts give, each times its scale. The router has a norm of its own."""
    seen = ops.rms_norm(x, layer.router_norm * np.float32(c.hidden**-0.5), eps=c.eps)
    return qwen3_moe.mixture(c, layer, c.norm(x, layer.experts_norm), seen=seen, scales=layer.expert_scale)


def feed_forward(c: Config, layer: Any, i: int, x: Any) -> Any:
    """What the i-th layer adds behind its attention."""
    h = blocks.feed_forward(c, layer, i, c.norm(x, layer.mlp_norm))
    if c.experts:
        h = ops.add(c.norm(h, layer.dense_out_norm), c.norm(mixture(c, layer, x), layer.experts_out_norm))
    return c.norm(h, layer.mlp_out_norm)


def layer_vectors(c: Config, w: Any, ids: Any, x: Any) -> Any:
    """Every layer's vector of a token, side by side: half from a table, half made of what the token begins with."""
    made = ops.scale(ops.linear(x, w.layer_vectors), factor=c.hidden**-0.5)
    stored = ops.scale(ops.embed(ids, w.layer_embed), factor=c.layer_vector**0.5)
    return ops.scale(ops.add(c.norm(made, w.layer_vectors_norm), stored), factor=2**-0.5)


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    everywhere = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    nearby = ops.rope_angles(ids, c.local_frequency, state, magnitude=1.0)
    x = ops.scale(ops.embed(ids, w.embed), factor=c.embed_scale)
    vectors = layer_vectors(c, w, ids, x) if c.layer_vector else None
    for i, layer in enumerate(w.layers):
        if i == len(c.attending):  # nothing behind it is for later tokens to see
            x, everywhere, nearby = (ops.tail(each, state) for each in (x, everywhere, nearby))
            vectors = ops.tail(vectors, state) if c.layer_vector else None
        h = attend(c, layer, i, c.norm(x, layer.attn_norm), nearby if c.windows[i] else everywhere, state)
        x = ops.add(x, c.norm(h, layer.attn_out_norm))
        x = ops.add(x, feed_forward(c, layer, i, x))
        if c.layer_vector:
            own = ops.split(vectors, *[c.layer_vector] * c.layers)[i]
            h = blocks.ACTIVATIONS[c.activation](ops.linear(x, layer.vector_gate), own)
            x = ops.add(x, c.norm(ops.linear(h, layer.vector_out), layer.vector_out_norm))
        x = ops.scale(x, factor=float(layer.layer_scalar[0]))
    x = x if c.kv_shared else ops.tail(x, state)
    logits = ops.linear(c.norm(x, w.norm), w.head)
    return ops.soft_cap(logits, cap=c.logit_cap) if c.logit_cap else logits

"""Mamba 2's layer (Dao & Gu 2024), as several architectures have it between others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.models import blocks
from lutra.runtime import ops
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import to_float32

__all__ = ["Mixer", "names", "shapes"]


@dataclass(frozen=True)
class Mixer:
    """The layer's sizes.

    heads, width: heads and the columns of each. groups: of heads that share what goes in and comes out; dim: columns of
    these. taps: of the convolution. least, most: limits of a step. eps: of the norm of what comes out, in groups; None:
    there is none. gate_first: whether it is gated before. logarithms: whether A_log holds those of rates, not the rates
    below 0.
    """

    heads: int
    width: int
    groups: int
    dim: int
    taps: int
    least: float = 0.0
    most: float = math.inf
    eps: float | None = 1e-5
    gate_first: bool = True
    logarithms: bool = True

    @classmethod
    def read(cls, config: dict[str, Any], keys: tuple[str, str, str, str, str], **others: Any) -> Mixer:
        """keys: what the configuration calls heads, width, groups, dim and taps. Raises as blocks.Config.read."""
        heads, width, groups, dim, taps = (blocks.size(config, key) for key in keys)
        if heads % groups:
            raise CorruptModelError(f"config.json: {groups} groups cannot share {heads} heads")
        if config.get("hidden_act", "silu") not in ("silu", "swish", "relu2"):  # the last is of feed-forwards
            raise UnsupportedModelError(f"lutra has no convolution with activation {config['hidden_act']!r:.40}")
        least, most = _limits(config.get("time_step_limit"))
        logarithms = config.get("rates_as_logarithms", True)
        return cls(heads, width, groups, dim, taps, least, most, logarithms=logarithms, **others)

    @property
    def inner(self) -> int:
        """Columns of all heads."""
        return self.heads * self.width

    @property
    def conv_columns(self) -> int:
        """Columns that pass the convolution: x, b and c."""
        return self.inner + 2 * self.groups * self.dim

    @property
    def projected(self) -> int:
        """Columns of what is projected: a gate, those, and a step for each head."""
        return self.inner + self.conv_columns + self.heads

    @property
    def floats(self) -> int:
        """Floats that a layer remembers: of the convolution, and its heads' matrices."""
        return (self.taps - 1) * self.conv_columns + ops.delta_floats(self.heads, self.dim, self.width)

    def __call__(self, layer: Any, projected: Any, state: Any, at: int) -> Any:
        """[rows, projected] to [rows, hidden]. at: where its floats are in the session's memory."""
        gate, xbc, dt = ops.split(projected, self.inner, self.conv_columns, self.heads)
        weight = np.ascontiguousarray(to_float32(layer.conv.matrix).T)
        bias = [] if layer.conv.bias is None else [layer.conv.bias]
        xbc = ops.short_conv(xbc, weight, state, *bias, at=at, taps=self.taps, silu=True)
        x, b, c = ops.split(xbc, self.inner, self.groups * self.dim, self.groups * self.dim)
        dt = ops.softplus(ops.add_bias(dt, layer.dt_bias), least=self.least, most=self.most)
        rate = np.exp(layer.A_log) if self.logarithms else -layer.A_log
        at += (self.taps - 1) * self.conv_columns
        h = ops.state_space(x, b, c, dt, rate, layer.skip, state, at=at, groups=self.groups)
        if self.gate_first:
            return ops.linear(self._norm(layer, ops.silu_mul(gate, h)), layer.mixer_out)
        return ops.linear(ops.silu_mul(gate, self._norm(layer, h)), layer.mixer_out)

    def _norm(self, layer: Any, x: Any) -> Any:
        if self.eps is None:
            return x
        if self.groups == 1:
            return ops.rms_norm(x, layer.mixer_norm, eps=self.eps)
        same = np.ones(self.inner // self.groups, np.float32)
        return ops.scale_columns(ops.rms_norm(x, same, eps=self.eps), layer.mixer_norm)


def _limits(said: Any) -> tuple[float, float]:
    if said is None:
        return 0.0, math.inf
    try:  # transformers 5 writes infinity as a table
        least, most = (float(limit["__float__"] if isinstance(limit, dict) else limit) for limit in said)
    except (TypeError, ValueError, KeyError):
        raise CorruptModelError(f"config.json: time_step_limit is {said!r:.80}, which are no two numbers") from None
    if not 0 <= least <= most:
        raise CorruptModelError(f"config.json: time_step_limit is {said!r:.80}")
    return least, most


def names(stem: str, mixer: Mixer) -> dict[str, tuple[str, ...]]:
    """A layer's roles -> tensors whose names begin with the stem."""
    norm: dict[str, tuple[str, ...]] = {} if mixer.eps is None else {"mixer_norm": (f"{stem}.norm",)}
    return norm | {
        "mixer_in": (f"{stem}.in_proj",),
        "conv": (f"{stem}.conv1d",),
        "A_log": (f"{stem}.A_log",),
        "dt_bias": (f"{stem}.dt_bias",),
        "skip": (f"{stem}.D",),
        "mixer_out": (f"{stem}.out_proj",),
    }


def shapes(m: Mixer, hidden: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's weights."""
    norm: dict[str, tuple[int, ...]] = {} if m.eps is None else {"mixer_norm": (m.inner,)}
    return norm | {
        "mixer_in": (m.projected, hidden),
        "conv": (m.conv_columns, m.taps),
        "A_log": (m.heads,),
        "dt_bias": (m.heads,),
        "skip": (m.heads,),
        "mixer_out": (hidden, m.inner),
    }

"""Formats: what is packed comes back, and what cannot be held is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.runtime import formats
from lutra.runtime.errors import CorruptModelError, LutraError, UnsupportedModelError
from lutra.runtime.formats import BF16, Coded, to_float32

sizes = st.integers(1, 70)


def ternary(rows, cols, seed):
    rng = np.random.default_rng(seed)
    return Coded(rng.integers(-1, 2, (rows, cols)).astype(np.int8), rng.standard_normal(rows).astype(np.float32))


@given(sizes, sizes, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_t5_returns_every_ternary_matrix(rows, cols, seed):
    matrix = ternary(rows, cols, seed)
    packed = formats.pack(matrix, "t5").check("x")
    np.testing.assert_array_equal(packed.matrix.codes, matrix.codes)
    np.testing.assert_array_equal(packed.matrix.scale, matrix.scale)


def test_every_t5_byte_holds_five_trits_and_all_243_occur():
    trits = np.array(np.meshgrid(*[[-1, 0, 1]] * 5, indexing="ij")).reshape(5, -1).T.astype(np.int8)  # [243, 5]
    matrix = Coded(np.repeat(trits, 4, axis=1).reshape(243, 5 * 4), np.ones(243, np.float32))  # four equal bytes a row
    packed = formats.pack(matrix, "t5")
    np.testing.assert_array_equal(packed.matrix.codes, matrix.codes)
    assert len(np.unique(packed.parts["data"].reshape(-1, 16, 4).reshape(-1, 4)[:243])) == 243


def test_t5_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="ternary"):
        formats.pack(Coded(np.full((2, 2), 2, np.int8), np.ones(2, np.float32)), "t5")
    with pytest.raises(UnsupportedModelError, match="65536"):
        formats.codec("t5").layout(1, 65537)


@given(sizes, sizes, st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_floats_round_to_the_nearest(rows, cols, seed):
    x = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    np.testing.assert_array_equal(to_float32(formats.pack(x, "f32").matrix), x)
    np.testing.assert_array_equal(to_float32(formats.pack(x, "f16").matrix), x.astype(np.float16))
    assert (np.abs(to_float32(formats.pack(x, "bf16").matrix) - x) <= np.abs(x) / 256).all()
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    assert (np.abs(to_float32(formats.pack(x, "q8").matrix) - x) <= step * 0.5001).all()


def test_bf16_bits_are_kept_as_they_are():
    bits = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(formats.pack(bits.view(BF16), "bf16").parts["data"], bits)


def test_q8_of_zeros_is_zeros():
    assert not to_float32(formats.pack(np.zeros((3, 5), np.float32), "q8").matrix).any()


def test_parts_must_be_what_the_format_lays_out():
    packed = formats.pack(ternary(5, 7, 0), "t5")
    for parts in (
        {"data": packed.parts["data"]},
        packed.parts | {"data": packed.parts["data"][:, :-1]},
        packed.parts | {"scale": packed.parts["scale"].astype(np.float64)},
        packed.parts | {"more": packed.parts["scale"]},
    ):
        with pytest.raises(CorruptModelError, match="layer"):
            formats.Packed("t5", (5, 7), parts).check("layer")
    with pytest.raises(LutraError, match="nothing"):
        formats.codec("nothing")

"""A session's memory: what is written is read again, in every type and whatever the order in memory."""

import numpy as np
import pytest

from lutra.runtime.cache import KV_TYPES, Cache, position_bytes


@pytest.mark.parametrize("head_dim", [2, 16, 48, 64, 100, 128])
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_read_gives_what_was_written(kv_type, head_dim):
    rng, shapes = np.random.default_rng(0), [(3, head_dim), (1, 34), (3, head_dim)]
    cache = Cache(kv_type, shapes, 6, 45)
    rows = rng.integers(0, 256, (45, position_bytes(kv_type, shapes)), dtype=np.uint8)
    cache.write(rows)
    for n in (45, 33, 32, 16, 1, 0):
        np.testing.assert_array_equal(cache.read(n), rows[:n])
    cache.write(rows[1:18])
    np.testing.assert_array_equal(cache.read(45)[17:], rows[17:])
    np.testing.assert_array_equal(cache.read(17), rows[1:18])


@pytest.mark.parametrize("head_dim", [2, 17, 64, 100])
@pytest.mark.parametrize(("kv_type", "levels"), [("f32", 2**24), ("f16", 2**11), ("q8", 127), ("q4", 8)])
def test_a_number_is_off_by_a_step_at_most_and_by_none_once_it_is_one(kv_type, levels, head_dim):
    codec = KV_TYPES[kv_type]
    x = np.random.default_rng(0).standard_normal((5, 3, head_dim)).astype(np.float32)
    x[0, 0] = 0
    x[1] *= 1e-3
    rows = codec.encode(x)
    assert rows.shape == (5, 3, codec.row_bytes(head_dim))
    stored = codec.decode(rows, head_dim).astype(np.float32)
    # Half a step, but in 4 bits: the largest of 32 is -8, and one as large of the other sign would be 8, but gets 7.
    assert (np.abs(stored - x) <= np.abs(x).max(axis=-1, keepdims=True) / levels * 1.01).all()
    np.testing.assert_array_equal(codec.decode(codec.encode(stored), head_dim), stored)


@pytest.mark.parametrize("kv_type", ["q8", "q4"])
def test_scales_that_half_floats_do_not_reach(kv_type):
    codec = KV_TYPES[kv_type]
    x = np.array([[3e38, -1e38, 1, 0], [1e-9, -1e-9, 0, 1e-12], [2e-7, 1e-7, -1e-7, 0]], np.float32)
    stored = codec.decode(codec.encode(x), 4)
    assert np.isfinite(stored).all()
    assert (np.sign(stored) * np.sign(x) >= 0).all()

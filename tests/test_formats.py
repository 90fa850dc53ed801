"""Formats: what is packed comes back, and what cannot be held is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.runtime import formats, ops
from lutra.runtime.errors import CorruptModelError, LutraError, UnsupportedModelError
from lutra.runtime.formats import (
    BF16,
    E4M3,
    Codebook,
    Coded,
    Factored,
    Nested,
    Planes,
    Scaled,
    Stacked,
    littlebit,
    rows,
    to_float32,
)

sizes = st.integers(1, 70)


def ternary(rows, cols, seed):
    rng = np.random.default_rng(seed)
    return Coded(rng.integers(-1, 2, (rows, cols)).astype(np.int8), rng.standard_normal((rows, 1)).astype(np.float32))


@given(st.sampled_from(["t5", "t2"]), sizes, sizes, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_ternary_formats_return_every_ternary_matrix(format, rows, cols, seed):
    matrix = ternary(rows, cols, seed)
    packed = formats.pack(matrix, format).check("x")
    np.testing.assert_array_equal(packed.matrix.codes, matrix.codes)
    np.testing.assert_array_equal(packed.matrix.scale, matrix.scale)


def test_every_t5_byte_holds_five_trits_and_all_243_occur():
    trits = np.array(np.meshgrid(*[[-1, 0, 1]] * 5, indexing="ij")).reshape(5, -1).T.astype(np.int8)  # [243, 5]
    matrix = Coded(
        np.repeat(trits, 4, axis=1).reshape(243, 5 * 4), np.ones((243, 1), np.float32)
    )  # four equal bytes a row
    packed = formats.pack(matrix, "t5")
    np.testing.assert_array_equal(packed.matrix.codes, matrix.codes)
    assert len(np.unique(packed.parts["data"].reshape(-1, 16, 4).reshape(-1, 4)[:243])) == 243


def test_ternary_formats_refuse_what_they_cannot_hold():
    for format in ("t5", "t2"):
        with pytest.raises(ValueError, match="ternary"):
            formats.pack(Coded(np.full((2, 2), 2, np.int8), np.ones((2, 1), np.float32)), format)
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


UNIFORM = {"b1": 1, "q2": 2, "q3": 3, "q4": 4, "q5": 5, "q6": 6, "q8": 8}


def uniform(format, rows, cols, seed):
    """A matrix that the format holds exactly."""
    codec, rng = formats.codec(format), np.random.default_rng(seed)
    shape = (rows, -(-cols // codec.group) if codec.group else 1)
    codes = rng.integers(0, 1 << codec.bits, (rows, cols), dtype=np.uint8)
    zero = rng.integers(0, 2 << codec.bits, shape) / 2 if codec.zeros else np.full(shape, 0.5)
    return Coded(
        codes, rng.standard_normal(shape).astype(np.float16).astype(np.float32), zero.astype(np.float32), codec.group
    )


@given(
    st.sampled_from(list(UNIFORM)),
    st.sampled_from(["", "g32", "g64z", "g128", "z"]),
    sizes,
    st.integers(1, 300),
    st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_uniform_grids_return_every_matrix(base, suffix, rows, cols, seed):
    suffix = suffix or ("z" if base == "q8" else "")  # q8 is another format
    matrix = uniform(base + suffix, rows, cols, seed)
    assert formats.codec(base + suffix).accepts(matrix)
    packed = formats.pack(matrix, base + suffix).check("x")
    np.testing.assert_array_equal(packed.matrix.codes, matrix.codes)
    np.testing.assert_array_equal(packed.matrix.scale, matrix.scale)
    np.testing.assert_array_equal(packed.matrix.zero, matrix.zero)
    np.testing.assert_array_equal(packed.nbytes, sum(x.nbytes for x in packed.parts.values()))


def test_uniform_grids_cost_their_bits():
    packed = formats.pack(uniform("q3g128z", 64, 1280, 0), "q3g128z")
    assert packed.nbytes * 8 / (64 * 1280) == 3 + 2 * 16 / 128


@pytest.mark.parametrize("base", [*UNIFORM, "q8g32"])
def test_signed_codes_are_shifted_onto_the_grid(base):
    levels = 1 << UNIFORM[base[:2]]
    signed = np.array([[-1, 1]]) if base == "b1" else np.arange(-levels // 2, levels // 2)[None]
    matrix = Coded(signed.astype(np.int8), np.full((1, 1), 0.25, np.float32))
    assert formats.codec(base).accepts(matrix)
    np.testing.assert_array_equal(to_float32(formats.pack(matrix, base).matrix), signed * 0.25)


@pytest.mark.parametrize("format", ["q2g16s256m", "q4g16s256", "q4g32s32m", "q4g32s256m", "q5g32s256m", "q6g16s256"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (17, 300), (40, 512)])
def test_nested_grids_return_every_matrix(format, rows, cols):
    codec, rng = formats.codec(format), np.random.default_rng(rows)
    least = 0 if codec.offsets else -(1 << codec.bits - 1)
    codes = rng.integers(least, least + (1 << codec.bits), (rows, cols)).astype(np.uint8 if codec.offsets else np.int8)
    scale = rng.integers(-128, 128, (1 + codec.offsets, rows, -(-cols // codec.ACT_GROUP)), dtype=np.int8)
    unit = rng.standard_normal((len(scale), rows, -(-cols // codec.block))).astype(np.float16).astype(np.float32)
    matrix = Nested(codes, scale, unit, codec.ACT_GROUP, codec.block)
    packed = formats.pack(matrix, format).check("x")
    for name in ("codes", "scale", "unit"):
        np.testing.assert_array_equal(getattr(packed.matrix, name), getattr(matrix, name))
    np.testing.assert_array_equal(to_float32(packed.matrix[1:]), to_float32(matrix)[1:])
    dense = codes * (np.repeat(unit[0], codec.block, 1)[:, :cols] * np.repeat(scale[0], codec.ACT_GROUP, 1)[:, :cols])
    if codec.offsets:
        dense += np.repeat(unit[1], codec.block, 1)[:, :cols] * np.repeat(scale[1], codec.ACT_GROUP, 1)[:, :cols]
    np.testing.assert_array_equal(to_float32(matrix), dense)
    x = rng.standard_normal((3, cols)).astype(np.float32)
    assert np.abs(ops.linear(x, packed) - x @ dense.T).max() < 0.02 * np.linalg.norm(dense, axis=1).max() * cols**0.5
    finer = replace(matrix, unit=np.nextafter(unit, np.float32(9)))
    for wrong in (dense.astype(np.float32), finer):
        with pytest.raises(ValueError, match="not the integers"):
            formats.pack(wrong, format)


def test_a_scale_per_row_is_repeated_per_group_and_wide_groups_split():
    rng = np.random.default_rng(0)
    row = Coded(
        rng.integers(0, 4, (5, 300), dtype=np.uint8), np.full((5, 1), 0.5, np.float32), np.full((5, 1), 1.5, np.float32)
    )
    wide = Coded(row.codes, np.array([[0.5, 2]] * 5, np.float32), None, 256)
    for matrix in (row, wide):
        np.testing.assert_array_equal(to_float32(formats.pack(matrix, "q2g128z").matrix), to_float32(matrix))
    with pytest.raises(ValueError, match="cannot be stored in groups"):
        formats.pack(wide, "q2")


@pytest.mark.parametrize(
    ("format", "codes", "zero"),
    [("q2", [[4]], None), ("q2", [[-3]], None), ("b1", [[0, 1]], None), ("q4", [[1], [2]], [[1], [2]])],
)
def test_uniform_grids_refuse_what_they_cannot_hold(format, codes, zero):
    codes = np.array(codes, np.int8 if np.min(codes) < 0 or format == "b1" else np.uint8)
    zero = None if zero is None else np.array(zero, np.float32)
    matrix = Coded(codes, np.ones((len(codes), 1), np.float32), zero)
    assert not formats.codec(format).accepts(matrix)
    with pytest.raises(ValueError, match=r"hold|differ"):
        formats.pack(matrix, format)


def test_scales_that_float16_cannot_hold():
    matrix = Coded(np.ones((1, 64), np.uint8), np.full((1, 2), 1e-3, np.float32), None, 32)
    assert not formats.codec("q2g32").accepts(matrix)  # rounded
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="float16"):
        formats.pack(Coded(matrix.codes, matrix.scale * 1e9, None, 32), "q2g32")


@pytest.mark.parametrize(("base", "bits"), UNIFORM.items())
@pytest.mark.parametrize("suffix", ["", "g32", "g64z"])
def test_floats_round_to_half_a_step(base, bits, suffix):
    x = np.random.default_rng(0).standard_normal((33, 130)).astype(np.float32)
    matrix = formats.pack(x, base + suffix).matrix
    values, step = to_float32(matrix), np.repeat(np.abs(matrix.scale), matrix.group or 130, axis=1)[:, :130]
    if bits == 1:
        np.testing.assert_array_equal(np.sign(values), np.sign(x))
        np.testing.assert_allclose(step.mean() / 2, np.abs(x).mean(), rtol=1e-3)
    else:  # a symmetric grid lacks a step at one end
        assert (np.abs(values - x) <= step * (0.52 if matrix.group and suffix.endswith("z") else 1.001)).all()


@given(
    st.sampled_from(["bcq1g32", "bcq2g64z", "bcq3g128", "bcq4g64", "dbg32", "dbg128"]),
    sizes,
    st.integers(1, 300),
    st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_binary_planes_return_every_matrix(format, rows, cols, seed):
    codec, rng = formats.codec(format), np.random.default_rng(seed)
    bits = rng.integers(0, 2, (codec.planes, rows, cols), dtype=np.uint8)
    grids = rng.standard_normal((codec.planes + 1, rows, -(-cols // codec.ACT_GROUP))).astype(np.float16)
    grids = grids.astype(np.float32)
    matrix = Planes(bits, grids[1:], codec.ACT_GROUP, grids[0] if codec.offsets else None, codec.zero)
    assert codec.accepts(matrix)
    again = formats.pack(matrix, format).check("x").matrix
    np.testing.assert_array_equal(again.bits, matrix.bits)
    np.testing.assert_array_equal(again.scale, matrix.scale)
    np.testing.assert_array_equal(to_float32(again), to_float32(matrix))


def test_binary_planes_are_what_the_papers_say():
    alpha, signs = np.array([[[0.5]], [[0.25]]], np.float32), np.array([[[1, -1, -1]], [[1, 1, -1]]])
    coded = Planes((signs > 0).astype(np.uint8), 2 * alpha, 32)
    np.testing.assert_array_equal(to_float32(coded), [[0.75, -0.25, -0.75]])
    dual = Planes(np.array([[[0, 1, 1]], [[1, 0, 1]]], np.uint8), np.array([[[2]], [[-1]]], np.float32), 32, None, 0.0)
    np.testing.assert_array_equal(to_float32(dual), [[-1, 2, 1]])
    with pytest.raises(ValueError, match="binary planes"):
        formats.pack(dual, "bcq2g32")
    with pytest.raises(ValueError, match="binary planes"):
        formats.pack(to_float32(dual), "dbg32")


@given(
    st.sampled_from(["nf4g64", "nf4g32", "mxfp4", "iq4g32", "bitmod3g128", "bitmod4g32"]),
    sizes,
    st.integers(1, 200),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_codebooks_return_every_matrix(format, rows, cols, seed):
    codec, rng = formats.codec(format), np.random.default_rng(seed)
    known = getattr(codec, "_FORMAT", codec)
    values = np.array(known.values, np.float32)
    codes = rng.integers(0, len(values), (rows, cols), dtype=np.uint8)
    scale = 2.0 ** rng.integers(-12, 9, (rows, -(-cols // codec.ACT_GROUP))).astype(np.float32)
    own = rng.choice(known.own, scale.shape).astype(np.float32) if known.own else None
    matrix = Codebook(codes, values, scale, codec.ACT_GROUP, own)
    assert codec.accepts(matrix)
    again = formats.pack(matrix, format).check("x").matrix
    np.testing.assert_array_equal(again.codes, codes)
    np.testing.assert_array_equal(again.scale, scale)
    np.testing.assert_allclose(again.values, values, atol=1 / 16000 if format.startswith("nf4") else 0)
    if own is not None:
        np.testing.assert_array_equal(again.own, own)


@pytest.mark.parametrize("format", ["iq4g32s256", "nvfp4"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (17, 300), (40, 512)])
def test_codebooks_with_scales_of_8_bits_return_every_matrix(format, rows, cols):
    codec, rng = formats.codec(format), np.random.default_rng(rows)
    codec = getattr(codec, "_FORMAT", codec)
    scale = rng.integers(-128, 127, (rows, -(-cols // codec.ACT_GROUP)), dtype=np.int8)
    scale = np.where(scale == -1, 0, scale).view(np.uint8).view(E4M3) if codec.floats else scale
    unit = rng.standard_normal((rows, -(-cols // codec.block) if codec.block else 1)).astype(np.float32)
    codes, values = rng.integers(0, 16, (rows, cols), dtype=np.uint8), np.array(codec.values, np.float32)
    matrix = Codebook(codes, values, scale, codec.ACT_GROUP, unit=unit, block=codec.block)
    packed = formats.pack(matrix, format).check("x")
    assert codec.accepts(matrix)
    for name in ("codes", "values", "scale", "unit"):
        np.testing.assert_array_equal(getattr(packed.matrix, name), getattr(matrix, name))
    np.testing.assert_array_equal(to_float32(packed.matrix[1:]), to_float32(matrix)[1:])
    for wrong in (
        to_float32(matrix),
        Codebook(codes, values + 1, scale, codec.ACT_GROUP, unit=unit, block=codec.block),
    ):
        with pytest.raises(ValueError, match="not the codebook"):
            formats.pack(wrong, format)


def test_8_bit_floats_are_what_torch_makes_of_them():
    torch = pytest.importorskip("torch", reason="the oracle of E4M3")
    every = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(every.copy()).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(to_float32(every.view(E4M3)), theirs)
    scale = np.array([[2.0, -3.0]], np.float32)
    packed = formats.pack(Scaled(every[None].view(E4M3), scale, 128), "f8g128").check("x")
    sound = every & 127 != 127
    np.testing.assert_array_equal(packed.matrix[0, sound], (theirs * np.repeat(scale[0], 128))[sound])
    with pytest.raises(ValueError, match="not the scaled"):
        formats.pack(packed.matrix, "f8")


@pytest.mark.parametrize(("format", "gap"), [("nf4g64", 0.305), ("mxfp4", 2.0)])
def test_floats_round_to_the_nearest_value(format, gap):
    x = np.random.default_rng(0).standard_normal((33, 130)).astype(np.float32)
    matrix = formats.pack(x, format).matrix
    own = np.repeat(matrix.scale, matrix.group, axis=1)[:, :130]
    assert (np.abs(to_float32(matrix) - x) <= own * (gap / 2 + 0.01)).all()
    assert np.mean((to_float32(matrix) - x) ** 2) < 0.015
    with pytest.raises(ValueError, match="another codebook"):
        formats.pack(Codebook(matrix.codes, matrix.values + 1, matrix.scale, matrix.group), format)


@pytest.mark.parametrize(
    ("format", "fixed", "chosen"),
    [("bitmod3g32", [0, 1, 2, 4], [3, -3, 6, -6]), ("bitmod4g32", [0, 1, 2, 3, 4, 6, 8, 12], [10, -10, 16, -16])],
)
def test_bitmod_takes_the_best_of_four_values_in_every_group(format, fixed, chosen):
    x = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    groups = x.reshape(7, 2, 32)
    errors = []
    for own in chosen:
        values = np.array([*fixed, *(-v for v in fixed), own])
        scale = (np.abs(groups).max(axis=2) / np.abs(values).max()).astype(np.float16).astype(np.float32)
        nearest = np.abs(groups[..., None] / scale[..., None, None] - values).argmin(axis=3)
        errors.append(((values[nearest] * scale[..., None] - groups) ** 2).sum(axis=2))
    matrix = formats.pack(x, format).matrix
    error = ((to_float32(matrix) - x).reshape(7, 2, 32) ** 2).sum(axis=2)
    np.testing.assert_allclose(error, np.min(errors, axis=0), rtol=1e-4)
    assert len(np.unique(matrix.own)) > 1


def test_littlebit_is_what_the_paper_says():
    rng = np.random.default_rng(0)
    product = np.zeros((48, 100), np.float32)
    chains = []
    for _ in range(2):
        u, v = (rng.choice(np.array([-1, 1], np.int8), shape) for shape in ((48, 24), (24, 100)))
        u1, latent, v2 = (rng.standard_normal(n).astype(np.float32) for n in (48, 24, 100))
        product += (u1[:, None] * u * latent) @ (v * v2)
        chains.append(((v2, Coded(v, latent[:, None])), (None, Coded(u, u1[:, None]))))
    matrix = Factored(tuple(chains))
    packed = formats.pack(matrix, "littlebit2r24").check("x")
    np.testing.assert_allclose(to_float32(packed.matrix), product, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(to_float32(matrix[5:9]), to_float32(matrix)[5:9])
    x = rng.standard_normal((3, 100)).astype(np.float32)
    error = ops.linear(x, packed) - x @ product.T
    assert np.abs(error).max() < 0.03 * np.abs(x @ product.T).max()  # two roundings to int8
    with pytest.raises(ValueError, match="not the product"):
        formats.pack(matrix, "littlebit2r16")


def test_littlebit_ranks_are_the_papers():
    ranks = [littlebit.rank_of(*shape) for shape in ((4096, 4096, 1.0), (4096, 4096, 0.1), (1024, 4096, 0.1))]
    assert ranks == [1000, 80, 24]
    packed = formats.codec("littlebit-0.55").layout(4096, 4096)
    nbytes = sum(np.dtype(t).itemsize * np.prod(s) for t, s in packed.values())
    assert 0.5 < nbytes * 8 / 4096**2 < 0.6


def test_fbi_is_what_the_paper_says():
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1, 1], np.int8), (40, 70))
    scale, offset = (rng.standard_normal((2, 70)) * 0.1).astype(np.float32)
    binary = ((scale, Coded(signs, np.ones((40, 1), np.float32))),)
    matrix = Factored((binary, ((None, offset[None]), (None, np.ones((40, 1), np.float32)))))
    packed = formats.pack(matrix, "fbi").check("x")
    np.testing.assert_allclose(to_float32(packed.matrix), signs * scale + offset, atol=1e-6)
    x = rng.standard_normal((3, 70)).astype(np.float32)
    expected = x @ (signs * scale + offset).T
    assert np.abs(ops.linear(x, packed) - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize(
    "name",
    [
        "littlebit",
        "littlebit3r8",
        "fbig32",
        "bcq",
        "bcq9g32",
        "db",
        "q7",
        "q4g24s256m",
        "q4g32s48m",
        "q4g",
        "q4g100",
        "q4gz",
        "q4x",
        "b1g256",
        "t5g32",
    ],
)
def test_names_that_are_no_format(name):
    with pytest.raises(LutraError, match="unknown weight format"):
        formats.codec(name)


def test_rows_of_several_formats_are_one_matrix():
    rng = np.random.default_rng(0)
    each = [ternary(20, 70, 1), rng.standard_normal((3, 70)).astype(np.float32), ternary(16, 70, 2)]
    name = rows.name_of([(20, "t2"), (3, "f32"), (16, "t5")])
    assert name == "rows-20:t2+3:f32+16:t5"
    packed = formats.pack(Stacked(tuple(each)), name).check("x")
    dense = np.concatenate([to_float32(m) for m in each])
    assert formats.codec(name).accepts(Stacked(tuple(each)))
    assert not formats.codec(name).accepts(Stacked(tuple(each[:2])))
    np.testing.assert_array_equal(to_float32(packed.matrix), dense)
    x = rng.standard_normal((2, 70)).astype(np.float32)
    apart = np.concatenate(
        [ops.linear(x, formats.pack(m, f)) for m, f in zip(each, ("t2", "f32", "t5"), strict=True)], axis=1
    )
    np.testing.assert_array_equal(ops.linear(x, packed), apart)
    with pytest.raises(ValueError, match="not the matrices"):
        formats.pack(dense, name)
    with pytest.raises(CorruptModelError, match="does not make 40 rows"):
        formats.codec(name).layout(40, 70)
    nested = ["rows-" + "1:rows-" * 3000 + "1:t5", "ordered-" * 3000 + "t5", "rows-" + "+".join(["1:t5"] * 8)]
    for wrong in ("rows", "rows-", "rows-20", "rows-x:t5", "rows-20:", "rows-0:t5", *nested):
        with pytest.raises(CorruptModelError, match="unknown weight format"):
            formats.codec(wrong)


@pytest.mark.parametrize(("format", "stored"), [("f32", np.float32), ("f16", np.float16), ("bf16", np.uint16)])
def test_floats_are_used_where_they_lie(format, stored):
    values = np.zeros((3, 40), stored)
    data = formats.pack(values.view(formats.BF16) if format == "bf16" else values, format).parts["data"]
    assert np.shares_memory(data, values)

"""Quantizers: against brute force, published figures, independent definitions, and what is left of real models."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import small_llama

from lutra.cli.main import main
from lutra.models.loaders import open_checkpoint
from lutra.runtime import formats
from lutra.runtime.errors import CorruptModelError, LutraError, UnsupportedModelError
from lutra.runtime.formats import Coded, Factored, to_float32
from lutra.runtime.model import Model
from lutra.tools import quantize as quantizing
from lutra.tools.calibrate import Calibration, calibrate
from lutra.tools.convert import Tensor, convert
from lutra.tools.perplexity import perplexity
from lutra.tools.quantizers import bcq, gptq, littlebit, method_for, methods, rtn, ternary

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
RNG = np.random.default_rng


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return RNG(seed).standard_normal(shape).astype(np.float32)


def relative(found: Any, values: np.ndarray) -> float:
    """The squared error as a share of the squares."""
    return float(((to_float32(found) - values) ** 2).sum() / (values**2).sum())


# Uniform grids


def best_symmetric(w: np.ndarray, bits: int) -> float:
    """The least squared error of all codes of a small group: each with its own best scale."""
    steps = np.arange(1 << bits) - (1 << bits - 1)
    codes = np.array(list(itertools.product(steps, repeat=len(w))), np.float64)
    square = (codes**2).sum(axis=1)
    gain = (codes @ w) ** 2 / np.where(square == 0, 1, square)
    return float((w.astype(np.float64) ** 2).sum() - gain.max())


def best_affine(w: np.ndarray, bits: int) -> float:
    """The same where the zero is free, too: the line through the points (code, value) that fits best."""
    codes = np.array(list(itertools.product(range(1 << bits), repeat=len(w))), np.float64)
    codes -= codes.mean(axis=1, keepdims=True)
    centred = w - w.mean(dtype=np.float64)
    square = (codes**2).sum(axis=1)
    gain = (codes @ centred) ** 2 / np.where(square == 0, 1, square)
    return float((centred**2).sum() - gain.max())


@pytest.mark.parametrize(("bits", "size", "zeros"), [(2, 6, False), (2, 8, False), (2, 7, True)])
def test_grids_are_near_the_best_that_brute_force_finds(bits: int, size: int, zeros: bool) -> None:
    groups = gaussian(40, size)
    scale, zero = rtn.fit(groups, bits, zeros, halves=False)
    codes = rtn.nearest(groups, scale, zero, bits)
    error = ((groups - (codes - zero[:, None]) * scale[:, None]) ** 2).sum(axis=1)
    best = np.array([(best_affine if zeros else best_symmetric)(w, bits) for w in groups])
    assert (error >= best * (1 - 1e-3) - 1e-4).all()  # zeros are rounded to float16: brute force's are not
    assert error.sum() <= best.sum() * (1.08 if zeros else 1.02)
    assert (error <= best * 1.01 + 1e-4).mean() > (0.4 if zeros else 0.9)


@pytest.mark.parametrize("format", ["q2g32", "q2g64z", "q3g64", "q4g32", "q4g128z", "q6g64", "q4", "q3z"])
def test_grids_beat_the_formats_own_rounding(format: str) -> None:
    values = gaussian(48, 200)
    found = rtn.quantize(values, formats.codec(format))
    assert formats.codec(format).accepts(found)
    assert relative(found, values) < 0.97 * relative(formats.pack(values, format).matrix, values)


@pytest.mark.parametrize("format", ["q4g32", "q3g64z", "q2"])
def test_matrices_are_fitted_group_by_group(format: str, monkeypatch: Any) -> None:
    """By the kernel, in pieces, and with a smaller group at the end: what the reference makes of each group."""
    monkeypatch.setattr(rtn, "AT_ONCE", 1000)
    values, codec = gaussian(21, 200), formats.codec(format)
    found, group = rtn.quantize(values, codec), codec.group or 200
    assert isinstance(found, Coded)
    for g, begin in enumerate(range(0, 200, group)):
        part = values[:, begin : begin + group]
        due = rtn.fit_grids(part, bits=codec.bits, zeros=codec.zeros, halves=group < 200)
        kept = found.codes[:, begin : begin + group], found.scale[:, [g]], found.zero[:, [g]]  # type: ignore[index]
        assert all(map(np.array_equal, kept, due))


def test_a_matrix_on_a_grid_is_found_again() -> None:
    codes = RNG(0).integers(0, 16, (32, 128)).astype(np.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15  # every group reaches its ends
    scale = RNG(1).uniform(0.5, 2, (32, 4)).astype(np.float16).astype(np.float32)
    exact = Coded(codes, scale, np.full_like(scale, 8), 32)
    found = rtn.quantize(to_float32(exact), formats.codec("q4g32"))
    assert relative(found, to_float32(exact)) < 1e-9


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
@pytest.mark.parametrize("format", ["q4g32", "q4g32z", "bcq2g32", "bcq2g32z", "dbg64", "t5", "littlebit1r8"])
def test_constant_matrices(format: str, value: float) -> None:
    values = np.full((8, 64), value, np.float32)
    packed = formats.pack(method_for(format).quantize(values, formats.codec(format)), format)
    np.testing.assert_allclose(to_float32(packed.matrix), values, rtol=2e-3, atol=1e-6)


# GPTQ


def correlated(n: int, cols: int) -> np.ndarray:
    x = RNG(2).standard_normal((n, cols)) @ (RNG(3).standard_normal((cols, cols)) * np.linspace(0.1, 2, cols))
    return x / np.abs(x).max()


def layer_error(found: Any, values: np.ndarray, x: np.ndarray) -> float:
    return float((((to_float32(found) - values) @ x.T) ** 2).sum())


@pytest.mark.parametrize("format", ["q2g64z", "q3g64", "q4g32", "q4", "q4z"])
def test_gptq_beats_rounding_where_it_counts(format: str) -> None:
    values, x, codec = gaussian(64, 256), correlated(600, 256), formats.codec(format)
    found = gptq.quantize(values, codec, x.T @ x)
    assert codec.accepts(found)
    assert layer_error(found, values, x) < 0.85 * layer_error(rtn.quantize(values, codec), values, x)


def one_by_one(values: np.ndarray, codec: Any, hessian: np.ndarray) -> np.ndarray:
    """GPTQ as its paper derives it: brain surgery in order, the inverse of H taken anew for the columns left."""
    w, codes = values.astype(np.float64), np.empty(values.shape)
    h = hessian + gptq.DAMPING * np.diagonal(hessian).mean() * np.eye(len(hessian))
    for i in range(w.shape[1]):
        if i % codec.group == 0:
            part = w[:, i : i + codec.group].astype(np.float32)
            scale, zero = rtn.fit(part, codec.bits, codec.zeros)
        inverse = np.linalg.inv(h[i:, i:])
        codes[:, i] = rtn.nearest(w[:, i : i + 1].astype(np.float32), scale, zero, codec.bits)[:, 0]
        error = (w[:, i] - (codes[:, i] - zero) * scale) / inverse[0, 0]
        w[:, i:] -= error[:, None] * inverse[0]
    return codes


def test_gptq_is_optimal_brain_surgery_in_order() -> None:
    values, x, codec = gaussian(16, 192), correlated(400, 192), formats.codec("q4g32")
    found = gptq.quantize(values, codec, x.T @ x)
    assert (found.codes == one_by_one(values, codec, x.T @ x)).mean() > 0.99  # the rest are ties of float32


@pytest.mark.parametrize(("format", "share"), [("q4g32", 0.9), ("q3g64", 0.8), ("q2g64", 0.6), ("q4", 0.9)])
def test_gptq_beside_gptqmodel(format: str, share: float, monkeypatch: Any) -> None:
    """On its grids the same codes, on ours a smaller error: 0.77, 0.67, 0.47 and 0.76 of that of its own grids."""
    torch = pytest.importorskip("torch", reason="the oracle needs it")
    oracle = pytest.importorskip("gptqmodel.quantization.gptq", reason="the oracle of GPTQ")
    from gptqmodel.quantization.config import QuantizeConfig

    values, x, codec = gaussian(96, 256), correlated(800, 256).astype(np.float32), formats.codec(format)
    linear = torch.nn.Linear(256, 96, bias=False)
    linear.weight.data = torch.from_numpy(values.copy())
    settings = {"sym": True, "desc_act": False, "act_group_aware": False, "damp_percent": gptq.DAMPING}
    theirs = oracle.GPTQ(linear, QuantizeConfig(bits=codec.bits, group_size=codec.group or -1, **settings))
    theirs.quantizer.configure(perchannel=True)
    theirs.add_batch(torch.from_numpy(x)[None], torch.from_numpy(x @ values.T)[None])
    dense, scale, zero = (found.detach().float().numpy() for found in theirs.quantize()[:3])

    hessian = x.T.astype(np.float64) @ x
    ours = gptq.quantize(values, codec, hessian)
    assert layer_error(ours, values, x) < share * layer_error(dense, values, x)

    grids = zip(scale.T, zero.T, strict=True)
    monkeypatch.setattr(rtn, "fit", lambda *_, **__: next(grids))
    found = gptq.quantize(values, codec, hessian)
    wide = np.arange(256) // (codec.group or 256)
    assert (found.codes == np.rint(dense / scale[:, wide] + zero[:, wide])).mean() > 0.99  # the rest are near ties
    assert layer_error(found, values, x) == pytest.approx(layer_error(dense, values, x), rel=0.02)


def test_gptq_survives_inputs_that_are_always_zero() -> None:
    values, x = gaussian(8, 64), correlated(200, 64)
    x[:, [3, 40]] = 0
    found = to_float32(gptq.quantize(values, formats.codec("q4g32"), x.T @ x))
    assert np.isfinite(found).all()


# Planes, ternary, LittleBit


@pytest.mark.parametrize(
    ("planes", "greedy", "refined"), [(1, 0.362, 0.362), (2, 0.130, 0.116), (3, 0.0577, 0.0357), (4, 0.0321, 0.0114)]
)
def test_bcq_is_as_good_as_is_known(planes: int, greedy: float, refined: float) -> None:
    """Relative errors of alternating binary coding on Gaussian numbers in groups of 128."""
    values = gaussian(1000, 128)
    for rounds, due in ((0, greedy), (15, refined)):
        bits, scale, _ = bcq.solve(values, planes, rounds=rounds)
        error = ((values - ((bits - 0.5) * scale[:, None]).sum(axis=2)) ** 2).sum() / (values**2).sum()
        assert error == pytest.approx(due, rel=0.06)


def test_bits_are_the_nearest_of_all_sums() -> None:
    values, sums = gaussian(50, 20), gaussian(50, 8, seed=1)
    found = np.take_along_axis(sums, bcq._nearest(values, sums)[0].astype(int), axis=1)
    due = np.abs(values[..., None] - sums[:, None]).min(axis=2)
    np.testing.assert_allclose(np.abs(values - found), due, rtol=1e-6, atol=1e-7)


def test_dual_binaries_beat_the_grid_they_begin_with() -> None:
    values = gaussian(64, 128)
    found = bcq.quantize(values, formats.codec("dbg64"))
    assert relative(found, values) < 0.9 * relative(rtn.quantize(values, formats.codec("q2g64")), values) + 0.03


def test_ternary_is_the_best_there_is() -> None:
    values = gaussian(20, 8)
    found = ternary.quantize(values, None)
    codes = np.array(list(itertools.product((-1, 0, 1), repeat=8)), np.float64)
    square = (codes**2).sum(axis=1)
    gain = (values @ codes.T) ** 2 / np.where(square == 0, 1, square)
    best = (values.astype(np.float64) ** 2).sum(axis=1) - gain.max(axis=1)
    error = ((to_float32(found) - values) ** 2).sum(axis=1)
    np.testing.assert_allclose(error, best, rtol=1e-4, atol=1e-5)


def dual_svid(w: np.ndarray, rank: int) -> np.ndarray:
    """LittleBit's start as its paper has it, without a rotation."""
    u, s, v = np.linalg.svd(w, full_matrices=False)
    u, v = u[:, :rank] * np.sqrt(s[:rank]), np.sqrt(s[:rank])[:, None] * v[:rank]

    def binary(x: np.ndarray) -> np.ndarray:
        a, s, b = np.linalg.svd(np.abs(x), full_matrices=False)
        return np.sign(x) * (s[0] * np.outer(a[:, 0], b[0]))

    return binary(u) @ binary(v)


@pytest.mark.parametrize(("rank", "gain"), [(32, 0.74), (64, 0.62), (128, 0.5)])
def test_littlebit_with_a_rotation_beats_dual_svid(rank: int, gain: float) -> None:
    q = [np.linalg.qr(gaussian(256, 256, seed=seed))[0] for seed in range(2)]
    w = ((q[0] * np.arange(1, 257) ** -0.7) @ q[1]).astype(np.float32)
    plain = relative(dual_svid(w, rank), w)
    one = relative(littlebit.quantize(w, formats.codec(f"littlebit1r{rank}")), w)
    two = relative(littlebit.quantize(w, formats.codec(f"littlebit2r{rank // 2}")), w)
    assert one < gain * plain
    assert two < 0.85 * one


def test_a_rotation_is_the_polar_factor() -> None:
    for x in (gaussian(40, 40), gaussian(40, 40) * np.geomspace(1, 1e-3, 40, dtype=np.float32)):
        p, _, q = np.linalg.svd(x)
        np.testing.assert_allclose(littlebit._orthogonal(x, 1e-5), p @ q, atol=2e-3)


def test_littlebit_without_a_rotation_is_dual_svid(monkeypatch: Any) -> None:
    monkeypatch.setattr(littlebit, "_rotated", lambda u, v, rng: (u, v))
    w = gaussian(96, 64)
    found = littlebit.quantize(w, formats.codec("littlebit1r56"))
    np.testing.assert_allclose(to_float32(found), dual_svid(w, 56), atol=2e-3)


def test_littlebit_on_a_large_matrix_is_near_the_full_svd() -> None:
    q = [np.linalg.qr(gaussian(300, 300, seed=seed))[0] for seed in range(2)]
    w = ((q[0] * np.arange(1, 301) ** -0.7) @ q[1]).astype(np.float32)
    u, v = littlebit._factors(w, 32, RNG(0))
    s = np.linalg.svd(w, compute_uv=False)
    assert relative(u @ v, w) == pytest.approx((s[32:] ** 2).sum() / (s**2).sum(), rel=1e-3)


def test_every_format_says_who_makes_it() -> None:
    for name in formats.names():
        codec = formats.codec(name)
        if not any(method.fits(codec) for method in methods().values()):
            assert name in ("fbi", "onebit")
            continue
        values = gaussian(32, 96)
        packed = formats.pack(method_for(name).quantize(values, codec), name)
        assert packed.format == name
        assert relative(packed.matrix, values) < 0.9
    with pytest.raises(UnsupportedModelError, match="no way"):
        method_for("fbi")
    with pytest.raises(UnsupportedModelError, match="bcq makes no q4g32"):
        method_for("q4g32", "bcq")


@pytest.mark.parametrize(("format", "step"), [("q3g64", "gptq"), ("q2", "gptq"), ("bcq3g64z", "bcq")])
def test_compiled_loops_make_the_same_bytes(format: str, step: str, monkeypatch: Any) -> None:
    pytest.importorskip("numba", reason="it compiles the loops")
    module, plain = {
        "gptq": (gptq, gptq._swept_plain),
        "bcq": (bcq, bcq._taken_plain),
    }[step]
    values, codec, x = gaussian(1100, 200), formats.codec(format), correlated(300, 200)
    more = (x.T @ x,) if step == "gptq" else ()
    loops = getattr(module, plain.__name__.removesuffix("_plain"))
    assert loops.__wrapped__ is plain
    found = module.quantize(values, codec, *more)
    monkeypatch.setattr(module, plain.__name__.removesuffix("_plain"), plain)
    due = module.quantize(values, codec, *more)
    for name, array in vars(due).items():
        assert np.array_equal(getattr(found, name), array)


def test_an_inverted_triangle() -> None:
    upper = np.triu(gaussian(150, 150).astype(np.float64)) + 20 * np.eye(150)
    found = upper.copy()
    gptq._invert(found)
    np.testing.assert_allclose(found @ upper, np.eye(150), atol=1e-12)


# Calibration


def test_calibration_sees_what_each_matrix_sees(tmp_path: Path) -> None:
    """With nothing quantized, the second moments are those of transformers' own activations."""
    for library in ("torch", "transformers", "accelerate"):
        pytest.importorskip(library, reason="the oracle")
    import checkpoints
    import torch

    oracle = checkpoints.dense_llama(tmp_path, attention_bias=True, mlp_bias=True)
    texts = [RNG(seed).integers(0, 128, 30).tolist() for seed in range(3)]
    due: dict[str, np.ndarray] = {}
    names = {"q_proj": "qkv", "o_proj": "o", "gate_proj": "gate_up", "down_proj": "down"}
    for name, module in oracle.named_modules():
        stem = name.rpartition(".")[2]
        if stem in names:
            role = f"layers.{name.split('.')[2]}.{names[stem]}"

            def hook(_: Any, inputs: Any, __: Any, role: str = role) -> None:
                x = inputs[0][0].double().numpy()
                due[role] = due.get(role, 0) + x.T @ x / 90

            module.register_forward_hook(hook)
    with torch.no_grad():
        for text in texts:
            oracle(torch.tensor([text]))
    found: dict[str, np.ndarray] = {}
    with open_checkpoint(tmp_path) as checkpoint, Model.load(tmp_path) as model:
        from lutra.models.weights import names_of, plan_roles

        plan = plan_roles(checkpoint, names_of(model.arch, model.config), model.config.layers)  # type: ignore[attr-defined]
        wanted = {p.role: p for p in plan if p.format and p.role not in ("embed", "head")}

        def exact(role: str, hessian: Any) -> Any:
            found[role] = hessian
            return model.weights[role]

        calibrate(checkpoint, model.arch, model.config, wanted, texts, exact)
    assert found.keys() == due.keys()
    for role, hessian in found.items():
        np.testing.assert_allclose(hessian, due[role], rtol=1e-3, atol=1e-5 * np.abs(due[role]).max())


@pytest.mark.parametrize("name", ["Qwen3", "Phi3"])
def test_any_architecture_is_calibrated(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    for library in ("torch", "transformers", "accelerate"):
        pytest.importorskip(library, reason="the oracle")
    import checkpoints

    (tmp_path / "src").mkdir()
    checkpoints.dense(tmp_path / "src", name)
    monkeypatch.setattr(Calibration, "texts", lambda *_: [list(range(40)), list(range(40, 70))])
    report = convert(tmp_path / "src", tmp_path / "dst", quantize="q6g64", method="gptq", calibration=Calibration(""))
    assert report.error is not None
    assert report.error < 0.002
    exact, found = logits(tmp_path / "src"), logits(tmp_path / "dst")
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_an_error_in_calibration_ends_it(tmp_path: Path) -> None:
    folder = small_llama(tmp_path / "m")
    with open_checkpoint(folder) as checkpoint, Model.load(folder) as model:
        from lutra.models.weights import names_of, plan_roles

        plan = plan_roles(checkpoint, names_of(model.arch, model.config), model.config.layers)  # type: ignore[attr-defined]

        def fail(role: str, hessian: Any) -> Any:
            raise LutraError(f"no {role}")

        wanted = {p.role: p for p in plan if p.role == "layers.1.o"}
        with pytest.raises(LutraError, match=r"no layers\.1\.o"):
            calibrate(checkpoint, model.arch, model.config, wanted, [[1, 2, 3]] * 4, fail)
        with pytest.raises(LutraError, match="needs a text"):
            calibrate(checkpoint, model.arch, model.config, wanted, [], fail)


# Whole conversions


def logits(path: Path) -> np.ndarray:
    with Model.load(path, threads=2) as model:
        return model.session().logits(list(range(20)))


def test_a_quantized_model_holds_what_the_quantizer_made(tmp_path: Path) -> None:
    src = small_llama(tmp_path / "src")
    seen: list[Tensor] = []
    report = convert(src, tmp_path / "dst", quantize="q4g32", embed_type="f32", progress=seen.append)
    with Model.load(src) as source, Model.load(tmp_path / "dst") as model:
        for role, weight in source.weights.items():
            found = model.weights[role]
            if "." in role and not isinstance(weight, np.ndarray):
                assert found.format == "q4g32"  # type: ignore[union-attr]
                values = to_float32(weight.matrix)
                due = formats.pack(rtn.quantize(values, formats.codec("q4g32")), "q4g32")
                assert all(np.array_equal(due.parts[name], part) for name, part in found.parts.items())  # type: ignore[union-attr]
                (tensor,) = (t for t in report.tensors if t.role == role)
                assert tensor.error == pytest.approx(relative(due.matrix, values), rel=1e-5)
    assert report.error is not None
    assert 0.004 < report.error < 0.01
    errors = [t.error for t in seen if t.role == "layers.0.qkv"]
    assert errors[0] is None
    assert errors[1] is not None
    assert report.warnings == ()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert np.abs(logits(tmp_path / "dst") - logits(src)).max() < 0.5 * np.abs(logits(src)).max()


def test_biases_and_low_bit_sources(tmp_path: Path) -> None:
    from test_convert import make

    biased, low = make("dense_f16_biased", tmp_path / "biased"), make("bitnet_packed", tmp_path / "low")
    convert(biased, tmp_path / "a", quantize="q6g64")
    exact, found = logits(biased), logits(tmp_path / "a")
    assert np.abs(found - exact).max() < 0.2 * np.abs(exact).max()
    report = convert(low, tmp_path / "b", quantize="q4g32")
    assert "low-bit already (ternary)" in report.warnings[0]


@pytest.mark.parametrize("at", ["layers.0.qkv", "layers.1.down"])
def test_an_interrupted_run_goes_on(tmp_path: Path, at: str, monkeypatch: Any) -> None:
    src, dst = small_llama(tmp_path / "src"), tmp_path / "dst"
    convert(src, tmp_path / "whole", quantize="bcq2g64")

    def stop(tensor: Tensor) -> None:
        if tensor.role == at and tensor.error is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, dst, quantize="bcq2g64", progress=stop)
    assert not dst.exists()
    done = {file.stem for file in (tmp_path / ".dst.partial").glob("*.safetensors")}
    assert at in done
    fresh: list[str] = []
    quantized = quantizing._quantized
    monkeypatch.setattr(quantizing, "_quantized", lambda c, p, *rest: fresh.append(p.role) or quantized(c, p, *rest))
    report = convert(src, dst, quantize="bcq2g64")
    assert not done & set(fresh)
    assert len(done) + len(fresh) == 8
    assert report.error is not None
    assert (dst / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert not (tmp_path / ".dst.partial").exists()


def test_another_run_does_not_take_over_what_is_left(tmp_path: Path) -> None:
    src, dst = small_llama(tmp_path / "src"), tmp_path / "dst"

    def stop(tensor: Tensor) -> None:
        if tensor.role == "layers.1.qkv":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, dst, quantize="q2g32", progress=stop)
    convert(src, dst, quantize="q2g64")
    with Model.load(dst) as model:
        assert model.weights["layers.0.qkv"].format == "q2g64"  # type: ignore[union-attr]


def test_refusals(tmp_path: Path) -> None:
    src = small_llama(tmp_path / "src")
    with pytest.raises(UnsupportedModelError, match="no way"):
        convert(src, tmp_path / "dst", quantize="fbi")
    with pytest.raises(CorruptModelError, match="unknown weight format"):
        convert(src, tmp_path / "dst", quantize="q7g32")
    with pytest.raises(LutraError, match="needs a text"):
        convert(src, tmp_path / "dst", quantize="q4g32", method="gptq")
    weights = src / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-40000:-39996] = np.float32(np.nan).tobytes()
    weights.write_bytes(data)
    with pytest.raises(CorruptModelError, match="not finite"):
        convert(src, tmp_path / "dst", quantize="q4g32")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    ("name", "format", "options", "bound"),
    [
        ("stories260K", "q8", {}, 1.01),
        ("stories260K", "q6g64", {}, 1.04),
        ("stories260K", "q4g32", {}, 1.25),
        ("babyllama-tok105", "q6g64", {}, 1.03),
        ("babyllama-tok105", "q4g32", {}, 1.15),
        ("stories260K", "q4g32", {"method": "gptq"}, 1.15),
    ],
)
def test_real_models_keep_their_perplexity(name: str, format: str, options: Any, bound: float, tmp_path: Path) -> None:
    src, text = ASSETS / "weights" / name, ASSETS / "text"
    if not src.exists():
        pytest.skip("the story model is not here")
    if options:
        options["calibration"] = Calibration((text / "tinystories_train.txt").read_text()[:20000], 6, 128)
    convert(src, tmp_path / "dst", quantize=format, **options)
    with Model.load(src, threads=2) as reference, Model.load(tmp_path / "dst", threads=2) as model:
        ids = model.tokenizer.encode((text / "tinystories_heldout.txt").read_text()[:20000])
        found = list(perplexity(model, ids, n_ctx=256, begin=1, chunks=16, reference=reference))[-1].json()
    assert math.log(found["ratio"]) > -0.01
    assert found["ratio"] < bound


def test_products_are_kept_whole() -> None:
    found = littlebit.quantize(gaussian(64, 96), formats.codec("littlebit-0.9"))
    assert isinstance(found, Factored)
    assert formats.codec("littlebit-0.9").accepts(found)


# The command


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    src = str(small_llama(tmp_path / "src"))

    def lutra(*argv: str) -> tuple[int, str, str]:
        code = main(["convert", *argv])
        return code, *capsys.readouterr()

    code, out, err = lutra(src, str(tmp_path / "a"), "-q", "q4g32", "--embed-type", "f32")
    assert (code, err) == (0, "")
    assert "error 0." in out
    code, out, _ = lutra(src, "--dry-run", "-q", "littlebit", "--bpw", "0.9")
    assert code == 0
    assert "littlebit-0.9 " in out
    assert "of memory and about " in out
    for wrong in (
        ["-q", "littlebit"],
        ["-q", "q4g32", "--bpw", "3"],
        ["-q", "q7"],
        ["--method", "gptq"],
        ["--bpw", "1"],
    ):
        code, _, err = lutra(src, str(tmp_path / "b"), *wrong)
        assert code == 2
        assert err.startswith("error: ")
    assert lutra(src, str(tmp_path / "b"), "-q", "q4g32", "--method", "bcq")[0] == 4
    assert lutra(src, str(tmp_path / "b"), "-q", "q4g32", "--method", "none")[0] == 4
    code, out, _ = lutra("--print-supported-models")
    assert {"llama", "bitnet"} <= set(out.split())
    code, out, _ = lutra("--print-formats")
    assert any(line.startswith("q4g128") and "gptq, rtn" in line for line in out.splitlines())
    assert lutra()[0] == 2

"""Mixtures of experts: what is read of them, stored, converted, quantized, and refused."""

import json

import numpy as np
import pytest
import tiny

from lutra.models import qwen3_moe
from lutra.models.loaders import open_checkpoint
from lutra.runtime import formats, ops
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Packed, experts
from lutra.runtime.model import Model
from lutra.tools.calibrate import Calibration
from lutra.tools.convert import convert
from lutra.tools.describe import describe
from lutra.tools.quantizers import gptq, rtn

IDS = [1, 5, 9, 42, 77, 3, 3, 127, 0, 64, 11, 12, 13]
EXPERTS = ("layers.0.experts_gate_up", "layers.0.experts_down")


def chosen_in_first_layer(m, token):
    """The experts that a token chooses at the beginning of a text."""
    seen = {}

    def route(*args, **attrs):
        found = original(*args, **attrs)
        seen.setdefault("first", found[0])
        return found

    original, ops.route = ops.route, route
    try:
        tiny.numpy_logits(m, [token])
    finally:
        ops.route = original
    return set(seen["first"][0].tolist())


def test_only_chosen_experts_are_read():
    """Those that no token chooses may hold anything."""
    with tiny.model(qwen3_moe, "f32", threads=3) as m:
        expected, chosen = m.session().feed([7]).copy(), chosen_in_first_layer(m, 7)
        assert 0 < len(chosen) < m.config.experts
        others = [e for e in range(m.config.experts) if e not in chosen]
        weights = dict(m.weights)
        for role in EXPERTS:
            data = weights[role].parts["data"].copy()
            data[others] = np.nan
            weights[role] = Packed(weights[role].format, weights[role].shape, {"data": data})
        with Model(m.arch, m.config, weights, engine=m.engine) as other:
            np.testing.assert_array_equal(other.session().feed([7]), expected)
            assert np.isnan(other.session().logits(range(64))).any()


def test_ranges_of_many_experts():
    """More experts and choices than rows, all the same choice, a single expert: as one linear() per row would."""
    rng = np.random.default_rng(0)
    for rows, count, k in [(1, 1, 1), (9, 64, 8), (40, 3, 3), (5, 1024, 2)]:
        weight = experts.stacked(
            (formats.pack(rng.standard_normal((33, 40)).astype(np.float32), "q4g32") for _ in range(count)), count
        )
        assert weight.check("it").shape == (count, 33, 40)
        x = rng.standard_normal((rows, 40)).astype(np.float32)
        chosen, _ = ops.route(
            rng.standard_normal((rows, count)).astype(np.float32), **vars(qwen3_moe.Routing(k, False))
        )
        place = ops.line_up(chosen, experts=count)
        y = ops.experts(ops.spread(x, place), weight, chosen)
        for row, choice in np.ndindex(rows, k):
            alone = ops.linear(x[row : row + 1], weight.experts[chosen[row, choice]])
            np.testing.assert_array_equal(y[place[row, choice]], alone[0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    checkpoints = pytest.importorskip("checkpoints", reason="needs torch and transformers")
    folder = tmp_path_factory.mktemp("mixture")
    checkpoints.mixture(folder, "Qwen3Moe", num_hidden_layers=2, mlp_only_layers=[1])
    return folder


def logits(path):
    with Model.load(path) as m:
        return m.session().logits(IDS)


def test_conversion_keeps_every_bit(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "packed")
    np.testing.assert_array_equal(logits(tmp_path / "packed"), logits(checkpoint))
    for path in (checkpoint, tmp_path / "packed"):
        found = {w.role: (w.format, w.shape) for w in describe(path).weights}
        assert found["layers.{}.experts_down"] == ("experts-f32", (7, 64, 48))
        assert found["layers.{}.down"] == ("f32", (64, 160))


def test_experts_are_quantized_one_by_one_and_what_chooses_them_is_not(checkpoint, tmp_path):
    report = convert(checkpoint, tmp_path / "small", quantize="q6g64")
    assert 0 < report.error < 1e-2
    assert {t.role: t.format for t in report.tensors}["layers.0.router"] == "f32"
    with Model.load(tmp_path / "small") as m, open_checkpoint(checkpoint) as source:
        weight = m.weights["layers.0.experts_down"]
        assert weight.format == "experts-q6g64"
        floats = source.tensor("model.layers.0.mlp.experts.3.down_proj.weight")
        alone = formats.to_float32(rtn.quantize(floats, formats.codec("q6g64")))
        np.testing.assert_array_equal(formats.to_float32(weight.experts[3].matrix), alone)
        assert tiny.relative(m.session().logits(IDS), tiny.numpy_logits(m, IDS)) < 5e-3


class Tokens(Calibration):
    """Random texts instead of one's pieces."""

    def texts(self, *_):
        rng = np.random.default_rng(0)
        return [rng.integers(0, 128, 60).tolist() for _ in range(self.samples)]


def test_experts_are_calibrated_with_the_tokens_that_choose_them(checkpoint, tmp_path, monkeypatch):
    """Second moments as transformers' own router and experts make them, while nothing is rounded yet."""
    import torch
    import transformers

    found = {}

    def fake(values, codec, hessian):
        found.setdefault(values.shape, []).append(hessian)
        return rtn.quantize(values, codec)

    monkeypatch.setattr(gptq, "quantize", fake)
    calibration = Tokens("", samples=4)
    convert(checkpoint, tmp_path / "small", quantize="q6g64", method="gptq", calibration=calibration)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    seen = [[] for _ in range(7)]
    block = oracle.model.layers[0].mlp

    def hook(_, inputs, __):
        x = inputs[0][0]
        chosen = torch.topk(x @ block.gate.weight.T, 3).indices
        for e in range(7):
            seen[e].append(x[(chosen == e).any(dim=1)].double().numpy())

    block.register_forward_hook(hook)
    with torch.no_grad():
        for text in calibration.texts():
            oracle(torch.tensor([text]))
    due = [np.concatenate(xs) for xs in seen if sum(map(len, xs)) >= 64]
    assert 3 < len(due) < 8
    assert len(found[96, 64]) == len(due)
    for hessian, x in zip(found[96, 64], due, strict=True):
        expected = x.T @ x / len(x)
        assert (
            np.abs(hessian - expected).max() < 0.05 * np.abs(expected).max()
        )  # attention is rounded to 6 bits by then


def test_calibrated_experts_and_those_that_few_tokens_choose(checkpoint, tmp_path):
    left = {}
    for samples in (1, 12):
        report = convert(
            checkpoint, tmp_path / str(samples), quantize="q3g64", method="gptq", calibration=Tokens("", samples)
        )
        left[samples] = sum(int(w.split()[0]) for w in report.warnings if "experts were only rounded" in w)
    assert 7 <= left[1] <= 14  # 60 tokens; the experts' matrices have 64 and 48 columns
    assert left[12] == 0
    convert(checkpoint, tmp_path / "rounded", quantize="q3g64")
    ids = Tokens("", 13).texts()[-1]

    def far(path):
        with Model.load(path) as m:
            return m.session().logits(ids)

    exact = far(checkpoint)
    rounded, calibrated = (((far(tmp_path / name) - exact) ** 2).sum() for name in ("rounded", "12"))
    assert calibrated < 0.9 * rounded


def test_an_interrupted_calibration_of_experts_goes_on(checkpoint, tmp_path):
    options = {"quantize": "q4g64", "method": "gptq", "calibration": Tokens("", 4)}
    whole = convert(checkpoint, tmp_path / "whole", **options)

    def stop(tensor):
        if tensor.role == EXPERTS[1] and tensor.error is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path / "dst", **options, progress=stop)
    report = convert(checkpoint, tmp_path / "dst", **options)
    assert report.warnings == whole.warnings
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "dst")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_experts": 2000}, UnsupportedModelError),
        ({"num_experts": 0}, CorruptModelError),
        ({"num_experts_per_tok": 7}, CorruptModelError),
        ({"mlp_only_layers": 1}, CorruptModelError),
        ({"decoder_sparse_step": -1}, CorruptModelError),
        ({"moe_intermediate_size": None}, CorruptModelError),
    ],
)
def test_configurations_that_make_no_mixture(change, error):
    with pytest.raises(error):
        qwen3_moe.Config.read(qwen3_moe.TINY | change)


def changed(checkpoint, folder, change):
    """A copy whose matrices of experts in the first layer, called down, are what change(expert, matrix) gives."""
    from safetensors.numpy import load_file, save_file

    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    for e in range(7):
        name = f"model.layers.0.mlp.experts.{e}.down_proj.weight"
        tensors[name] = change(e, tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def binary(values):
    return np.sign(values) * np.float32(0.1)


def test_floats_among_experts_make_all_of_them_floats(checkpoint, tmp_path):
    import torch
    import transformers

    changed(checkpoint, tmp_path, lambda e, values: binary(values) if e == 3 else values)
    with open_checkpoint(tmp_path) as source:
        assert source.dtype("model.layers.0.mlp.experts.3.down_proj.weight").startswith("b1")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = oracle(torch.tensor([IDS])).logits[0].numpy()
    assert tiny.relative(logits(tmp_path), expected) < 1e-4


def test_experts_in_several_formats_are_refused_by_these(checkpoint, tmp_path):
    changed(checkpoint, tmp_path, lambda e, values: binary(values) * (1 if e == 3 else np.abs(values) > 0.05))
    with pytest.raises(UnsupportedModelError, match=r"experts in one format, and these come in b1\S*, q2"):
        Model.load(tmp_path)


def test_experts_with_biases(tmp_path, monkeypatch):
    """Converted, they are the same to the last bit; quantized, what they lose is what rounding loses."""
    checkpoints = pytest.importorskip("checkpoints", reason="needs torch and transformers")
    checkpoints.gpt_oss(tmp_path / "whole")
    convert(tmp_path / "whole", tmp_path / "packed")
    exact = logits(tmp_path / "whole")
    np.testing.assert_array_equal(logits(tmp_path / "packed"), exact)
    for method in ("rtn", "gptq"):
        options = {"method": method, "calibration": Tokens("", 4)} if method == "gptq" else {}
        convert(tmp_path / "whole", tmp_path / method, quantize="q6g64", **options)
        assert 0 < tiny.relative(logits(tmp_path / method), exact) < 0.1
    with open_checkpoint(tmp_path / "packed") as source, Model.load(tmp_path / "packed") as m:
        weight = m.weights["layers.0.experts_down"]
        assert source.shape("layers.0.experts_down.bias") == (7, 64)
        np.testing.assert_array_equal(weight.experts[2].bias, weight.bias[2])
        with pytest.raises(CorruptModelError, match="bias is float32"):
            weight.with_bias(weight.bias[1:]).check("it")


def test_what_no_expert_can_be(checkpoint, tmp_path):
    for name in ("experts-rows-8:littlebit2r8", "experts-littlebit2r8"):
        with pytest.raises(UnsupportedModelError, match="runs no experts in the format"):
            experts.name_of(name.removeprefix("experts-"), "layers.0.experts_down")
    for name in ("experts", "experts-", "experts-experts-f32", "experts-q9"):
        with pytest.raises(CorruptModelError):
            formats.codec(name).layout(2, 3, 4)
    for shape in [(3, 4), (0, 3, 4), (5000, 3, 4)]:
        with pytest.raises(CorruptModelError, match="stores no weight of shape"):
            formats.codec("experts-f32").layout(*shape)
    packed = tmp_path / "packed"
    convert(checkpoint, packed)
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"num_experts": 8}))
    with pytest.raises(CorruptModelError, match=r"layers\.0\.router"):
        Model.load(packed)

"""The training tool, end to end on a few made-up stories: seconds, and only where torch is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install lutra[train]")
pytest.importorskip("tokenizers", reason="training needs tokenizers")

from lutra.tools import corpus, train  # noqa: E402

STORY = (
    "Once upon a time, there was a {0}. The {0} had a red {1}. One day the {1} was lost. "
    "The {0} was sad.\nBut a {2} found the {1}. They were happy and played all day."
)
TINY = "--vocab 300 --hidden 64 --inner 128 --layers 2 --heads 4 --kv-heads 2 --context 128 --rows 2"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    words = ["dog", "cat", "ball", "kite", "bird", "frog"]
    stories = [STORY.format(a, b, c) for a in words for b in words for c in words]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories[6:]))
    (folder / "heldout.txt").write_text("\n<|endoftext|>\n".join(stories[:6]))
    (folder / "chat.tsv").write_text("Question\tAnswer\n/chat\tno\nHow\u2019s it?\tGood \u2026 I see.\n")
    return folder


def run(files: Path, work: Path, *more: str) -> train.Run:
    texts = ["--stories", "stories.txt", "--heldout", "heldout.txt", "--chitchat", "chat.tsv"]
    paths = [word if word.startswith("--") else str(files / word) for word in texts]
    arguments = train.parser().parse_args([*paths, "--work", str(work), *TINY.split(), *more])
    this = train.Run(arguments)
    this.train()
    return this


@pytest.fixture(scope="module")
def trained(files: Path, tmp_path_factory: pytest.TempPathFactory) -> train.Run:
    work = tmp_path_factory.mktemp("work")
    run(files, work, "--steps", "3")
    return run(files, work, "--steps", "6")  # resumes


def test_resumes_and_learns(trained: train.Run) -> None:
    assert trained.step == 6
    assert trained.tokens == 6 * 2 * 128
    log = (trained.args.work / "log.txt").read_text()
    assert "resumed at step 3" in log
    losses = [float(line.split()[3]) for line in log.splitlines() if "held-out" in line]
    assert losses[1] < losses[0] < 6


def test_export_is_complete(trained: train.Run) -> None:
    folder = trained.args.work / "export"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bitnet"
    assert config["quantization_config"]["quantization_mode"] == "online"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1, 5]
    card = (folder / "README.md").read_text()
    assert "--stories stories.txt" in card
    assert "finished" in card
    assert str(trained.args.work) not in card


def test_talks_are_tokenized_as_the_template_renders_them(trained: train.Run) -> None:
    jinja2 = pytest.importorskip("jinja2")
    talk = [("system", "Be kind."), ("user", " What is 1 + 1?"), ("assistant", "1 plus 1 is 2.\n")]
    messages = [{"role": role, "content": text} for role, text in talk]
    template = jinja2.Template((trained.args.work / "export/chat_template.jinja").read_text())
    text = template.render(messages=messages, bos_token=corpus.BOS)
    (document,) = corpus.encode_talks(trained.tokenizer, [talk])
    assert document.ids == trained.tokenizer.encode(text, add_special_tokens=False).ids
    said = [i for i, learn in zip(document.ids, document.learn, strict=True) if learn]
    assert trained.tokenizer.decode(said, skip_special_tokens=False) == "1 plus 1 is 2.<|end|>"


def test_transformers_computes_the_same(trained: train.Run) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference is transformers")
    pytest.importorskip("accelerate", reason="transformers loads BitNet with accelerate")
    torch._dynamo.config.disable = True  # its BitNet is decorated with torch.compile
    folder = trained.args.work / "export"
    theirs = transformers.BitNetForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(6, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits.flatten(0, 1)
        logits = trained.model.logits(ids, torch.zeros_like(ids))
    # One activation rounded the other way moves logits by about a thousandth of their range.
    assert (logits - expected).abs().mean() < 0.01 * expected.abs().max()


def test_ternary_product_and_its_gradients() -> None:
    x = torch.randn(5, 64, requires_grad=True)
    w = [torch.randn(rows, 64, requires_grad=True) for rows in (8, 16)]
    y = train.TernaryMatmul.apply(x, *w)
    y.backward(torch.ones_like(y))
    quantized = [codes * scale for codes, scale in map(train.ternarize, w)]
    fine = 127 / x.abs().amax(-1, keepdim=True)
    levels = (x * fine).round() / fine
    torch.testing.assert_close(y, levels @ torch.cat(quantized).t())
    torch.testing.assert_close(x.grad, torch.cat(quantized).sum(0).expand(5, -1))
    torch.testing.assert_close(w[1].grad, levels.sum(0).expand(16, -1))


def test_rows_hold_every_document_once_and_keep_them_apart() -> None:
    documents = [corpus.Document([n] * n, [True] * n) for n in (3, 9, 4, 1, 7, 20)]
    packed = train.pack(documents, 10)
    assert sorted(len(d) for row in packed for d in row) == [1, 3, 4, 7, 9, 20]
    assert all(sum(map(len, row)) <= 10 for row in packed if len(row) > 1)
    ids, targets, document = train.batch(packed, 10)
    for row in range(len(packed)):
        for at in range(9):
            if targets[row, at] >= 0:
                assert document[row, at] == document[row, at + 1]
                assert targets[row, at] == ids[row, at + 1]


def test_bad_input_is_named(files: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no such file: .*nothing\.txt"):
        corpus.read_stories(tmp_path / "nothing.txt")
    assert corpus.read_pairs(files / "chat.tsv") == [("How's it?", "Good ... I see.")]


def test_requests_name_what_the_story_is_about() -> None:
    import random

    talks: list[Any] = [corpus.ask_for(STORY.format("dog", "ball", "cat"), random.Random(n)) for n in range(40)]
    asked = [text for ((_, text), _) in talks]
    assert sum("a ball" in text.lower() or "a dog" in text.lower() for text in asked) > 20

"""GGUF's tokenizer metadata against llama.cpp, transformers and the tokenizers that it was made from."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.models.loaders import gguf_tokenizer
from lutra.models.loaders.gguf import GGUFFile
from lutra.models.tokenizer import load_tokenizer
from lutra.runtime.errors import CorruptModelError, LutraError, ModelNotFoundError, UnsupportedModelError
from lutra.runtime.model import Model
from lutra.tools.convert import convert
from lutra.tools.describe import describe

tokenizers = pytest.importorskip("tokenizers")

ASSETS = Path(__file__).resolve().parents[1].parent / "shared" / "assets"
# A Python with llama-cpp-python; without it the tests that run llama.cpp are skipped.
PEER_PYTHON = os.environ.get("LUTRA_PEER_PYTHON", sys.executable)

TEXTS = [
    "",
    " ",
    "Hello world",
    "  HelloWorld camelCaseURL's I'LL don't IT'S x12y3456 <b>a|b</b> `code` ~^$+ ",
    "naïve café — Straße ÉCOLE été ǅ, привет МИР!",
    "東京とソウル 한국어 你好\uff0c世界。日本語テキスト123\uff14\uff15\uff16",
    "tabs\tand\r\nlines\n\n  \n1 12 123 1234567 ½ ² ①② 🦙👩‍👩‍👧",
    "مرحبا ؟ עברית a\u00a0b",
]
SPECIAL = ["x<u>y", "a <|bos|> b<|eos|>\n\nc", "<pad>[PAD9]", "<u><u> <|eos|>"]
MARKS = "देवनागरी កាន់តែពិសេស"  # letters with combining marks


def asset(name: str) -> Path:
    path = ASSETS / name
    if not path.exists():
        pytest.skip(f"asset {name} is not here")
    return path


def conformance(case: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's own cases: texts and their ids."""
    texts = asset(f"tokenizers/ggml-vocab/ggml-vocab-{case}.gguf.inp").read_bytes().decode()
    ids = asset(f"tokenizers/ggml-vocab/ggml-vocab-{case}.gguf.out").read_text().split("\n")
    found = [[int(id) for id in line.split()] for line in ids]
    cases = list(zip(texts.split("\n__ggml_vocab_test__\n"), found, strict=False))
    assert len(cases) == 47
    return cases


def write_gguf(path: Path, metadata: dict) -> Path:
    """A file without tensors, as llama.cpp opens for its vocabulary."""
    gguf = pytest.importorskip("gguf", reason="needs the gguf package")
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str) and key != "general.architecture":
            writer.add_string(key, value)
        elif isinstance(value, (list, np.ndarray)):
            writer.add_array(key, value if isinstance(value, list) else value.tolist())
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


PEER = """
import json, sys
import llama_cpp
asked, answers = json.load(sys.stdin), {}
for path in asked["paths"]:
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    answers[path] = [
        [model.tokenize(text.encode(), bos, special) for special in (False, True) for bos in (False, True)]
        for text in asked["texts"]
    ]
json.dump(answers, sys.stdout)
"""


def llama_cpp(paths: list[Path], texts: list[str]) -> list[list[list[list[int]]]]:
    """For each file and text the ids: without and with special tokens, each without and with BOS."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if subprocess.run([PEER_PYTHON, "-c", "import llama_cpp"], env=clean, capture_output=True).returncode:
        pytest.skip("needs llama-cpp-python (LUTRA_PEER_PYTHON can name a Python that has it)")
    asked = json.dumps({"paths": [str(path) for path in paths], "texts": texts})
    done = subprocess.run([PEER_PYTHON, "-c", PEER], input=asked, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    return [answers[str(path)] for path in paths]


def ours(metadata: dict, texts: list[str]) -> list[list[list[int]]]:
    """As llama_cpp(), of one model."""
    tokenizer = load_tokenizer(gguf_tokenizer.files(metadata))
    modes = [(special, bos) for special in (False, True) for bos in (False, None)]
    return [[tokenizer.encode(text, bos, special) for special, bos in modes] for text in texts]


def as_gguf(tokenizer, pre: str | None, **keys) -> dict:
    """The metadata that llama.cpp's converter would write for a byte-level tokenizer of the tokenizers library."""
    spec = json.loads(tokenizer.to_str())
    tokens = {id: token for token, id in spec["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, gguf_tokenizer.NORMAL)
    for token in spec["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = gguf_tokenizer.CONTROL if token["special"] else gguf_tokenizer.USER_DEFINED
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        **({"tokenizer.ggml.pre": pre} if pre else {}),
        "tokenizer.ggml.tokens": [tokens[id] for id in range(len(tokens))],
        "tokenizer.ggml.token_type": np.array([types[id] for id in range(len(tokens))], np.int32),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in spec["model"]["merges"]],
        **{f"tokenizer.{key.replace('__', '.')}": value for key, value in keys.items()},
    }


@pytest.fixture(scope="module")
def byte_level() -> dict:
    """A vocabulary whose merges know no bounds of words, so that every split of a text is seen in its ids."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, MARKS] * 3, trainer)
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>", "<pad>", "[PAD9]"])
    tokenizer.add_tokens(["<u>"])
    bos = tokenizer.token_to_id("<|bos|>")
    metadata = as_gguf(tokenizer, "gpt-2", ggml__bos_token_id=bos, ggml__eos_token_id=bos + 1)
    metadata["tokenizer.ggml.token_type"][[bos + 2, bos + 3]] = gguf_tokenizer.UNKNOWN, gguf_tokenizer.UNUSED
    return metadata


@pytest.fixture(scope="module")
def character_level():
    """A tokenizer as Gemma 4's: some characters are known, the others bytes."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    space = decoders.Replace("\u2581", " ")
    tokenizer.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()])
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, limit_alphabet=70, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def gemma4(character_level) -> dict:
    """Its metadata, as llama.cpp's converter writes it."""
    metadata = as_gguf(character_level, None, ggml__bos_token_id=2, ggml__eos_token_id=1, ggml__unknown_token_id=3)
    types = metadata["tokenizer.ggml.token_type"]
    types[3], types[5:261] = gguf_tokenizer.UNKNOWN, gguf_tokenizer.BYTE
    scores = np.zeros(len(types), np.float32)
    return metadata | {"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.scores": scores}


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> dict:
    """A SentencePiece vocabulary as llama.cpp's converter writes it."""
    spm = pytest.importorskip("sentencepiece")
    prefix = tmp_path_factory.mktemp("spm") / "m"
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, MARKS] * 8),
        model_prefix=str(prefix),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    model = spm.SentencePieceProcessor(model_file=f"{prefix}.model")
    ids = range(model.vocab_size())
    kinds = {
        gguf_tokenizer.UNKNOWN: model.is_unknown,
        gguf_tokenizer.CONTROL: model.is_control,
        gguf_tokenizer.BYTE: model.is_byte,
    }
    types = [next((kind for kind, holds in kinds.items() if holds(id)), gguf_tokenizer.NORMAL) for id in ids]
    added = {"<u>": gguf_tokenizer.USER_DEFINED, "   ": gguf_tokenizer.USER_DEFINED, "<|eos|>": gguf_tokenizer.CONTROL}
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*map(model.id_to_piece, ids), *added],
        "tokenizer.ggml.scores": np.array([*map(model.get_score, ids), *[-1000.0] * len(added)], np.float32),
        "tokenizer.ggml.token_type": np.array([*types, *added.values()], np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


# --- against llama.cpp


@pytest.mark.parametrize("case", ["llama-spm", "phi-3"])
def test_llama_cpps_cases(case):
    cases = conformance(case)
    tokenizer = load_tokenizer(
        gguf_tokenizer.files(GGUFFile(asset(f"tokenizers/ggml-vocab/ggml-vocab-{case}.gguf")).metadata)
    )
    for text, ids in cases:
        assert tokenizer.encode(text, add_bos=False) == ids
        assert tokenizer.decode(ids) == text


def test_characters_as_llama_cpp_and_the_original(character_level, gemma4, tmp_path):
    texts = [*TEXTS, MARKS, "a<turn|>\n\n<bos> b"]
    (theirs,) = llama_cpp([write_gguf(tmp_path / "m.gguf", gemma4)], texts)
    tokenizer = load_tokenizer(gguf_tokenizer.files(gemma4))
    for text, mine, expected in zip(texts, ours(gemma4, texts), theirs, strict=True):
        assert mine == expected, text
        assert mine[2] == character_level.encode(text).ids, text
        assert tokenizer.decode(mine[2], skip_special=False) == text
    assert tokenizer.eos_ids == {1, 4}  # and the end of a turn


# Letters and their marks: llama.cpp's patterns for these simplify the original's, and so do its \s in CJK ranges and
# its \d, which matches no digits but ASCII's.
SIMPLIFIED = {
    MARKS: ("gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie", "tekken"),
    TEXTS[5]: ("superbpe",),
}


def test_every_split_equals_llama_cpp(byte_level, tmp_path):
    names = list(gguf_tokenizer._SPLITS)
    models = [{**byte_level, "tokenizer.ggml.pre": name} for name in names]
    texts = [*TEXTS, MARKS, *SPECIAL]
    theirs = llama_cpp([write_gguf(tmp_path / f"{i}.gguf", m) for i, m in enumerate(models)], texts)
    for name, model, expected in zip(names, models, theirs, strict=True):
        for text, mine, peer in zip(texts, ours(model, texts), expected, strict=True):
            if name not in SIMPLIFIED.get(text, ()):
                assert mine == peer, (name, text)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_equals_llama_cpp(sentencepiece, tmp_path, prefix):
    texts = [*TEXTS, MARKS, *SPECIAL, "</s> a<s>", "<u>", "a   b    <u>   \n   "]
    model = {**sentencepiece, "tokenizer.ggml.add_space_prefix": prefix, "tokenizer.ggml.add_bos_token": prefix}
    (theirs,) = llama_cpp([write_gguf(tmp_path / "m.gguf", model)], texts)
    for text, mine, expected in zip(texts, ours(model, texts), theirs, strict=True):
        assert mine == expected, text


def test_a_row_without_a_token_changes_nothing(sentencepiece):
    tokens = sentencepiece["tokenizer.ggml.tokens"]
    emptied = [*tokens[:-1], ""]
    changed = load_tokenizer(gguf_tokenizer.files({**sentencepiece, "tokenizer.ggml.tokens": emptied}))
    whole = load_tokenizer(gguf_tokenizer.files(sentencepiece))
    for text in TEXTS:
        assert changed.encode(text) == whole.encode(text)
    assert changed.decode([len(tokens) - 1, *changed.encode("otter")]) == "otter"


def test_phi_3_strips_as_llama_cpp():
    path = asset("tokenizers/ggml-vocab/ggml-vocab-phi-3.gguf")
    texts = ["<|user|>\n Hi <|end|>\n\n<|assistant|>  \n", "<s>  a<|endoftext|>  b<unk> c", "<|system|>"]
    (theirs,) = llama_cpp([path], texts)
    for mine, expected in zip(ours(GGUFFile(path).metadata, texts), theirs, strict=True):
        assert mine[2] == expected[2]


# --- against the tokenizers that the metadata was made from


def ranks(path: str) -> dict[bytes, int]:
    """A tiktoken file."""
    pairs = (line.split() for line in Path(path).read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


QWEN2 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]


@pytest.fixture(scope="module", params=["llama-bpe", "qwen2"])
def original(request):
    """llama.cpp's name, transformers' tokenizer as the tokenizers library has it, and the metadata made from it."""
    pytest.importorskip("transformers")
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    file = asset(
        "tokenizers/llama3/tokenizer.model" if request.param == "llama-bpe" else "tokenizers/qwen/qwen.tiktoken"
    )
    special = LLAMA3 if request.param == "llama-bpe" else QWEN2
    converter = TikTokenConverter(str(file), extra_special_tokens=special)
    converter.load_tiktoken_bpe = ranks
    if request.param == "llama-bpe":
        tokenizer, pre, keys = converter.converted(), None, {"ggml__bos_token_id": 128000}
    else:
        vocab, merges = converter.extract_vocab_merges_from_model(str(file))
        whole = Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=special[1:])
        tokenizer, pre, keys = whole.backend_tokenizer, "qwen2", {"ggml__add_bos_token": False}
    return request.param, tokenizer, as_gguf(tokenizer, pre, **keys)


@pytest.fixture(scope="module")
def remade(original):
    return load_tokenizer(gguf_tokenizer.files(original[2]))


def test_llama_cpps_cases_of_byte_level_models(original, remade):
    for text, ids in conformance(original[0]):
        assert remade.encode(text, add_bos=False) == ids
        assert remade.decode(ids) == text


def test_reads_texts_as_the_original(original, remade):
    name, theirs, _ = original
    assert remade.vocab_size == theirs.get_vocab_size()
    for file in ("text/tinystories_heldout.txt", "text/wordnet_definitions.tsv", "text/dialog_taskmaster4.jsonl"):
        with asset(file).open(encoding="utf-8") as lines:
            text = lines.read(50_000)
        assert remade.encode(text, False, parse_special=True) == theirs.encode(text, add_special_tokens=False).ids
    bos = [128000] if name == "llama-bpe" else []
    assert remade.encode("a") == [*bos, *theirs.encode("a", add_special_tokens=False).ids]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_reads_anything_as_the_original(original, remade, text):
    assert remade.encode(text, False, parse_special=True) == original[1].encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_transformers_reads_the_files(kind, tmp_path, request):
    transformers = pytest.importorskip("transformers")
    metadata = request.getfixturevalue(kind)
    for name, content in gguf_tokenizer.files(metadata).items():
        (tmp_path / name).write_bytes(content)
    pytest.importorskip("google.protobuf", reason="transformers reads SentencePiece models with it")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    folder = load_tokenizer(tmp_path)
    assert ours(metadata, TEXTS) == [
        [folder.encode(t, bos, special) for special in (False, True) for bos in (False, None)] for t in TEXTS
    ]
    assert (theirs.bos_token_id, theirs.eos_token_id) == tuple(
        metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")
    )
    for text in TEXTS:
        if kind == "sentencepiece" and text.startswith(" "):
            continue  # transformers puts no second space there, SentencePiece and llama.cpp do
        ids = theirs.encode(text, add_special_tokens=False)
        assert folder.encode(text, add_bos=False) == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == folder.decode(ids)


TEMPLATES = ["chat/qwen2.5/tokenizer_config.json", "chat/qwen3/tokenizer_config.json"] + [
    f"chat/templates/{name}.jinja"
    for name in (
        "google-gemma-2-2b-it",
        "meta-llama-Llama-3.2-3B-Instruct",
        "HuggingFaceTB-SmolLM3-3B",
        "microsoft-Phi-3.5-mini-instruct",
    )
]


@pytest.mark.parametrize("name", TEMPLATES, ids=lambda name: name[-36:])
def test_templates_render_as_from_a_folder(byte_level, tmp_path, name):
    text = asset(name).read_text(encoding="utf-8")
    text = text if name.endswith(".jinja") else json.loads(text)["chat_template"]
    files = gguf_tokenizer.files(byte_level)
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    config = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": text}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    folder = load_tokenizer(tmp_path)
    tokenizer = load_tokenizer(gguf_tokenizer.files({**byte_level, "tokenizer.chat_template": text}))
    chat = [
        {"role": "user", "content": "Hi <|eos|>"},
        {"role": "assistant", "content": "<u>"},
        {"role": "user", "content": "é"},
    ]
    options = {"date_string": "26 Jul 2024"}
    assert tokenizer.chat_template == text
    assert tokenizer.apply_chat_template(chat, **options) == folder.apply_chat_template(chat, **options)
    assert tokenizer.encode_chat(chat, **options) == folder.encode_chat(chat, **options)


def test_several_templates(byte_level):
    named = {
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "T",
        "tokenizer.chat_templates": ["tool_use"],
    }
    tokenizer = load_tokenizer(gguf_tokenizer.files({**byte_level, **named}))
    message = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(message) == "D"
    assert tokenizer.apply_chat_template(message, tools=[{}]) == "T"
    assert load_tokenizer(gguf_tokenizer.files(byte_level)).chat_template is None


# --- what the keys say


def test_all_that_end_an_answer(byte_level):
    more = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 6}
    tokenizer = load_tokenizer(gguf_tokenizer.files({**byte_level, **more}))
    assert tokenizer.eos_ids == {5, 6, byte_level["tokenizer.ggml.eos_token_id"]}
    assert {5, 6} <= tokenizer.special_ids, "whatever their types say"


def test_bos_policy(byte_level, sentencepiece):
    def first(metadata, **keys):
        files = gguf_tokenizer.files({**metadata, **{f"tokenizer.ggml.{key}": value for key, value in keys.items()}})
        tokenizer = load_tokenizer(files, {"bos_token_id": 7})
        return tokenizer.bos_id, tokenizer.encode("a")[0] == tokenizer.bos_id

    bos = byte_level["tokenizer.ggml.bos_token_id"]
    assert first(byte_level) == (bos, False)
    assert first(byte_level, add_bos_token=True) == (bos, True)
    assert first(byte_level, pre="llama-bpe") == (bos, True)
    assert first(byte_level, pre="llama-bpe", add_bos_token=False) == (bos, False)
    assert first(byte_level, add_bos_token=True, bos_token_id=2**32 - 1) == (None, False)
    assert first(sentencepiece) == (1, True)
    assert first(sentencepiece, add_bos_token=False) == (1, False)
    bare = {key: value for key, value in sentencepiece.items() if not key.endswith("_token_id")}
    assert first(bare) == (1, True), "as llama.cpp, where nothing is said"


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_no_text_is_ended(kind, tmp_path, request):
    """llama.cpp obeys add_eos_token, and answers would follow an end; it is equal but for that."""
    plain = request.getfixturevalue(kind)
    keys = {f"tokenizer.ggml.add_{x}": True for x in ("bos_token", "eos_token", "space_prefix")}
    texts = [text for text in TEXTS if text]
    (theirs,) = llama_cpp([write_gguf(tmp_path / "m.gguf", plain | keys)], texts)
    for text, mine, peer in zip(texts, ours(plain | keys, texts), theirs, strict=True):
        assert peer[1][-1] == plain["tokenizer.ggml.eos_token_id"]
        assert mine == [ids[:-1] if with_bos else ids for ids, with_bos in zip(peer, (0, 1, 0, 1), strict=True)], text


def test_a_vocabulary_of_llama_3_needs_no_name(byte_level):
    tokens, types = (byte_level[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    short = {key: value for key, value in byte_level.items() if not key.endswith(".pre")}
    size = 128256 - len(tokens)
    padded = {
        **short,
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{id}]" for id in range(10, 10 + size))],
        "tokenizer.ggml.token_type": np.append(types, np.full(size, gguf_tokenizer.UNUSED)),
    }
    for metadata, name in ((padded, "llama-bpe"), (short, "default")):
        assert ours(metadata, TEXTS) == ours({**metadata, "tokenizer.ggml.pre": name}, TEXTS)
    assert ours(short, TEXTS) != ours({**short, "tokenizer.ggml.pre": "gpt-2"}, TEXTS)


@pytest.mark.parametrize("metadata", [{}, {"tokenizer.ggml.model": "no_vocab"}, {"general.architecture": "llama"}])
def test_no_tokenizer(metadata):
    assert gguf_tokenizer.files(metadata) == {}
    with pytest.raises(ModelNotFoundError, match="no tokenizer"):
        load_tokenizer(gguf_tokenizer.files(metadata))


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2"])
def test_other_kinds_are_refused_by_name(kind):
    with pytest.raises(UnsupportedModelError, match=kind) as refusal:
        gguf_tokenizer.files({"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": ["a"]})
    assert "tokenizer.json" in refusal.value.hint


def test_other_splits_are_refused_by_name(byte_level):
    with pytest.raises(UnsupportedModelError, match="kimi-k2"):
        gguf_tokenizer.files({**byte_level, "tokenizer.ggml.pre": "kimi-k2"})


# --- in a model


def write_model(path: Path, metadata: dict) -> Path:
    for library in ("torch", "transformers", "accelerate", "gguf"):
        pytest.importorskip(library)
    import gguf_files

    keys = {
        k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in metadata.items() if k != "general.architecture"
    }
    gguf_files.write(
        path, gguf_files.model("llama", vocab_size=len(keys["tokenizer.ggml.tokens"])), ["Q8_0"], keys=keys
    )
    return path


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_converted_model_chats_as_its_source(kind, tmp_path, request):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|eos|><u>{% endfor %}"
    metadata = {**request.getfixturevalue(kind), "tokenizer.chat_template": template, "tokenizer.ggml.eot_token_id": 5}
    path = write_model(tmp_path / "m.gguf", metadata)
    assert convert(path, tmp_path / "converted").warnings == ()
    assert describe(path).chat_template
    chat = [{"role": "user", "content": "Hi <u> <|eos|> é"}, {"role": "assistant", "content": "東京"}]
    with Model.load(path) as source, Model.load(tmp_path / "converted") as converted:
        a, b = source.tokenizer, converted.tokenizer
        assert (a.bos_id, a.eos_ids, a.special_ids) == (b.bos_id, b.eos_ids, b.special_ids)
        assert 5 in a.eos_ids
        assert a.encode_chat(chat) == b.encode_chat(chat)
        for text in [*TEXTS, *SPECIAL]:
            assert a.encode(text) == b.encode(text)


def test_a_model_opens_without_its_tokenizer(byte_level, tmp_path):
    path = write_model(tmp_path / "m.gguf", {**byte_level, "tokenizer.ggml.pre": "unheard-of"})
    with Model.load(path) as model:
        assert np.isfinite(model.session().logits([1, 2])).all()
        with pytest.raises(UnsupportedModelError, match="unheard-of"):
            _ = model.tokenizer
    assert "unheard-of" in " ".join(describe(path).warnings)
    assert "unheard-of" in " ".join(convert(path, tmp_path / "converted").warnings)
    assert not list((tmp_path / "converted").glob("tokenizer*"))


# --- damage

DAMAGE = {
    "model": [3, ["gpt2"], np.zeros(2)],
    "pre": [3, np.zeros(2)],
    "tokens": [None, [], "abc", np.arange(5), ["a", 3], ["a", "a"], ["a", "\udc80"], ["a"]],
    "token_type": ["x", np.arange(5), np.array([["a"]]), 1, "zeros", "sevens", "nan"],
    "merges": [3, [3], np.arange(3), ["a"], ["nobody knows"], ["a b c"], [""], ["a  b"], [" "]],
    "scores": [3, np.arange(3), "nan"],
    "bos_token_id": [10**9, 1.0, "a", True, -7, [1]],
    "eos_token_id": [10**9, -(2**40)],
    "eot_token_id": [10**9],
    "padding_token_id": [10**9],
    "unknown_token_id": [10**9],
    "add_bos_token": [1, "yes"],
    "add_space_prefix": [0],
}
CASES = [
    (kind, key, value)
    for key, values in DAMAGE.items()
    for value in values
    for kind in ("byte_level", "sentencepiece")
    if (key, kind) not in {("scores", "byte_level"), ("add_space_prefix", "byte_level"), ("pre", "sentencepiece")}
    if (key, kind) != ("merges", "sentencepiece")
]


@pytest.mark.parametrize(("kind", "key", "value"), CASES)
def test_damaged_metadata(kind, key, value, request):
    metadata = dict(request.getfixturevalue(kind))
    size = len(metadata["tokenizer.ggml.tokens"])
    arrays = {"zeros": np.zeros(size), "sevens": np.full(size, 7), "nan": np.full(size, np.nan)}
    metadata[f"tokenizer.ggml.{key}"] = arrays.get(value, value) if isinstance(value, str) else value
    with pytest.raises(CorruptModelError, match=r"tokenizer\."):
        load_tokenizer(gguf_tokenizer.files(metadata))


@pytest.mark.parametrize("template", [3, ["a"], np.zeros(2), True])
@pytest.mark.parametrize("key", ["chat_template", "chat_template.tool_use"])
def test_damaged_templates(byte_level, key, template):
    with pytest.raises(CorruptModelError, match=key):
        gguf_tokenizer.files({**byte_level, f"tokenizer.{key}": template})


@pytest.mark.parametrize("change", ["no scores", "no types", "one byte less", "nul"])
def test_damaged_pieces(sentencepiece, change):
    metadata = dict(sentencepiece)
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), metadata["tokenizer.ggml.token_type"].copy()
    if change == "no scores":
        del metadata["tokenizer.ggml.scores"]
    elif change == "one byte less":
        types[tokens.index("<0x0A>")] = gguf_tokenizer.NORMAL
    elif change != "no types":
        tokens[-1] = "a\0b"
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if change == "no types":
        del metadata["tokenizer.ggml.token_type"]
        assert load_tokenizer(gguf_tokenizer.files(metadata)).encode("a", False), "then all pieces are normal"
        return
    with pytest.raises(CorruptModelError, match=r"tokenizer\."):
        load_tokenizer(gguf_tokenizer.files(metadata))


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.text(max_size=3), max_size=9),
)
names = [
    "tokens",
    "token_type",
    "scores",
    "merges",
    "pre",
    "bos_token_id",
    "eos_token_id",
    "add_bos_token",
    "add_space_prefix",
]


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["gpt2", "llama"]),
    tokens=st.lists(st.text("ab <>\u2581\0é\n", max_size=4), max_size=12),
    types=st.lists(st.integers(1, 6), min_size=12, max_size=12),
    merges=st.lists(st.text("ab ", max_size=4), max_size=4),
    other=st.dictionaries(st.sampled_from(names), values, max_size=2),
)
def test_any_metadata_is_read_or_refused(kind, tokens, types, merges, other):
    metadata = {
        "model": kind,
        "tokens": tokens,
        "token_type": np.array(types[: len(tokens)], np.int32),
        "scores": -np.arange(len(tokens), dtype=np.float32),
        "merges": merges,
        **other,
    }
    try:
        tokenizer = load_tokenizer(gguf_tokenizer.files({f"tokenizer.ggml.{k}": v for k, v in metadata.items()}))
    except LutraError:
        return
    for special in (True, False):
        tokenizer.decode(tokenizer.encode("ab <a> \u2581é\nb\0", parse_special=special))


def test_a_very_long_token(byte_level, sentencepiece):
    def load(metadata):
        tokens = [*metadata["tokenizer.ggml.tokens"][:-1], "a" * 2**20]
        return load_tokenizer(gguf_tokenizer.files({**metadata, "tokenizer.ggml.tokens": tokens}))

    tokenizer = load(byte_level)
    assert tokenizer.encode("b" + "a" * 2**20, False, parse_special=True)[-1] == tokenizer.vocab_size - 1
    with pytest.raises(CorruptModelError, match="too long"):
        load(sentencepiece)

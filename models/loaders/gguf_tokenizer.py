"""GGUF's tokenizer metadata as the files that a Hugging Face directory would hold.

``tokenizer.ggml.model`` says what there is: "llama" is a SentencePiece BPE model, pieces with scores, and becomes
``tokenizer.model``; "gpt2" is byte-level BPE and becomes ``tokenizer.json``, as "gemma4" does, BPE of characters, whose
unknown ones are bytes. What a text is split into before merging
is not in the metadata: ``tokenizer.ggml.pre`` names it. The names and what they stand for are llama.cpp's; where the
original's pattern is known to say more, it is the original's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from lutra.models.byte_level import CONTRACTION, beginning, cl100k, split_at, tokenizer_json
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

__all__ = ["files"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token types, SentencePiece's too

ENDS = ("eos", "eot", "eom")
NAMES = ("unknown", "bos", "padding", *ENDS)
LLAMA_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # where a SentencePiece model's metadata does not say

ELSEWHERE = "Convert the model, then put the tokenizer.json of the original model into the folder."


def files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer's files by name, with those that say how to chat and when to stop; none if there is no tokenizer.

    ``metadata``: keys of a GGUF file; an array of strings is a list, one of numbers a 1-D numpy array. Raises
    UnsupportedModelError for a kind of tokenizer that lutra does not know, CorruptModelError for metadata that
    contradicts itself. What the tokenizer's library checks, merges for one, is left to it. No text is ended with EOS,
    though add_eos_token ask for it: what comes behind would begin another one.
    """
    keys = _Keys(metadata)
    kind = keys.text("ggml.model") or "no_vocab"
    if kind == "no_vocab":
        return {}
    if kind not in ("llama", *_BPE):
        raise UnsupportedModelError(f"lutra does not read tokenizers of GGUF's kind {kind!r}", ELSEWHERE)
    vocabulary = _Vocabulary.read(keys, LLAMA_IDS if kind == "llama" else {})
    made = _sentencepiece(keys, vocabulary) if kind == "llama" else _BPE[kind](keys, vocabulary)
    made.configuration["chat_template"] = _templates(keys)
    generation = {"eos_token_id": [vocabulary.ids[name] for name in ENDS if name in vocabulary.ids]}
    return {
        made.name: made.content,
        "tokenizer_config.json": json.dumps(made.configuration).encode(),
        "generation_config.json": json.dumps(generation).encode(),
    }


@dataclass
class _Made:
    """A vocabulary's file, and what its tokenizer_config.json has to say."""

    name: str
    content: bytes
    configuration: dict[str, Any]


class _Keys:
    """Metadata under "tokenizer.", each value checked for its type; None where there is none."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata

    def _get(self, name: str, kind: type, what: str) -> Any:
        value = self._metadata.get(f"tokenizer.{name}")
        if value is not None and type(value) is not kind:
            raise CorruptModelError(f"tokenizer.{name} is not {what}")
        return value

    def text(self, name: str) -> str | None:
        value: str | None = self._get(name, str, "a text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value: bool | None = self._get(name, bool, "true or false")
        return default if value is None else value

    def texts(self, name: str) -> list[str]:
        """An array of strings, empty where there is none."""
        values: list[str] = self._get(name, list, "an array of texts") or []
        if not set(map(type, values)) <= {str}:
            raise CorruptModelError(f"tokenizer.{name} is not an array of texts")
        return values

    def numbers(self, name: str, length: int) -> np.ndarray | None:
        """A float64 array of ``length`` finite numbers."""
        values: np.ndarray | None = self._get(name, np.ndarray, "an array of numbers")
        if values is None:
            return None
        if values.dtype.kind not in "iuf" or values.shape != (length,) or not np.isfinite(values).all():
            raise CorruptModelError(f"tokenizer.{name} is not an array of {length} numbers, one for each token")
        return values.astype(np.float64)

    def id(self, name: str, size: int, default: int | None) -> int | None:
        """One of ``size`` tokens' ids; -1, which some converters write where there is none, is None."""
        value: int | None = self._get(name, int, "a token id")
        if value is None:
            return default if default is not None and default < size else None
        if value in (-1, 2**32 - 1):
            return None
        if not 0 <= value < size:
            raise CorruptModelError(f"tokenizer.{name} is {value}, and there are {size} tokens")
        return value

    def named(self, prefix: str) -> Iterator[str]:
        """The rest of all names that begin with ``prefix``."""
        start = f"tokenizer.{prefix}"
        return (name[len(start) :] for name in self._metadata if name.startswith(start))

    @property
    def architecture(self) -> object:
        return self._metadata.get("general.architecture")


@dataclass
class _Vocabulary:
    """tokens: texts in the order of ids, each but once. types: one of NORMAL..BYTE for each. ids: of those in NAMES."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]

    @classmethod
    def read(cls, keys: _Keys, ids: Mapping[str, int]) -> _Vocabulary:
        """``ids``: those that are meant where the metadata names none."""
        tokens = keys.texts("ggml.tokens")
        if not tokens:
            raise CorruptModelError("tokenizer.ggml.tokens holds no tokens")
        if len(set(tokens)) < len(tokens):
            raise CorruptModelError("tokenizer.ggml.tokens has a token twice")
        try:
            "".join(tokens).encode()
        except UnicodeEncodeError as error:
            raise CorruptModelError("tokenizer.ggml.tokens has a token that is not UTF-8") from error
        types = keys.numbers("ggml.token_type", len(tokens))
        types = np.full(len(tokens), NORMAL) if types is None else types
        if not np.isin(types, (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)).all():
            raise CorruptModelError("tokenizer.ggml.token_type has a type that there is not")
        found = {name: keys.id(f"ggml.{name}_token_id", len(tokens), ids.get(name)) for name in NAMES}
        named = {name: id for name, id in found.items() if id is not None}
        # Old converters gave no types, and some a wrong one to a token that ends an answer.
        marks = [named[name] for name in ("bos", *ENDS) if name in named]
        types[[id for id in marks if types[id] != BYTE]] = CONTROL
        return cls(tokens, types.astype(int).tolist(), named)

    def texts(self) -> dict[str, str | None]:
        """tokenizer_config.json's names for some tokens; None for none, for then no other file's id is asked."""
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        return {key: self.tokens[self.ids[name]] if name in self.ids else None for key, name in names.items()}

    def added(self) -> dict[int, dict[str, Any]]:
        """The tokens that are matched in a text before anything is merged, by id, as AddedToken's fields.

        Only user-defined ones match whatever text they are found in, the others are special.
        """
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        found = np.flatnonzero(np.isin(self.types, (CONTROL, USER_DEFINED, UNKNOWN))).tolist()
        return {
            id: {"content": self.tokens[id], **flags, "special": self.types[id] != USER_DEFINED}
            for id in found
            if self.tokens[id]
        }


def _templates(keys: _Keys) -> list[dict[str, str]]:
    found = {"default": keys.text("chat_template")}
    found |= {name: keys.text(f"chat_template.{name}") for name in keys.named("chat_template.")}
    return [{"name": name, "template": text} for name, text in found.items() if text is not None]


# --- SentencePiece


def _sentencepiece(keys: _Keys, vocabulary: _Vocabulary) -> _Made:
    """tokenizer.model."""
    tokens = vocabulary.tokens
    scores = keys.numbers("ggml.scores", len(tokens))
    if scores is None:
        raise CorruptModelError("tokenizer.ggml.scores is missing")
    if any("\0" in token for token in tokens):
        raise CorruptModelError("tokenizer.ggml.tokens has a token that SentencePiece cannot hold")
    # There is one unknown piece; converters give that type to rows without a token, too, and another one to it.
    # User-defined pieces are matched before the library sees a text: the space it puts in front is no part of them.
    types = [CONTROL if type in (UNKNOWN, USER_DEFINED) else type for type in vocabulary.types]
    types[vocabulary.ids.get("unknown", 0)] = UNKNOWN
    # Rows without a token, which only have a number to be called by.
    types = [type if token else CONTROL for type, token in zip(types, tokens, strict=True)]
    tokens = [token or f"<empty {id}>" for id, token in enumerate(tokens)]
    added = vocabulary.added()
    if keys.architecture == "phi3":
        _strip_as_phi3(added)
    listed = {id: fields for id, fields in added.items() if fields["rstrip"] or not fields["special"]}
    configuration = {
        **vocabulary.texts(),
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": keys.flag("ggml.add_bos_token", True),
        "added_tokens_decoder": listed,
    }
    prefix = keys.flag("ggml.add_space_prefix", True)
    content = _model_proto(tokens, types, scores, vocabulary.ids, prefix)
    return _Made("tokenizer.model", content, configuration)


def _strip_as_phi3(added: Mapping[int, dict[str, Any]]) -> None:
    """Phi-3's turn marks swallow the whitespace that follows them, which only its name tells."""
    for fields in added.values():
        fields["rstrip"] = fields["content"] not in ("<unk>", "<s>", "<|endoftext|>")


def _model_proto(
    tokens: list[str], types: list[int], scores: np.ndarray, ids: Mapping[str, int], prefix: bool
) -> bytes:
    """SentencePiece's ModelProto; the numbers are those of the fields in its sentencepiece_model.proto."""
    proto = bytearray(_pieces(tokens, types, scores))
    trainer: list[tuple[int, int | str]] = [
        (3, 2),
        (4, len(tokens)),
        (35, int(BYTE in types)),
    ]  # BPE, how many, bytes for what is no piece
    for number, name in enumerate(("unknown", "bos", "eos", "padding")):
        if name in ids:
            trainer += [(40 + number, ids[name]), (45 + number, tokens[ids[name]])]
    normalizer: list[tuple[int, int | str]] = [
        (1, "identity"),
        (3, int(prefix)),
        (4, 0),
    ]  # a space put in front, and all spaces are kept
    proto += _field(2, b"".join(_field(*entry) for entry in trainer))
    proto += _field(3, b"".join(_field(*entry) for entry in normalizer))
    return bytes(proto)


def _pieces(tokens: list[str], types: list[int], scores: np.ndarray) -> bytes:
    """ModelProto's pieces: texts, scores and types. There are hundreds of thousands: what can be is made for all."""
    texts = [token.encode() for token in tokens]
    ends = np.empty(len(tokens), [("score", "u1"), ("value", "<f4"), ("type", "u1"), ("number", "u1")])
    ends["score"], ends["value"], ends["type"], ends["number"] = 2 << 3 | 5, scores, 3 << 3, types
    begins = {n: _varint(1 << 3 | 2) + _varint(n) for n in set(map(len, texts))}
    sizes = {n: _varint(1 << 3 | 2) + _varint(len(begin) + n + ends.itemsize) for n, begin in begins.items()}
    heads = {n: sizes[n] + begin for n, begin in begins.items()}
    each = zip((heads[len(text)] for text in texts), texts, ends.view(f"V{ends.itemsize}").tolist(), strict=True)
    return b"".join(chain.from_iterable(each))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A protobuf field."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


# --- byte-level BPE


@dataclass(frozen=True)
class _Split:
    """How texts are split before merging: at each pattern's matches, one pattern after the other.

    whole: a part that is a token is not split further, whatever the merges say. bos: a text begins with BOS if the
    metadata does not say. nfc: texts are put into Unicode's normal form C first.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False
    nfc: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _o200k(contraction: str, digits: str) -> str:
    """Words change at a capital letter after a small one."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{contraction}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{contraction}"
    return rf"{words}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_PUNCTUATION = r"[\p{P}$+<=>^~|]+"
_CJK = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_QWEN35 = (  # marks belong to their letters
    rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_EXAONE_MOE = (  # a run of words is one part
    rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_CHAMELEON = (
    *("<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z"),  # what stands for images
    *(r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]"),
)
_CASED = (  # letters of scripts that have cases, as DeepSeek's first tokenizer lists them
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    r"\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    r"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    r"\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    r"\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    r"\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    r"\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    r"\uff41-\uff5a\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}"
    r"\x{118a0}-\x{118df}\x{1e900}-\x{1e943}"
)

_SPLITS = {
    name: split
    for split, names in (
        (_Split((_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
        (_Split((_GPT2,)), "gpt-2 phi-2 gigachat a.x-4.0 mellum jais trillion granite-docling exaone4"),
        (_Split((_GPT2,), nfc=True), "mpt olmo"),  # GPT-NeoX's
        (_Split((r"\p{N}", _GPT2)), "starcoder refact smollm codeshell exaone minerva-7b mellum2"),
        (_Split((r"\p{N}", _GPT2), nfc=True), "command-r"),
        (_Split((cl100k("{1,3}"),)), "dbrx smaug-bpe glm4 glm5 chatglm-bpe"),
        (
            _Split((cl100k("{1,3}"),), whole=True, bos=True),
            "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        ),
        (_Split((cl100k(""),), nfc=True), "qwen2 deepseek-r1-qwen megrez kormo f2llmv2"),
        (
            _Split((cl100k(""),)),
            "stablelm2 hunyuan solar-open grok-2 bailingmoe bailingmoe2 llada-moe ufakzeka",
        ),
        (_Split((r"\p{N}{1,3}", cl100k("{1,3}"))), "minicpm5"),
        (_Split((r"\n+", cl100k(""))), "laguna"),
        (_Split((_QWEN35,), nfc=True), "qwen35"),
        (_Split((_SEED,)), "seed-coder"),
        (_Split((_EXAONE_MOE,)), "exaone-moe"),
        (_Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")), "superbpe"),
        (_Split((*_CHAMELEON, _GPT2), bos=True), "chameleon"),
        (_Split((_o200k(CONTRACTION + "?", "{1,3}"),)), "gpt-4o llama4 kanana2 minimax-m2 talkie"),
        (_Split((_o200k("", ""),), whole=True, bos=True), "tekken"),
        (_Split((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
        (_Split((_BLOOM,)), "bloom poro-chat gpt3-finnish"),
        (_Split((_BLOOM, r"\p{N}")), "viking"),
        (_Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")), "deepseek-coder"),
        (
            _Split(
                (
                    r"[\r\n]",
                    rf"\s?[{_CASED}]+",
                    r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                    r"\s+$",
                    _CJK,
                    r"\p{N}+",
                )
            ),
            "deepseek-llm",
        ),
        (_Split(_DEEPSEEK3), "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    )
    for name in names.split()
}


def _byte_level(keys: _Keys, vocabulary: _Vocabulary) -> _Made:
    """tokenizer.json."""
    split = _split_of(keys, vocabulary)
    bos = vocabulary.ids.get("bos") if keys.flag("ggml.add_bos_token", split.bos) else None
    content = tokenizer_json(
        dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True)),
        keys.texts("ggml.merges"),
        split_at(split.patterns),
        added=[{"id": id, **fields} for id, fields in vocabulary.added().items()],
        nfc=split.nfc,
        whole=split.whole,
        bos=None if bos is None else vocabulary.tokens[bos],
    )
    return _made(content, vocabulary, bos)


def _character_level(keys: _Keys, vocabulary: _Vocabulary) -> _Made:
    """tokenizer.json of Gemma 4: spaces are letters, and a text is split at runs of line feeds only."""
    bos = vocabulary.ids.get("bos") if keys.flag("ggml.add_bos_token", True) else None
    unknown = vocabulary.tokens[vocabulary.ids["unknown"]] if "unknown" in vocabulary.ids else None
    lines = {"type": "Split", "pattern": {"Regex": r"[^\n]+|\n+"}, "behavior": "Isolated", "invert": False}
    spaces = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": id, **fields} for id, fields in vocabulary.added().items()],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": lines,
        "post_processor": None if bos is None else beginning(bos, vocabulary.tokens[bos]),
        "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True)),
            "merges": [_pair(merge) for merge in keys.texts("ggml.merges")],
        },
    }
    return _made(json.dumps(tokenizer, ensure_ascii=False).encode(errors="surrogatepass"), vocabulary, bos)


def _pair(merge: str) -> list[str]:
    """The two sides of a merge, of which the first may begin with a space."""
    cut = merge.find(" ", 1)
    return [merge[:cut], merge[cut + 1 :]] if cut > 0 else [merge, ""]


def _made(content: bytes, vocabulary: _Vocabulary, bos: int | None) -> _Made:
    configuration = {
        **vocabulary.texts(),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bos is not None,
    }
    return _Made("tokenizer.json", content, configuration)


_BPE = {"gpt2": _byte_level, "gemma4": _character_level}


def _split_of(keys: _Keys, vocabulary: _Vocabulary) -> _Split:
    name = keys.text("ggml.pre")
    if not name:  # BitNet's converter left it out, and only its vocabulary tells that it is Llama 3's
        name = "llama-bpe" if len(vocabulary.tokens) == 128256 else "default"
    if name not in _SPLITS:
        raise UnsupportedModelError(
            f"lutra does not know how a tokenizer of GGUF's kind {name!r} splits text", ELSEWHERE
        )
    return _SPLITS[name]

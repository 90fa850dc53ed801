"""Byte-level BPE as a tokenizer.json, from other files that hold one: GPT-2's vocab.json and merges.txt, or GGUF."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lutra.runtime.errors import UnsupportedModelError

__all__ = ["CONTRACTION", "beginning", "cl100k", "from_pair", "split_at", "tokenizer_json"]

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Whose tokenizers are saved as a pair of files, by the class that tokenizer_config.json names or the model's type.
GPT2 = ("GPT2Tokenizer", "opt", "gpt2", "starcoder2", "granite")
QWEN2 = ("Qwen2Tokenizer", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")


def cl100k(digits: str) -> str:
    """The pattern of tiktoken's cl100k_base; ``digits``: how many are one part, as "{1,3}"; "" for each alone."""
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|{rest}"


def split_at(patterns: Iterable[str], prefix_space: bool = False) -> dict[str, Any]:
    """The pre-tokenizer that splits a text at each pattern's matches, one pattern after the other; none: as GPT-2's.

    prefix_space: one is put before what does not begin with one.
    """
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _as_letters(prefix_space, use_regex=not splits)]}


def tokenizer_json(
    vocab: Mapping[str, int],
    merges: Sequence[str],
    pre_tokenizer: Mapping[str, Any],
    *,
    added: Sequence[Mapping[str, Any]] = (),
    nfc: bool = False,
    whole: bool = False,
    bos: str | None = None,
) -> bytes:
    """tokenizer.json's content. What its library checks, merges for one, is left to it.

    merges: "a b" each. added: AddedToken's fields, with ids. nfc: texts are put into Unicode's normal form C first.
    whole: a part that is a token is not split further, whatever the merges say. bos: the token that begins a text.
    """
    tokenizer = {
        "version": "1.0",
        "added_tokens": list(added),
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None if bos is None else beginning(vocab[bos], bos),
        "decoder": _as_letters(),
        "model": {"type": "BPE", "ignore_merges": whole, "vocab": vocab, "merges": merges},
    }
    return json.dumps(tokenizer, ensure_ascii=False).encode(errors="surrogatepass")


def from_pair(
    vocab: Mapping[str, int], merges: str, configuration: Mapping[str, Any], named: Mapping[str, str], model_type: str
) -> bytes:
    """tokenizer.json's content for a folder that has vocab.json and merges.txt instead.

    configuration: its tokenizer_config.json. named: its bos_token, eos_token and the like. Raises
    UnsupportedModelError for a tokenizer of another kind: nothing in the pair says how it splits a text.
    """
    kind = str(configuration.get("tokenizer_class") or model_type).removesuffix("Fast")
    if kind not in GPT2 + QWEN2:
        raise UnsupportedModelError(
            f"lutra does not know how a tokenizer of kind {kind!r:.40} splits a text, and vocab.json does not say",
            "Load it with transformers' AutoTokenizer and call save_pretrained: that writes tokenizer.json.",
        )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    texts = dict.fromkeys(text for text in named.values() if text in vocab)
    bos = named.get("bos_token") if configuration.get("add_bos_token") else None
    prefix_space = bool(configuration.get("add_prefix_space"))
    lines = (line.rstrip("\r") for line in merges.split("\n"))
    return tokenizer_json(
        vocab,
        [line for line in lines if line and not line.startswith("#version")],
        split_at([cl100k("")] if kind in QWEN2 else [], prefix_space),
        added=[{"id": vocab[text], "content": text, **flags} for text in texts],
        nfc=kind in QWEN2,
        bos=bos if bos in vocab else None,
    )


def _as_letters(prefix_space: bool = False, use_regex: bool = False) -> dict[str, Any]:
    """Every byte as a printable character."""
    return {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": use_regex}


def beginning(id: int, token: str) -> dict[str, Any]:
    """The post-processor that puts a token before every text."""
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }

"""Text to token ids and back, for ``tokenizer.json``, ``vocab.json`` with ``merges.txt``, and SentencePiece models.

The checkpoint's own file is used verbatim. Decoding is ours: every token stands for fixed bytes, so
text streams out of a running UTF-8 decoder at constant cost and a stream always equals the whole.
Where bytes are not valid UTF-8, U+FFFD replaces each maximal invalid run, as Python does;
``tokenizers`` gives up on a whole run of byte-fallback tokens instead, which cannot be streamed.
"""

from __future__ import annotations

import codecs
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from lutra.models import byte_level, chat
from lutra.runtime.errors import (
    CorruptModelError,
    LutraError,
    ModelNotFoundError,
    UnsupportedModelError,
)

__all__ = ["TextStream", "Tokenizer", "load_tokenizer"]

# Tokens that end a turn whatever the configuration forgets to say (BitNet's GGUF lists only one).
_END_OF_TURN = (
    *("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|endoftext|>"),
    *("<|return|>", "<|call|>"),
)
_END_OF_THOUGHT = "<|end|>"  # where "<|return|>" ends a turn, as in gpt-oss: the answer comes after it
_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")  # of answers in channels, as gpt-oss's

_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Backend(Protocol):
    """What the two tokenizer libraries must give: ids for text, and bytes for ids."""

    vocab_size: int  # one more than the largest id
    special_ids: frozenset[int]
    added: Mapping[str, int]  # tokens matched verbatim in text, special or not
    strip: int  # leading spaces of a whole text that decoding drops
    strip_end: int  # and trailing ones
    kept_space: int | None  # a token whose space it does not drop

    def encode(self, text: str, parse_special: bool, start: bool) -> list[int]: ...
    def token_id(self, token: str) -> int | None: ...
    def token_bytes(self, id: int) -> bytes: ...


class Tokenizer:
    """A checkpoint's tokenizer; safe to share between threads.

    ``bos_id`` is None if the tokenizer names no beginning of sequence. ``eos_ids`` holds every id
    that ends an answer, gathered from all the files that name one. ``special_ids`` are the tokens
    that decode() leaves out.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        named: Mapping[str, str],
        bos_id: int | None,
        eos_ids: frozenset[int],
        beginning: Sequence[int],
        templates: Mapping[str, str],
    ):
        self._backend = backend
        self._named = named
        self._beginning = list(beginning)
        self._templates = templates
        self.vocab_size = backend.vocab_size
        self.special_ids = backend.special_ids
        self.bos_id = bos_id
        self.eos_ids = eos_ids

    @property
    def kind(self) -> str:
        """Whose form it has: HuggingFace, SentencePiece."""
        return type(self._backend).__name__.lstrip("_")

    def encode(self, text: str, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Token ids of ``text``.

        ``add_bos``: None puts first what the checkpoint asks for, mostly ``bos_id``; True that or
        ``bos_id`` where there is one, False nothing; a text that already begins so gets no second one.
        ``parse_special``: let ``<|eot_id|>`` and its like in the text become control tokens, as a
        rendered chat template needs; otherwise they are plain characters.
        """
        ids = self._backend.encode(_without_surrogates(text), parse_special, start=True)
        beginning = [] if add_bos is False else self._beginning
        if add_bos and not beginning and self.bos_id is not None:
            beginning = [self.bos_id]
        return ids if ids[: len(beginning)] == beginning else beginning + ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ``ids``; ids outside the vocabulary (padding rows of an embedding) are empty."""
        stream = self.stream(skip_special)
        return "".join(map(stream.push, ids)) + stream.flush()

    def stream(self, skip_special: bool = True) -> TextStream:
        """A decoder that takes one id at a time."""
        return TextStream(self, skip_special)

    def answer(self) -> TextStream:
        """A decoder of what follows a rendered chat: the answer, without what the model says to itself or to tools.

        That is told where an answer comes in channels, as gpt-oss's; of other models it is all the text.
        """
        ids = [self._backend.token_id(mark) for mark in _MARKS]
        known = [id for id in ids if id is not None]
        return _ChannelStream(self, known) if len(known) == len(_MARKS) else self.stream()

    def token_bytes(self, id: int) -> bytes:
        """UTF-8 bytes, possibly part of a character, that ``id`` adds in the middle of a text."""
        return self._token_bytes(id)

    @cached_property
    def _token_bytes(self) -> Callable[[int], bytes]:
        return lru_cache(maxsize=self.vocab_size)(self._backend.token_bytes)

    @property
    def chat_template(self) -> str | None:
        """The default Jinja chat template, or None."""
        return self._templates.get("default")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Render ``messages`` as the checkpoint's template asks, character by character.

        ``chat_template`` is a template to use instead, or the name of one of several that the
        checkpoint ships; ``kwargs`` reach the template. LutraError if there is no template, or
        with the template's message if it refuses. Encode the result with ``parse_special=True``,
        or go straight to encode_chat().
        """
        template = self._pick_template(chat_template, tools)
        return chat.render(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **{**self._named, **kwargs},
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a rendered chat in which only the template can write control tokens.

        Control-token text inside messages, tools or ``kwargs`` is encoded as plain characters
        (transformers' ``sanitize_control_tokens``). Arguments as for apply_chat_template().
        """
        template = self._pick_template(chat_template, tools)
        added = self._backend.added
        special = [token for token, id in added.items() if id in self.special_ids]
        control = [token for token in added if token in template and not token.isspace()] + special
        tools, kwargs = chat.mark([tools, kwargs], control)
        # What the model said itself keeps its <think> and <tool_call>: templates look for them.
        messages = [chat.mark(m, special if _is_answer(m) else control) for m in messages]
        text = self.apply_chat_template(messages, add_generation_prompt, tools, chat_template=template, **kwargs)
        ids: list[int] = []
        for piece, from_user in chat.split_marked(_without_surrogates(text)):
            ids += self._encode_piece(piece, from_user, start=not ids)
        return ids

    def _encode_piece(self, text: str, from_user: bool, start: bool) -> list[int]:
        ids = self._backend.encode(text, not from_user, start)
        if from_user and self._backend.added.get(text) in ids:
            # An added token that is not flagged special always matches, so part it in two.
            ids = self._backend.encode(text[:1], False, start)
            ids += self._backend.encode(text[1:], False, start=False)
        return ids

    def _pick_template(self, choice: str | None, tools: Any) -> str:
        if choice is not None:
            return self._templates.get(choice, choice)
        if tools is not None and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if self.chat_template is not None:
            return self.chat_template
        names = ", ".join(sorted(self._templates))
        raise LutraError(
            f"this model's chat templates have no default, only {names}"
            if names
            else "this model has no chat template",
            hint="pass one, or use the model for plain completion",
        )


def _is_answer(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


class TextStream:
    """Turns ids into text one at a time: only whole characters come out, nothing is decoded twice.

    The concatenation of all push() results and flush() equals ``decode()`` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._bytes = tokenizer._token_bytes
        self._skip = tokenizer.special_ids if skip_special else frozenset()
        self._strip, self._kept_space = tokenizer._backend.strip, tokenizer._backend.kept_space
        self._strip_end, self._held = tokenizer._backend.strip_end, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters that ``id`` completes, perhaps none."""
        if id in self._skip:
            return ""
        if id == self._kept_space:
            self._strip = 0
        return self._text(self._bytes(id), final=False)

    def flush(self) -> str:
        """U+FFFD for bytes still waiting to become a character, if any. The stream is then over."""
        return self._text(b"", final=True)

    def _text(self, data: bytes, final: bool) -> str:
        text = self._decoder.decode(data, final)
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
            else:
                text, self._strip = text[1:], self._strip - 1
        return self._without_end(text, final) if self._strip_end else text

    def _without_end(self, text: str, final: bool) -> str:
        """Hold back the spaces that are dropped if no more comes."""
        text = self._held + text
        end = max(len(text.rstrip(" ")), len(text) - self._strip_end)
        text, self._held = text[:end], "" if final else text[end:]
        return text


class _ChannelStream(TextStream):
    """The messages to the user among those of an answer: ``<|channel|>final<|message|>Hello!<|return|>``.

    A message has a head, from a start or a channel on, that names its channel and to whom it goes, if not to the user.
    The channel "analysis" is the model's own thoughts (OpenAI's harmony response format, 2025). The prompt has begun
    the first head; if no mark follows it, it was the answer.
    """

    def __init__(self, tokenizer: Tokenizer, marks: Sequence[int]):
        super().__init__(tokenizer)
        self._begin, self._message, self._end = set(marks[:2]), marks[2], set(marks[3:])
        self._head: list[int] | None = []  # as far as it is known, while one is read
        self._marked = self._shown = False
        self._told, self._gap = False, ""  # two messages are two paragraphs

    def push(self, id: int) -> str:
        """The characters that ``id`` adds to what the user is told, perhaps none."""
        self._marked |= id in self._begin or id == self._message
        if id in self._begin:
            self._head = self._head or []
        elif id == self._message:
            head = b"".join(map(self._bytes, self._head or [])).decode("utf-8", "replace")
            self._head, self._shown = None, "analysis" not in head and "to=" not in head
        elif self._head is not None:
            self._head.append(id)
        elif id in self._end:
            self._shown, self._gap = False, "\n\n" if self._told else ""
        elif self._shown and (text := super().push(id)):
            text, self._told, self._gap = self._gap + text, True, ""
            return text
        return ""

    def flush(self) -> str:
        """U+FFFD for bytes still waiting; an answer without any mark."""
        bare = [] if self._marked else self._head or []
        return "".join(super(_ChannelStream, self).push(id) for id in bare) + super().flush()


def load_tokenizer(source: Path | Mapping[str, bytes], config: Mapping[str, Any] | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder, or one from the contents of such files by name.

    ``config`` stands in for the folder's ``config.json``. Raises ModelNotFoundError if there is no
    tokenizer here, CorruptModelError if a file is damaged, UnsupportedModelError for a kind of
    tokenizer that lutra does not read.
    """
    files = _Files(source, config)
    backend = _load_backend(files)
    named = files.named_tokens()
    bos_id = _bos_id(backend, files, named)
    return Tokenizer(
        backend,
        named=named,
        bos_id=bos_id,
        eos_ids=_eos_ids(backend, files, named),
        beginning=_beginning(backend, files, bos_id),
        templates=files.templates(),
    )


class _Files:
    """A tokenizer's files, in a folder or in memory, and what the small JSON ones say; any may be missing."""

    def __init__(self, source: Path | Mapping[str, bytes], config: Mapping[str, Any] | None):
        self._source = source
        self.config = config if config is not None else self._json("config.json")
        self.generation = self._json("generation_config.json")
        self.tokenizer = self._json("tokenizer_config.json")
        self.special = self._json("special_tokens_map.json")

    def read(self, name: str) -> bytes | None:
        """A file's content, None if there is no such file."""
        if isinstance(self._source, Path):
            return (self._source / name).read_bytes() if (self._source / name).is_file() else None
        return self._source.get(name)

    def place(self, name: str = "") -> str:
        """Where it all lies, or one file, for messages."""
        if isinstance(self._source, Path):
            return str(self._source / name)
        return f"the model's own {name}" if name else "the model's file"

    def _json(self, name: str) -> dict[str, Any]:
        if (content := self.read(name)) is None:
            return {}
        value = _parse_json(content, self.place(name))
        if not isinstance(value, dict):
            raise CorruptModelError(f"{self.place(name)} is not a JSON object")
        return value

    def named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token and the like, as text; image_token, if a model has one."""
        said = {name: self.tokenizer.get(name, self.special.get(name)) for name in _NAMED}
        extra = self.tokenizer.get("extra_special_tokens")
        if isinstance(extra, dict):  # under names of the model's own, for its template
            said = {**extra, **said}
        tokens = {}
        for name, value in said.items():
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                tokens[name] = value
        return tokens

    def added_tokens(self) -> list[tuple[int, dict[str, Any]]]:
        """(id, AddedToken fields) of tokens listed outside the vocabulary file, by id."""
        texts = self._json("added_tokens.json")
        listed: list[Any] = [(id, {"content": text}) for text, id in texts.items()]
        try:
            decoder = self.tokenizer.get("added_tokens_decoder") or {}
            listed += [(int(id), fields) for id, fields in decoder.items()]
            return sorted({id: _added_fields(id, fields) for id, fields in listed}.items())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptModelError(f"damaged list of added tokens in {self.place()}") from error

    def templates(self) -> dict[str, str]:
        """Chat templates by name; a .jinja file goes before tokenizer_config.json."""
        found = self.tokenizer.get("chat_template") or []
        if isinstance(found, str):
            found = [{"name": "default", "template": found}]
        try:
            found = {str(entry["name"]): str(entry["template"]) for entry in found}
        except (KeyError, TypeError) as error:
            raise CorruptModelError(f"damaged chat_template in {self.place()}") from error
        if (content := self.read("chat_template.jinja")) is not None:
            found = {"default": _decode(content, self.place("chat_template.jinja"))}
        if isinstance(self._source, Path):
            for file in self._source.glob("additional_chat_templates/*.jinja"):
                found[file.stem] = _decode(file.read_bytes(), str(file))
        return found


def _added_fields(id: object, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of tokenizers.AddedToken."""
    if not isinstance(id, int) or not isinstance(fields["content"], str) or not fields["content"]:
        raise ValueError("no token")
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {key: fields[key] for key in known if key in fields}


def _load_backend(files: _Files) -> Backend:
    if (content := files.read("tokenizer.json")) is not None:
        return _HuggingFace(content, files)
    if (content := files.read("tokenizer.model")) is not None:
        return _SentencePiece(content, files)
    if (content := files.read("vocab.json")) is not None and (merges := files.read("merges.txt")) is not None:
        return _HuggingFace(_joined(content, merges, files), files, "vocab.json")
    place = files.place()
    raise ModelNotFoundError(f"no tokenizer in {place}", hint="it should hold tokenizer.json or tokenizer.model")


def _joined(content: bytes, merges: bytes, files: _Files) -> bytes:
    """The tokenizer.json that vocab.json and merges.txt stand for, as OPT's releases have them."""
    vocab, place = _parse_json(content, files.place("vocab.json")), files.place("vocab.json")
    if not isinstance(vocab, dict) or not all(type(id) is int and id >= 0 for id in vocab.values()):
        raise CorruptModelError(f"{place} is not a table of tokens and ids")
    text, model_type = _decode(merges, files.place("merges.txt")), str(files.config.get("model_type"))
    return byte_level.from_pair(vocab, text, files.tokenizer, files.named_tokens(), model_type)


def _bos_id(backend: Backend, files: _Files, named: Mapping[str, str]) -> int | None:
    if "bos_token" in named:
        return backend.token_id(named["bos_token"])
    if "bos_token" in files.tokenizer:
        return None  # Qwen says null: its config's bos_token_id is a document separator
    if isinstance(backend, _SentencePiece):
        return backend.bos_id
    return next(iter(_ids(files.config.get("bos_token_id"))), None)


def _eos_ids(backend: Backend, files: _Files, named: Mapping[str, str]) -> frozenset[int]:
    ids = _ids(files.generation.get("eos_token_id")) | _ids(files.config.get("eos_token_id"))
    text_config = files.config.get("text_config")
    if isinstance(text_config, dict):
        ids |= _ids(text_config.get("eos_token_id"))
    if isinstance(backend, _SentencePiece):
        ids |= _ids(backend.eos_id)
    ids |= _ids(backend.token_id(named.get("eos_token", "")))
    for token in _END_OF_TURN:
        ids |= _ids(backend.token_id(token))
    if backend.token_id("<|return|>") is not None:
        ids -= _ids(backend.token_id(_END_OF_THOUGHT))
    return frozenset(ids)


def _ids(value: Any) -> set[int]:
    """A configuration's ``x_token_id``: None, an int or a list of them; -1 means none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return {id for id in values if isinstance(id, int) and id >= 0}


def _beginning(backend: Backend, files: _Files, bos_id: int | None) -> list[int]:
    """As transformers 5: tokenizer.json decides by itself, SentencePiece asks the configuration."""
    if isinstance(backend, _HuggingFace):
        return backend.prefix()
    return [bos_id] if bos_id is not None and files.tokenizer.get("add_bos_token", True) else []


class _HuggingFace:
    """``tokenizer.json``, or what stands for it, read by the tokenizers library."""

    _tokenizer: Any  # as for sentencepiece, the library's types say less than ours

    def __init__(self, content: bytes, files: _Files, name: str = "tokenizer.json"):
        import tokenizers

        place = files.place(name)
        self._tokenizer = _guard(place, lambda: tokenizers.Tokenizer.from_buffer(content))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for id, fields in files.added_tokens():
            if self.token_id(fields["content"]) is None:
                self._tokenizer.add_tokens([tokenizers.AddedToken(**fields)])
                if self.token_id(fields["content"]) != id:
                    raise CorruptModelError(f"{place} leaves no room for added token {id}")
        self._lock = threading.Lock()
        added = self._tokenizer.get_added_tokens_decoder()
        self.added: Mapping[str, int] = {token.content: id for id, token in added.items()}
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        base = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.vocab_size = max([base, *(id + 1 for id in added)])
        self._steps, self.strip, self.strip_end = _read_decoder(self._tokenizer.decoder)
        self.kept_space: int | None = None

    def encode(self, text: str, parse_special: bool, start: bool) -> list[int]:
        if not start and self.strip:
            # A tokenizer that drops a leading space also adds one; in mid-text there is none.
            line = self.encode("\n", False, start=True)
            ids = self.encode("\n" + text, parse_special, start=True)
            if ids[: len(line)] == line:
                return ids[len(line) :]
        with self._lock:  # the switch is the tokenizer's own state
            self._tokenizer.encode_special_tokens = not parse_special
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def prefix(self) -> list[int]:
        """What the post-processor puts before a text: BOS mostly, two tokens for GLM, or nothing."""
        bare: list[int] = self._tokenizer.encode("a", add_special_tokens=False).ids
        full: list[int] = self._tokenizer.encode("a", add_special_tokens=True).ids
        begins = (i for i in range(len(full)) if bare and full[i : i + len(bare)] == bare)
        return full[: next(begins, 0)]

    def token_id(self, token: str) -> int | None:
        id: int | None = self._tokenizer.token_to_id(token)
        return id

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size or not (token := self._tokenizer.id_to_token(id)):
            return b""
        result: str | bytes = token
        for step in self._steps:
            if isinstance(result, str):
                result = step(result)
        return result.encode() if isinstance(result, str) else result


class _SentencePiece:
    """SentencePiece ``.model``, read by the sentencepiece library."""

    # Protobuf merges repeated messages, so these bytes at a model's end overrule one field of its
    # normalizer_spec (field 3): add_dummy_prefix (field 3) = false. The library has no setter.
    _NO_PREFIX = b"\x1a\x02\x18\x00"

    def __init__(self, content: bytes, files: _Files):
        self._proto, self._place = content, files.place("tokenizer.model")
        self._model = self._load(content)
        self._legacy = bool(files.tokenizer.get("legacy", True))
        self._read_added(files)
        self.bos_id = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.eos_id = self._model.eos_id()
        self.strip, self.strip_end = int(self._drops_space()), 0
        self.kept_space = self.token_id("<0x20>")  # a byte is meant, where a piece may be a word's beginning

    def _read_added(self, files: _Files) -> None:
        size = self._model.vocab_size()
        ids = list(range(size))
        hidden = {id for id, is_control in zip(ids, self._model.is_control(ids), strict=True) if is_control}
        hidden |= {self._model.unk_id()} - {-1}  # there is but one
        listed = files.added_tokens()
        self._beyond = {id: str(fields["content"]) for id, fields in listed if id >= size}
        # Gemma's turn marks are pieces of the model, which the library would match in any text.
        marks = {
            str(fields["content"]): id
            for id, fields in listed
            if id < size and id not in hidden and fields.get("special")
            if self._piece(id) == fields["content"]
        }
        plain = {id: str(fields["content"]) for id, fields in listed if not fields.get("special", True)}
        self.special_ids = frozenset({*hidden, *self._beyond, *marks.values()} - plain.keys())
        self.added: Mapping[str, int] = {
            **{self._piece(id): id for id in hidden},
            **{text: id for id, text in self._beyond.items()},
            **marks,
            **{text: id for id, text in plain.items()},
        }
        self.vocab_size = max([size, *(id + 1 for id in self._beyond)])
        self._plain = frozenset(plain.values())  # matched in any text
        self._strips = frozenset(fields["content"] for _, fields in listed if fields.get("rstrip"))
        self._every, self._seen = _splitter(self.added), _splitter({*self._plain, *marks})

    def _load(self, proto: bytes) -> Any:
        import sentencepiece

        if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", proto):
            raise UnsupportedModelError(
                f"{self._place} is a tiktoken vocabulary, not SentencePiece",
                hint="use the checkpoint's tokenizer.json",
            )
        model = _guard(self._place, lambda: sentencepiece.SentencePieceProcessor(model_proto=proto))
        if not proto or not model.vocab_size():
            raise CorruptModelError(f"{self._place} holds no vocabulary")
        return model

    @cached_property
    def _unprefixed(self) -> Any:
        return self._load(self._proto + self._NO_PREFIX)

    def _drops_space(self) -> bool:
        """Whether the model puts a space before a text, which decoding takes away again."""
        return self._pieces("a", spaced=True) != self._pieces("a", spaced=False)

    def encode(self, text: str, parse_special: bool, start: bool) -> list[int]:
        ids: list[int] = []
        spaced, stripped = start, False
        for index, part in enumerate((self._every if parse_special else self._seen)(text)):
            if index % 2 == 0:
                ids += self._pieces(part.lstrip() if stripped else part, spaced)
            elif parse_special or part in self._plain:
                ids.append(self.added[part])
                # "legacy" models were trained with a space after every added token too.
                spaced, stripped = self._legacy, part in self._strips
            else:  # in two, so that the library cannot see the piece it is
                ids += self._pieces(part[:1], start and not ids) + self._pieces(part[1:], False)
                spaced = stripped = False
        return ids

    def _piece(self, id: int) -> str:
        try:
            return str(self._model.id_to_piece(id))
        except UnicodeDecodeError as error:
            raise CorruptModelError(f"token {id} of the SentencePiece model is damaged") from error

    def _pieces(self, text: str, spaced: bool) -> list[int]:
        return list((self._model if spaced else self._unprefixed).encode(text))

    def token_id(self, token: str) -> int | None:
        if token in self.added:
            return self.added[token]
        id: int = self._model.piece_to_id(token)
        return id if self._piece(id) == token else None

    def token_bytes(self, id: int) -> bytes:
        if id in self._beyond:
            return self._beyond[id].encode()
        if not 0 <= id < self._model.vocab_size():
            return b""
        piece = self._piece(id)
        if self._model.is_byte(id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


def _splitter(tokens: Iterable[str]) -> Callable[[str], list[str]]:
    """A function that parts a text at ``tokens``, the longest first: every second part is one of them.

    No regular expression of all tokens: hostile vocabularies have hundreds of thousands.
    """
    known = frozenset(tokens)
    lengths: dict[str, list[int]] = {}
    for length, first in sorted({(len(token), token[0]) for token in known}, reverse=True):
        lengths.setdefault(first, []).append(length)
    candidate = re.compile(f"[{''.join(map(re.escape, lengths))}]" if lengths else "(?!)")

    def split(text: str) -> list[str]:
        parts, begin, at = [], 0, 0
        while found := candidate.search(text, at):
            at = found.start()
            ends = (at + length for length in lengths[text[at]])
            end = next((end for end in ends if text[at:end] in known), at)
            if end > at:
                parts += [text[begin:at], text[at:end]]
                begin = end
            at = max(end, at + 1)
        return [*parts, text[begin:]]

    return split


Step = Callable[[str], "str | bytes"]


def _read_decoder(decoder: Any) -> tuple[list[Step], int, int]:
    """A tokenizers decoder as steps on one token, and the spaces it drops at a text's two ends.

    A step returns text for the next one, or bytes when there is no more to do.
    """
    from tokenizers import Regex, decoders

    if decoder is None:  # tokens are words: spaces stand between them
        return [lambda token: f" {token}"], 1, 0
    spec = json.loads(decoder.__getstate__())
    steps: list[Step] = []
    strip, strip_end, fused = 0, 0, False
    for part in spec["decoders"] if spec["type"] == "Sequence" else [spec]:
        kind = part["type"]
        if kind == "ByteLevel":
            steps.append(_from_byte_level)
        elif kind == "ByteFallback":
            steps.append(_from_byte_token)
        elif kind == "Replace" and "String" in part["pattern"]:
            steps.append(_replacer(part["pattern"]["String"], part["content"]))
        elif kind == "Replace":
            steps.append(_of_library(decoders.Replace(Regex(part["pattern"]["Regex"]), part["content"])))
        elif kind == "Metaspace":
            steps.append(_replacer(part["replacement"], " "))
            strip += part.get("prepend_scheme", "always") != "never"
        elif kind == "WordPiece":  # a space before what does not continue a word
            steps.append(_of_library(decoders.WordPiece(part["prefix"], part["cleanup"]), before=[""]))
            strip += 1
        elif kind == "BPEDecoder":  # a space behind what ends a word
            steps.append(_of_library(decoders.BPEDecoder(part["suffix"]), behind=[""]))
            strip_end += 1
        elif kind == "Strip" and part["content"] == " " and fused:
            strip, strip_end = strip + part["start"], strip_end + part["stop"]
        elif kind == "Fuse":
            fused = True
        else:
            raise UnsupportedModelError(f"tokenizer.json has a decoder lutra does not know: {kind}")
    return steps, strip, strip_end


def _of_library(decoder: Any, before: Sequence[str] = (), behind: Sequence[str] = ()) -> Step:
    """What the library's own decoder makes of a token between others."""
    return lambda token: str(decoder.decode([*before, token, *behind]))


def _replacer(old: str, new: str) -> Step:
    return lambda token: token.replace(old, new)


def _from_byte_token(token: str) -> str | bytes:
    match = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(match[1]) if match else token


def _from_byte_level(token: str) -> bytes:
    table = _byte_level_table()
    try:
        return bytes([table[char] for char in token])
    except KeyError:  # an added token, written as itself
        return token.encode()


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: Latin-1's own, then U+0100 up for the rest."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + index): byte for index, byte in enumerate(others)},
    }


def _without_surrogates(text: str) -> str:
    """Text that UTF-8 can carry: JSON may smuggle in lone surrogates."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _decode(content: bytes, place: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CorruptModelError(f"{place} is not UTF-8 text") from error


def _parse_json(content: bytes, place: str) -> Any:
    try:
        return json.loads(_decode(content, place))
    except (ValueError, RecursionError) as error:
        raise CorruptModelError(f"{place} is not valid JSON: {error}") from error


def _guard(place: str, load: Callable[[], Any]) -> Any:
    """Run a library's loader; whatever it makes of a damaged file becomes CorruptModelError."""
    try:
        return load()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise CorruptModelError(f"{place} is damaged: {error}") from error

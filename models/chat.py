"""Chat templates: untrusted Jinja shipped with a checkpoint, rendered as transformers does.

Source of the environment and of its hardening: transformers 5.23, ``utils/chat_template_utils.py``.
Templates come from strangers, so they run in Jinja's immutable sandbox, see nothing but plain JSON
data, come to an end, and whatever they raise becomes one LutraError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lutra.runtime.errors import LutraError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

__all__ = ["mark", "render", "split_marked"]

# Private-use characters that fence control-token text written by a user, see mark().
_OPEN, _CLOSE = "\ue000", "\ue001"

# What one rendering may take: turns of loops, calls, and every so many characters that are joined or printed.
EFFORT = 10_000_000
CHARACTERS = 16
_left: ContextVar[int] = ContextVar("left")

_REASONING = ("reasoning_content", "thinking", "reasoning")


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """Render ``messages`` (``{"role": ..., "content": ...}``) with a Jinja template.

    ``variables`` become template variables (``bos_token``, ``enable_thinking``, ...). All of it
    must be JSON data. LutraError carries the template's own words for whatever goes wrong in it.
    """
    values = _plain({"messages": messages, "tools": tools, "documents": None, **variables})
    values["messages"] = [_tidy(message) for message in values["messages"]]
    if not values["messages"]:
        raise LutraError("a chat needs at least one message")
    _left.set(EFFORT)
    try:
        pieces = _compile(template).generate(add_generation_prompt=add_generation_prompt, **values)
        return "".join(map(_spent, pieces))
    except Exception as error:  # a template can raise anything at all
        raise LutraError(f"the chat template failed: {str(error) or type(error).__name__}") from error


def mark(data: Any, control: Iterable[str]) -> Any:
    """Copy JSON data, fencing every control token that appears in its strings.

    After rendering, split_marked() tells what a user wrote from what the template wrote, so that
    ``<|im_end|>`` typed into a message does not end the message.
    """
    pattern = _any_of(frozenset(control))

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            # Fences already there are dropped first: they could only be forgeries.
            return pattern.sub(f"{_OPEN}\\g<0>{_CLOSE}", re.sub(f"[{_OPEN}{_CLOSE}]", "", value))
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(item) for item in value]
        return value

    return walk(data)


@lru_cache(maxsize=16)
def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def split_marked(text: str) -> list[tuple[str, bool]]:
    """Split a render of marked data into (text, written by the user) pieces, without the fences.

    A template's string methods can part a pair of fences; a lone one still separates its
    neighbours, so that they cannot join into a control token.
    """
    pieces = re.split(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}", text)
    split = []
    for index, piece in enumerate(pieces):
        parts = re.split(f"[{_OPEN}{_CLOSE}]", piece)
        split += [(part, index % 2 == 1) for part in parts if part]
    return split


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """A copy made of JSON types only: no object with methods may reach a template."""
    try:
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]
    except (TypeError, ValueError, RecursionError) as error:
        raise LutraError(f"chat messages must be JSON data: {error}") from error


def _tidy(message: object) -> dict[str, Any]:
    """Drop None fields, which templates print as "None", and give reasoning its two usual names."""
    if not isinstance(message, dict):
        raise LutraError(f"a chat message must be a dict with a role, not {message!r}")
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = [message[key] for key in _REASONING if key in message]
    if reasoning:
        message = {"thinking": reasoning[0], **message, "reasoning_content": reasoning[0]}
    return message


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    """The template, its loops counted."""
    import jinja2
    from jinja2 import nodes

    environment = _environment()
    tree = environment.parse(template)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        loop.iter.set_environment(environment)
    return jinja2.Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


def _spend(effort: int) -> None:
    left = _left.get() - effort
    if left < 0:
        raise LutraError(f"it takes more than {EFFORT:,} steps, and may never end")
    _left.set(left)


def _spent(piece: str) -> str:
    _spend(len(piece) // CHARACTERS)
    return piece


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1)
        yield item


def _length(operator: str, left: Any, right: Any) -> int:
    """Of what an operator makes of two values, be it characters, items or digits."""
    sizes = [len(value) if isinstance(value, (str, list, tuple)) else None for value in (left, right)]
    if operator == "+":
        return sum(size or 0 for size in sizes)
    if operator == "*":
        counts = [value if size is None else size for value, size in zip((left, right), sizes, strict=True)]
        return 0 if sizes == [None, None] else int(counts[0] * counts[1])
    return int(abs(right)) * len(str(left)) if isinstance(left, int) and isinstance(right, int) else 0


@lru_cache(maxsize=1)
def _environment() -> Environment:
    import jinja2
    from jinja2 import ext, nodes, sandbox, utils

    class Generation(ext.Extension):
        """``{% generation %}`` marks what a trainer should learn from; here it is transparent."""

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    Generation.tags = {"generation"}

    class Namespace(utils.Namespace):
        """Refuses underscored names: ``__class__`` set on a namespace would fool isinstance."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # a template may pass self=
            self, *rest = args
            attributes = dict(*rest, **kwargs)
            for name in attributes:
                Namespace._check(name)
            utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace._check(name)
            utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def _check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} is private")

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        """Counts what can be repeated without end."""

        intercepted_binops = frozenset({"+", "*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _spend(_length(operator, left, right) // CHARACTERS)
            return super().call_binop(context, operator, left, right)

        def call(__self, *args: Any, **kwargs: Any) -> Any:  # a template may pass self=
            _spend(1)
            return super().call(*args, **kwargs)

    class Dict:
        """The dict constructor, without the attributes of the class."""

        fromkeys = staticmethod(dict.fromkeys)

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """json.dumps, since Jinja's own filter escapes HTML."""
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.filters.update(tojson=tojson, counted=_counted)
    del environment.globals["lipsum"]  # texts of any length
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda format: datetime.now().strftime(format),
        namespace=Namespace,
        dict=Dict(),
    )
    return environment

"""lutra run: a prompt in, the model's text out."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING

from lutra.cli.common import (
    UsageError,
    add_model_arguments,
    add_output_arguments,
    add_sampling_arguments,
    dim,
    open_model,
    print_answer,
    read_text,
    sampling,
    show,
    timings,
    usage_errors,
)
from lutra.cli.parser import Parser, Rare
from lutra.runtime.errors import ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lutra.models.tokenizer import Tokenizer
    from lutra.runtime.generate import Chunk

HELP = "Answer or continue a prompt"

EXAMPLES = """\
examples:
  lutra run "Once upon a time"
  lutra run path/to/model "Why is the sky blue?" -n 100 --temp 0
  git diff | lutra run -m path/to/model -sys "Write a commit message." """.rstrip()


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra run [MODEL] [PROMPT ...] [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("prompt; without one it is standard input, or on a terminal a chat begins")
    group.add_argument("words", nargs="*", metavar="[MODEL] [PROMPT ...]",
                       help="the first word is the model if it is an existing path")  # fmt: skip
    group.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt; '-' reads standard input")
    group.add_argument("-f", "--file", metavar="PATH", help="a file with the prompt")
    group.add_argument("-sys", "--system-prompt", metavar="TEXT", help="how a chat model is to behave")
    group.add_argument("--raw", "--no-chat-template", action="store_true",
                       help="continue the prompt as it is, without the model's chat template")  # fmt: skip
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    group = add_output_arguments(parser)
    group.add_argument("--echo", action="store_true", help=Rare("print a prompt that is continued, too"))


def run(args: argparse.Namespace) -> int:
    """Print the model's answer to one prompt; a chat if there is none and somebody at the terminal."""
    path, words = _split(args)
    prompt = _prompt(args, words)
    if prompt is None:
        from lutra.cli import chat

        return chat.converse(args, path)
    with open_model(args, path) as (model, found):
        args.params = sampling(args, found)
        last = print_answer(_chunks(args, model.session(args.ctx_size), model.tokenizer, prompt))
    if not args.quiet and (args.verbose or sys.stderr.isatty()):
        print(dim(timings(last, args.max_tokens)), file=sys.stderr)
    return 0


def _split(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The model's path, if any, and the words of the prompt. A flag goes before a word, that before the environment."""
    from_environment = args.model == os.environ.get("LUTRA_ARG_MODEL")
    if not args.words or (args.model is not None and not from_environment):
        return args.model, args.words
    first, rest = args.words[0], args.words[1:]
    if os.path.exists(first):
        return first, rest
    if args.model is not None:
        return args.model, args.words
    if re.fullmatch(r"[^\s/]*(/[^\s/]+)+/?|\S+\.(bin|gguf|safetensors)", first):
        raise ModelNotFoundError(f"there is no model at {first}", "if it is the prompt, give it with -p")
    return None, args.words


def _prompt(args: argparse.Namespace, words: list[str]) -> str | None:
    """The prompt, from whichever source is given; None if there is none but a terminal to ask at."""
    given = [x for x in (" ".join(words) if words else None, args.prompt, args.file) if x is not None]
    if len(given) > 1:
        raise UsageError("there is more than one prompt", "give it as words, with -p, or with -f")
    if args.file is not None:
        return read_text(args.file)
    if given:
        return read_text("-") if given[0] == "-" else given[0]
    if sys.stdin.isatty():
        return None
    if not (prompt := read_text("-")):
        raise UsageError("there is no prompt", 'lutra run "Once upon a time"')
    return prompt


def _chunks(args: argparse.Namespace, session: object, tokenizer: Tokenizer, prompt: str) -> Iterator[Chunk]:
    """The answer of a model that has a chat template, the continuation by one that has none."""
    from lutra.runtime.generate import generate

    plain = args.raw or tokenizer.chat_template is None
    if plain and args.system_prompt is not None:
        raise UsageError("there is no chat template to put a system prompt into", "make it part of the prompt")
    if plain:
        ids = tokenizer.encode(prompt, parse_special=args.raw)
        if args.echo:
            show(prompt)
    else:
        system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt is not None else []
        ids = tokenizer.encode_chat([*system, {"role": "user", "content": prompt}])
    with usage_errors():
        return generate(
            session,  # type: ignore[arg-type]
            tokenizer,
            ids,
            params=args.params,
            max_tokens=args.max_tokens,
            stop=args.stop,
            ignore_eos=args.ignore_eos,
            continues=plain,
        )

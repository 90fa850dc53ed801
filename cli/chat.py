"""lutra chat: a conversation, in the terminal or line by line from a pipe."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from lutra.cli.common import (
    add_model_arguments,
    add_output_arguments,
    add_sampling_arguments,
    counted,
    dim,
    note,
    open_model,
    print_answer,
    sampling,
    show,
    timings,
)
from lutra.cli.parser import Parser
from lutra.runtime.errors import ContextLengthError

if TYPE_CHECKING:
    import threading

    from lutra.runtime.generate import Chunk
    from lutra.runtime.model import Model
    from lutra.runtime.sampler import SamplingParams

HELP = "Talk with a model"

EXAMPLES = """\
/help lists what else can be said. Ctrl-C stops an answer; at the prompt it leaves, as Ctrl-D does.
LUTRA_NOHISTORY=1 keeps no history of what was typed.

examples:
  lutra chat
  lutra chat path/to/model -sys "Answer in one sentence."
  printf 'Hello!\\nHow are you?\\n' | lutra chat path/to/model --temp 0"""

COMMANDS = """\
/help    this list
/reset   forget the conversation
/stats   how long it is, and the last answer's speed
/exit    leave"""

PROMPT = ">>> "
PLAIN_STOP = "\nUser:"
ANSWER_ROOM = 256  # tokens kept free for an answer when -n does not say


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra chat [MODEL] [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("conversation")
    group.add_argument("path", nargs="?", metavar="MODEL", help="as -m")
    group.add_argument("-sys", "--system-prompt", metavar="TEXT", help="how the model is to behave")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the user leaves."""
    return converse(args, args.model if args.path is None else args.path)


def converse(args: argparse.Namespace, path: str | None) -> int:
    """Talk with the model at ``path``; ``args`` are those of run or chat."""
    terminal = sys.stdin.isatty()
    with open_model(args, path) as (model, found), _line_editing(terminal) as ask:
        chat = Chat(model, args, sampling(args, found))
        if terminal:
            note(f"{found.name} · /help lists commands, Ctrl-D leaves")
        while (line := ask()) is not None:
            try:
                if not chat.hear(line.strip()):
                    break
            except ContextLengthError as error:
                if not terminal:
                    raise
                say(f"error: {error}")
    return 0


class Chat:
    """One conversation: its messages, and the session that remembers them."""

    def __init__(self, model: Model, args: argparse.Namespace, params: SamplingParams):
        self.tokenizer, self.session = model.tokenizer, model.session(args.ctx_size)
        self.args, self.params = args, params
        self.stop = list(args.stop)
        self.templated = self.tokenizer.chat_template is not None
        if not self.templated:
            say("this model has no chat template; it sees plain lines of User: and Assistant:")
            self.stop.append(PLAIN_STOP)
        self.last: Chunk | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        system = self.args.system_prompt
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.kept = len(self.messages)  # messages that are never dropped

    def hear(self, line: str) -> bool:
        """Do what a line asks for; False if that is to leave."""
        if re.fullmatch("/[a-z?]+", line):
            return self._obey(line)
        if line:
            self._answer(line)
        return True

    def _obey(self, command: str) -> bool:
        if command == "/reset":
            self.reset()
            say("forgotten")
        elif command == "/stats":
            say(self._stats())
        elif command in ("/help", "/?"):
            say(COMMANDS)
        elif command not in ("/exit", "/quit", "/bye"):
            say(f"there is no {command}; /help lists what there is")
        return command not in ("/exit", "/quit", "/bye")

    def _stats(self) -> str:
        context = f"{len(self.session.tokens)} of {self.session.n_ctx} tokens of context"
        turns = counted((len(self.messages) - self.kept) // 2, "turn")
        return " · ".join([turns, context, *([timings(self.last, self.args.max_tokens)] if self.last else [])])

    def _answer(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        heard: list[str] = []
        with _stoppable() as cancel:
            try:
                ids = self._fit()
            except ContextLengthError:
                self.messages.pop()
                raise
            self.last = print_answer(self._overheard(ids, cancel, heard))
        self.messages.append({"role": "assistant", "content": "".join(heard).strip()})
        if self.args.verbose or (sys.stderr.isatty() and not self.args.quiet):
            print(dim(timings(self.last, self.args.max_tokens)), file=sys.stderr)

    def _overheard(self, ids: list[int], cancel: threading.Event | None, heard: list[str]) -> Iterator[Chunk]:
        from lutra.runtime.generate import generate

        for chunk in generate(
            self.session,
            self.tokenizer,
            ids,
            params=self.params,
            max_tokens=self.args.max_tokens,
            stop=self.stop,
            cancel=cancel,
            ignore_eos=self.args.ignore_eos,
        ):
            heard.append(chunk.text)
            yield chunk

    def _fit(self) -> list[int]:
        """The conversation's tokens. If they leave no room for an answer, the oldest turns are dropped.

        Then so many that half the context is free: each drop means reading all the rest anew.
        """
        n_ctx = self.session.n_ctx
        room = min(self.args.max_tokens or ANSWER_ROOM, n_ctx // 4)
        ids, dropped = self._ids(), 0
        if len(ids) + room > n_ctx:
            while len(ids) > n_ctx // 2 and len(self.messages) > self.kept + 2:
                del self.messages[self.kept : self.kept + 2]
                ids, dropped = self._ids(), dropped + 1
        if dropped:
            say(f"the context was full: I forgot the oldest {counted(dropped, 'turn')} of this conversation")
        if len(ids) > n_ctx:
            raise ContextLengthError(f"this message has {len(ids)} tokens, the context {n_ctx}", "make it shorter")
        return ids

    def _ids(self) -> list[int]:
        if self.templated:
            return self.tokenizer.encode_chat(self.messages)
        lines = [f"{m['role'].capitalize()}: {m['content']}\n" for m in self.messages]
        return self.tokenizer.encode("".join(lines) + "Assistant:")


def say(text: str) -> None:
    """Tell the user something that is not the model's."""
    print(dim(text), file=sys.stderr)


@contextmanager
def _stoppable() -> Iterator[threading.Event | None]:
    """On a terminal, let Ctrl-C set an event instead of ending the program; a second one ends it nevertheless."""
    import threading

    if not sys.stdin.isatty():
        yield None
        return
    cancel = threading.Event()

    def stop(signum: int, frame: Any) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _line_editing(terminal: bool) -> Iterator[Callable[[], str | None]]:
    """A function that gives the user's next line, or None when there are no more."""
    if not (terminal and sys.stdout.isatty()):
        yield lambda: _plain_line(terminal)
        return
    try:
        import readline
    except ImportError:  # Windows edits lines itself
        yield _edited_line
        return
    history = history_file()
    if history is not None:
        _quietly(readline.read_history_file, history)
    try:
        yield _edited_line
    finally:
        if history is not None:
            readline.set_history_length(1000)
            _quietly(os.makedirs, os.path.dirname(history), 0o700, True)
            _quietly(readline.write_history_file, history)


def _quietly(call: Callable[..., Any], *args: Any) -> None:
    with suppress(OSError):  # a history is a convenience
        call(*args)


def history_file() -> str | None:
    if os.environ.get("LUTRA_NOHISTORY", "0") not in ("", "0"):
        return None
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "lutra", "history")


def _edited_line() -> str | None:
    try:
        return input(PROMPT)
    except (EOFError, KeyboardInterrupt):
        show("\n")
        return None


def _plain_line(terminal: bool) -> str | None:
    if terminal:
        print(PROMPT, end="", flush=True, file=sys.stderr)
    try:
        return sys.stdin.readline() or None
    except KeyboardInterrupt:
        if terminal:
            return None
        raise

"""The command line: what it prints and where, which exit code it gives, and that it never shows a traceback."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_models import small_chat_model

from lutra.cli import chat, common, doctor, main, run
from lutra.models.tokenizer import load_tokenizer
from lutra.runtime.generate import generate
from lutra.runtime.model import Model
from lutra.runtime.sampler import SamplingParams

VERBS = [name for name in main._verb_names() if main._verb(name) is not None]
COMMAND = [sys.executable, "-m", "lutra.cli.main"]
GREEDY = ("--temp", "0", "-n", "12")


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> str:
    return str(small_chat_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: Any) -> str:
    """A model without a chat template."""
    folder = small_chat_model(tmp_path_factory.mktemp("models") / "plain")
    (folder / "chat_template.jinja").unlink()
    return str(folder)


@pytest.fixture
def lutra(monkeypatch: Any, capsys: Any) -> Callable[..., Result]:
    """Runs a command line in this process."""
    terminate = signal.getsignal(signal.SIGTERM)

    def call(*argv: str, stdin: bytes = b"", **environment: str) -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = main.main(argv)
        for name in environment:
            monkeypatch.delenv(name)
        return Result(code, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, terminate)


def expected(path: str, ids: Callable[[Any], list[int]], n: int = 12, continues: bool = False) -> str:
    """What a model makes of a prompt, without the command line."""
    with Model.load(path) as m:
        chunks = generate(
            m.session(), m.tokenizer, ids(m.tokenizer), params=SamplingParams(temperature=0), max_tokens=n,
            continues=continues,
        )  # fmt: skip
        return "".join(chunk.text for chunk in chunks)


# Help, usage, errors


def test_help_imports_nothing_heavy() -> None:
    code = """if True:
        import sys
        from lutra.cli.main import main
        assert main(sys.argv[1:]) == 0
        heavy = {"numpy", "cffi", "_cffi_backend", "jinja2", "tokenizers", "sentencepiece"} & set(sys.modules)
        assert not heavy, heavy
    """
    for argv in (["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)):
        subprocess.run([sys.executable, "-c", code, *argv], check=True, stdout=subprocess.DEVNULL)


def test_version_is_that_of_the_sources_it_runs_from(lutra: Any) -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    version = next(line.split('"')[1] for line in project.splitlines() if line.startswith("version ="))
    assert lutra("--version") == Result(0, f"lutra {version}\n", "")
    assert json.loads(lutra("doctor", "--json").out)["lutra"] == version


def test_help_lists_the_verbs(lutra: Any) -> None:
    result = lutra("--help")
    assert result.code == 0
    assert all(re.search(rf"^  {verb} ", result.out, re.M) for verb in VERBS)
    assert {"run", "chat", "convert", "doctor"} <= set(VERBS)
    assert lutra("-h") == result
    assert lutra() == Result(2, "", result.out)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_fits_a_screen(lutra: Any, verb: str) -> None:
    code, out, err = lutra(verb, "--help")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 40
    assert max(map(len, out.splitlines())) <= 120
    assert out.rpartition("examples:\n")[2].count("lutra") >= 3
    assert len(lutra(verb, "--help-all").out) >= len(out)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "no verb 'fly'"),
        (["common"], "no verb 'common'"),
        (["run", "--no-such-flag"], "--no-such-flag"),
        (["run", "--tempp", "1"], "did you mean --temp?"),
        (["run", "-t", "two"], "--threads: invalid integer value: 'two'"),
        (["run", "-s", "two"], "--seed: invalid integer value: 'two'"),
        (["run", "-t", "-2"], "-2 is less than 0"),
        (["run", "-n", "-7"], "-7 is less than 0"),
        (["run", "--cache-type", "q3"], "invalid choice: 'q3'"),
        (["run", "a", "-p", "b"], "more than one prompt"),
        (["run"], "there is no prompt"),
        (["convert"], "SRC"),
    ],
)
def test_wrong_usage(lutra: Any, argv: list[str], message: str) -> None:
    code, out, err = lutra(*argv)
    assert (code, out) == (2, "")
    assert re.fullmatch("error: [^\n]+\nhint: [^\n]+\n", err)
    assert message in err


def test_senseless_sampling_is_wrong_usage(lutra: Any, model: str) -> None:
    for flags in (["--temp", "-1"], ["--top-p", "2"], ["--top-k", "-1"], ["--temp", "nan"], ["--stop", ""]):
        code, out, err = lutra("run", "-m", model, "x", *flags)
        assert (code, out, err.splitlines()[0][:7]) == (2, "", "error: "), flags


def test_what_is_wrong_with_a_model_gives_the_code(lutra: Any, model: str, tmp_path: Path) -> None:
    assert lutra("run", "-m", "nowhere", "x").code == 3
    assert lutra("run", "./nowhere", "x").code == 3
    assert lutra("run", "org/name", "x").code == 3
    assert lutra("run", "nowhere.gguf", "x").code == 3
    assert lutra("run", str(tmp_path), "x").code == 4
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    code, out, err = lutra("run", str(tmp_path / "x.gguf"), "x")
    assert (code, out) == (4, "")
    assert "GGUF" in err
    code, _, err = lutra("run", model, "x" * 300)
    assert code == 2
    assert "context" in err


def test_what_is_no_model_is_refused_at_once(lutra: Any, model: str, tmp_path: Path) -> None:
    """A pipe is not waited for; an empty name, as of a shell's variable, is not the working directory."""
    pipe, empty = tmp_path / "pipe", tmp_path / "x.gguf"
    os.mkfifo(pipe)
    empty.touch()
    for name, code, said in ((pipe, 4, "neither a directory nor a file"), (empty, 4, "is empty"), ("", 3, "is empty")):
        result = lutra("run", "-m", str(name), "x")
        assert result.code == code
        assert said in result.err
    for words in (["", "x"], [model, ""]):
        assert lutra("convert", *words)[:2] == (2, "")
    assert "0.1 to 2 bits" in lutra("convert", model, str(tmp_path / "y"), "-q", "littlebit", "--bpw", "77").err


def test_a_suggestion_that_is_no_number_is_named(lutra: Any, tmp_path: Path) -> None:
    folder = small_chat_model(tmp_path / "odd")
    (folder / "generation_config.json").write_text('{"temperature": "hot"}')
    code, _, err = lutra("run", "-m", str(folder), "x")
    assert code == 4
    assert "says temperature is 'hot', which is no number" in err


def test_an_interrupt_before_main_is_quiet() -> None:
    code = """if True:
        import sys
        class Finder:
            def find_spec(self, name, *_):
                if name == "lutra.cli.main":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Finder())
        from lutra.cli import command
        sys.exit(command())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interrupted_import_is_an_interrupt(lutra: Any, monkeypatch: Any) -> None:
    """numpy, for one, reports a Ctrl-C during its import as an ImportError."""

    def fail(_: argparse.Namespace) -> int:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("a bad install")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(run, "run", fail)
        assert lutra("run", "x") == Result(130, "", "")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 5, "error: out of memory\nhint: "),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "error: Permission denied: x\n"),
        (ZeroDivisionError("a\nb"), 1, "error: ZeroDivisionError: a b\nhint: "),
        (RecursionError(), 1, "error: RecursionError: \nhint: "),
    ],
)
def test_no_error_is_a_traceback(lutra: Any, monkeypatch: Any, error: BaseException, code: int, said: str) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(run, "run", fail)
    result = lutra("run", "x")
    assert result[:2] == (code, "")
    assert result.err.startswith(said) if said else result.err == ""
    assert "Traceback" not in result.err
    if code == 1:
        assert "Traceback" in lutra("run", "x", "--log-level", "debug").err


def test_flags_come_from_the_environment(lutra: Any, model: str) -> None:
    short = lutra("run", "-m", model, "x", "--temp", "0", LUTRA_ARG_MAX_TOKENS="3")
    assert short == lutra("run", "-m", model, "x", "--temp", "0", "-n", "3")
    for name in ("LUTRA_ARG_PREDICT", "LUTRA_ARG_N_PREDICT"):
        assert lutra("run", "-m", model, "x", "--temp", "0", **{name: "3"}) == short
    assert lutra("run", "-m", model, "x", *GREEDY, LUTRA_ARG_MAX_TOKENS="3") == lutra("run", "-m", model, "x", *GREEDY)
    assert lutra("run", "x", *GREEDY, LUTRA_ARG_MODEL=model) == lutra("run", "-m", model, "x", *GREEDY)
    assert lutra("run", model, "x", *GREEDY, LUTRA_ARG_MODEL="nowhere") == lutra("run", "-m", model, "x", *GREEDY)
    assert " tokens · " in lutra("run", "-m", model, "x", *GREEDY, LUTRA_ARG_VERBOSE="on").err
    assert lutra("run", "-m", model, "x", *GREEDY, LUTRA_ARG_VERBOSE="0").err == ""
    for name, value in {"VERBOSE": "maybe", "THREADS": "many", "CACHE_TYPE": "q3"}.items():
        code, out, err = lutra("run", "-m", model, "x", **{f"LUTRA_ARG_{name}": value})
        assert (code, out) == (2, "")
        assert err.startswith(f"error: LUTRA_ARG_{name}: ")


# run


def test_run_takes_its_prompt_from_anywhere(lutra: Any, model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_text("Hi there\n")
    text = expected(model, lambda t: t.encode_chat([{"role": "user", "content": "Hi there"}]))
    for argv, stdin in [
        ([model, "Hi there"], b""),
        ([model, "Hi", "there"], b"not read"),
        (["-m", model, "Hi", "there"], b""),
        (["-m", model, "-p", "Hi there"], b""),
        ([model, "-f", str(file)], b""),
        ([model], b"Hi there\n"),
        ([model, "-"], b"Hi there\r\n"),
        (["-m", model, "-p", "-"], b"Hi there"),
    ]:
        result = lutra("run", *argv, *GREEDY, stdin=stdin)
        assert result == (0, text if text.endswith("\n") else text + "\n", ""), argv
    assert lutra("run", *GREEDY, model, "-t", "1", "Hi", "--quiet", "there").out.startswith(text)


def test_a_prompt_that_cannot_be_read(lutra: Any, model: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xff")
    assert "not UTF-8" in lutra("run", model, "-f", str(tmp_path / "bad")).err
    assert "not UTF-8" in lutra("run", model, stdin=b"\xff").err
    assert lutra("run", model, "-f", str(tmp_path / "nowhere")).code == 2
    assert lutra("run", model, "-f", str(tmp_path)).code == 2


def test_run_applies_the_template_unless_raw(lutra: Any, model: str, plain: str) -> None:
    ask = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert lutra("run", model, "Hi", "-sys", "Be kind.", *GREEDY).out.strip("\n") == expected(
        model, lambda t: t.encode_chat(ask)
    ).strip("\n")
    continued = expected(model, lambda t: t.encode("<|user|>Hi", parse_special=True), continues=True).strip("\n")
    for flag in ("--raw", "--no-chat-template"):
        assert lutra("run", model, "<|user|>Hi", flag, *GREEDY).out.strip("\n") == continued
    continued = expected(plain, lambda t: t.encode("Hi"), continues=True).strip("\n")
    assert lutra("run", plain, "Hi", *GREEDY).out.strip("\n") == continued
    assert lutra("run", plain, "Hi", "--echo", *GREEDY).out.strip("\n") == "Hi" + continued
    assert lutra("run", plain, "Hi", "-sys", "Be kind.").code == 2


def test_run_prints_timings_when_asked(lutra: Any, model: str) -> None:
    result = lutra("run", model, "Hi", "-n", "3", "--verbose", "--ignore-eos")
    assert re.fullmatch(r"3 tokens · [\d.]+ tok/s · prompt [\d.]+ tok/s · [\d.]+ GB\n", result.err)
    full = lutra("run", model, "Hi", "-n", "-1", "--verbose", "--ignore-eos", "-c", "32")
    assert full.err.endswith(" · the context is full\n")
    assert lutra("run", model, "Hi", "-n", "1", "--verbose").err.startswith("1 token · prompt ")
    assert lutra("run", model, "Hi", "-n", "0").out == "\n"


def test_sampling_flags_reach_the_sampler(lutra: Any, model: str) -> None:
    once, again, other = (lutra("run", model, "Hi", "-n", "20", "-s", seed, "--temp", "2") for seed in "112")
    assert once == again != other
    stop = lutra("run", model, "Hi", *GREEDY).out[3]
    stopped = lutra("run", model, "Hi", *GREEDY, "--stop", stop, "-r", "never").out
    assert stopped == lutra("run", model, "Hi", *GREEDY).out.split(stop)[0] + "\n"
    assert lutra("run", model, "Hi", "-n", "9", "--top-k", "1").out == lutra("run", model, "Hi", *GREEDY[:3], "9").out
    f16 = lutra("run", model, "Hi", *GREEDY, "--cache-type", "f16", "-t", "1", "-c", "99")
    assert f16.code == 0
    q8 = lutra("run", model, "Hi", *GREEDY, "--cache-type", "q8")
    assert q8 == lutra("run", model, "Hi", *GREEDY, "-ctk", "q8_0", "--cache-type-v", "q8")
    assert lutra("run", model, "Hi", "-ctk", "q8_0", "-ctv", "f16").code == 2
    assert lutra("run", model, "Hi", "-ctk", "iq4_nl").code == 2


def test_a_model_suggests_and_flags_decide(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    common.add_sampling_arguments(parser)  # type: ignore[arg-type]

    def params(config: object, *flags: str) -> SamplingParams:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
        return common.sampling(parser.parse_args(flags), tmp_path)

    suggested = {"temperature": 0.6, "top_p": 0.9, "top_k": None, "repetition_penalty": 1.1, "do_sample": True}
    assert params(suggested) == SamplingParams(temperature=0.6, top_p=0.9, repeat_penalty=1.1)
    assert params(suggested, "--temp", "0").temperature == 0
    assert params({"do_sample": False, "temperature": 0.6}).temperature == 0
    assert params({}, "-s", "-1") == params({}) == SamplingParams()
    for damaged in ([], {"temperature": "hot"}, {"top_p": 7}):
        with pytest.raises(common.LutraError, match=r"generation_config\.json"):
            params(damaged)


def test_a_closed_pipe_is_quiet(model: str) -> None:
    command = [*COMMAND, "run", model, "Hi", "--ignore-eos"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_line(model: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "run", model, "Hi"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_closed_streams_are_no_matter(model: str) -> None:
    script = f"{' '.join(COMMAND)} run {model} Hi -n 3"
    for closed in ("<&-", ">&-", "2>&-"):
        done = subprocess.run(["sh", "-c", f"{script} {closed}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    long = str(small_chat_model(tmp_path / "long", max_position_embeddings=200_000))
    command = [*COMMAND, "run", long, "Hi", "--ignore-eos"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait() in (130, -signal.SIGINT)  # a shell shows both as 130


# chat


def test_chat_remembers(lutra: Any, model: str) -> None:
    first = expected(model, lambda t: t.encode_chat([{"role": "user", "content": "Hi"}])).strip()
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And?"},
    ]
    second = expected(model, lambda t: t.encode_chat(talk)).strip()
    result = lutra("chat", model, *GREEDY, "--verbose", stdin=b"Hi\n\nAnd?")
    assert result.code == 0
    assert [line.strip() for line in result.out.rstrip("\n").split("\n")] == [*first.split("\n"), *second.split("\n")]
    assert re.search(r"12 tokens .* \(\d+ cached\)", result.err.splitlines()[1])
    after_reset = lutra("chat", model, *GREEDY, stdin=b"Hi\n/reset\nHi\n")
    assert after_reset.out == 2 * lutra("chat", model, *GREEDY, stdin=b"Hi\n").out


def test_chat_obeys(lutra: Any, model: str) -> None:
    result = lutra("chat", "-m", model, *GREEDY, stdin=b"/help\n/stats\nHi\n/stats\n/nonsense\n/exit\nnever read\n")
    assert result.code == 0
    assert chat.COMMANDS in result.err
    assert "0 turns · 0 of 256 tokens" in result.err
    assert re.search("1 turn · .* 12 tokens", result.err)
    assert "no /nonsense" in result.err
    once = lutra("chat", "-m", model, *GREEDY, stdin=b"Hi\n").out
    assert result.out == once
    assert lutra("chat", model, *GREEDY, stdin=b"/etc/hosts is a file\n").out != ""


def test_chat_without_a_template_says_so(lutra: Any, plain: str) -> None:
    result = lutra("chat", plain, *GREEDY, stdin=b"Hi\n")
    assert "no chat template" in result.err
    assert result.out.strip() == expected(plain, lambda t: t.encode("User: Hi\nAssistant:")).strip()


def test_chat_forgets_the_oldest_turns_and_says_so(lutra: Any, model: str) -> None:
    turns = b"".join(b"This is turn number %d, which is long\n" % i for i in range(9))
    result = lutra("chat", model, "-sys", "Be kind.", *GREEDY, stdin=turns)
    assert result.code == 0
    assert re.search(r"the context was full: I forgot the oldest \d turns? of this conversation", result.err)
    code, _, err = lutra("chat", model, stdin=b"x" * 300)
    assert code == 2
    assert "this message has 303 tokens, the context 256" in err


pty = pytest.importorskip("pty")


class Terminal:
    """A command that believes to be on a terminal."""

    def __init__(self, *argv: str, **environment: str):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [*COMMAND, *argv], {**os.environ, "TERM": "xterm", **environment})
        self.seen = b""

    def until(self, text: bytes) -> None:
        """Read until it has printed ``text``; of b"", anything more."""
        end = time.monotonic() + 20
        while text not in self.seen or not self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:  # how Linux says that the other end is closed
                    pytest.fail(f"it ended after {self.seen!r}")
        self.seen = self.seen.partition(text)[2] if text else b""

    def type(self, text: bytes) -> None:
        time.sleep(0.2)  # Python misses a Ctrl-C between its prompt and its first look at the keyboard
        os.write(self.fd, text)

    def exit_code(self) -> int:
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_ctrl_c_stops_the_answer_then_leaves(tmp_path: Path) -> None:
    long = str(small_chat_model(tmp_path / "long", max_position_embeddings=200_000))
    terminal = Terminal("run", long, "--ignore-eos", XDG_STATE_HOME=str(tmp_path))
    terminal.until(b">>> ")
    terminal.type(b"Hello\n")
    terminal.until(b"Hello\r\n")
    terminal.until(b"")  # the answer has begun
    terminal.type(b"\x03")
    terminal.until(b" tok/s")
    terminal.until(b">>> ")
    terminal.type(b"/stats\n")
    terminal.until(b"1 turn")
    terminal.until(b">>> ")
    terminal.type(b"\x03")
    assert terminal.exit_code() == 0
    assert (tmp_path / "lutra" / "history").read_text().split() == ["Hello", "/stats"]


def test_ctrl_d_leaves_and_no_history_is_kept(model: str, tmp_path: Path) -> None:
    terminal = Terminal("chat", model, XDG_STATE_HOME=str(tmp_path), LUTRA_NOHISTORY="1")
    terminal.until(b">>> ")
    terminal.type(b"\x04")
    assert terminal.exit_code() == 0
    assert list(tmp_path.iterdir()) == []


def test_speeds_on_a_terminal_are_grey_unless_unwanted(model: str) -> None:
    for environment, quiet, shown in (({}, [], True), ({"NO_COLOR": "1"}, [], False), ({}, ["--quiet"], False)):
        terminal = Terminal("run", model, "Hi", "-n", "3", "--temp", "0", *quiet, **environment)
        end = time.monotonic() + 20
        try:
            while time.monotonic() < end:
                terminal.seen += os.read(terminal.fd, 65536)
        except OSError:
            pass
        assert (b"\x1b[2m3 tokens" in terminal.seen) == shown
        assert (b"3 tokens" in terminal.seen) == (not quiet)
        assert terminal.exit_code() == 0


# convert, doctor


def test_convert_says_what_it_did(lutra: Any, model: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    summary = r"\d+ K params · 0\.3 MB \(from 0\.3 MB\) · 32\.0 bpw · [\d.]+ s\n"
    code, out, err = lutra("convert", model, "--dry-run")
    assert (code, err) == (0, "")
    dry = summary.replace(r"[\d.]+ s", r"takes [\d.]+ MB of memory")
    assert re.fullmatch(r"(\[ ?\d+/14\] \S+ +\d+(x\d+)?  f32 +[\d.]+ kB\n){14}" + dry, out)
    assert list(tmp_path.iterdir()) == []
    code, out, err = lutra("convert", model)
    assert (code, err) == (0, "")
    assert re.fullmatch("tiny-lutra: " + summary, out)
    assert lutra("run", "tiny-lutra", "Hi", *GREEDY) == lutra("run", model, "Hi", *GREEDY)
    code, out, err = lutra("convert", model)
    assert (code, out) == (1, "")
    assert "exists already" in err
    assert lutra("convert", model, "--force", "--quiet") == (0, "", "")
    assert lutra("convert", "tiny-lutra").code == 4
    assert lutra("convert", "nowhere").code == 3


def test_the_default_destination(monkeypatch: Any, tmp_path: Path) -> None:
    from lutra.cli.convert import _default_name

    (tmp_path / "stories.v2.bin").touch()
    (tmp_path / "qwen-2.5").mkdir()
    assert _default_name(str(tmp_path / "stories.v2.bin")) == "stories.v2-lutra"
    assert _default_name(str(tmp_path / "qwen-2.5") + "/") == "qwen-2.5-lutra"
    monkeypatch.chdir(tmp_path / "qwen-2.5")
    assert _default_name(".") == "qwen-2.5-lutra"


def test_doctor(lutra: Any) -> None:
    code, out, err = lutra("doctor")
    assert (code, err) == (0, "")
    assert re.search(r"^self-test +passed in \d+ ms$", out, re.M)
    report = json.loads(lutra("doctor", "--json").out)
    assert report["self_test"]["ok"]
    assert report["threads"]["default"] >= 1
    assert report["kernels"]["linear_t5"].startswith("linear_t5_")
    scalar = json.loads(lutra("doctor", "--json", LUTRA_CPU="scalar").out)
    assert set(scalar["kernels"].values()) == {f"{op}_scalar" for op in scalar["kernels"]}
    assert scalar["cpu"]["features"] == report["cpu"]["features"]
    assert scalar["cpu"]["used"] == []
    assert "LUTRA_CPU=scalar allows none" in lutra("doctor", LUTRA_CPU="scalar").out
    code, _, err = lutra("doctor", LUTRA_CPU="pentium")
    assert code == 1
    assert "unknown CPU level 'pentium'" in err


def test_doctor_says_what_is_not_used(lutra: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("lutra.native.cpu_refused", lambda: "amx: its products were wrong")
    assert "; not amx: its products were wrong" in lutra("doctor").out
    assert json.loads(lutra("doctor", "--json").out)["cpu"]["refused"] == "amx: its products were wrong"


def test_doctor_notices_a_broken_kernel(lutra: Any, monkeypatch: Any) -> None:
    tiny, count = doctor._tiny_model, iter(range(2))

    def differs(engine: Any) -> Model:
        found = tiny(engine)
        found.weights["norm"][:] += next(count)  # type: ignore[operator]
        return found

    monkeypatch.setattr(doctor, "_tiny_model", differs)
    code, out, err = lutra("doctor")
    assert code == 1
    assert "self-test  FAILED" in out
    assert err.startswith("error: kernels")


def test_the_small_model_has_a_tokenizer(model: str) -> None:
    assert load_tokenizer(Path(model)).chat_template is not None

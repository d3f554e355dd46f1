"""What people see."""

from __future__ import annotations

import io
import os
import pty
import signal
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli import main as main_module
from casemate.cli import output
from casemate.cli.main import main
from casemate.cli.template import render
from casemate.errors import CasemateError, HostError, UsageError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.paint("x", output.RED, Terminal()) == "\x1b[31mx\x1b[0m"
    assert output.paint("x", output.RED, io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("x", output.RED, Terminal()) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert output.paint("x", output.RED, Terminal()) == "x"


def test_a_closed_stream_is_no_terminal() -> None:
    file = io.StringIO()
    file.close()
    assert not output.is_terminal(file)


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.error(CasemateError("broken\nhere \x1b[31m", "mend it"), "container x")
    assert capsys.readouterr().err == "casemate: container x: broken\\nhere \\x1b[31m (mend it)\n"


def test_tables() -> None:
    assert output.table(("A", "LONG"), [("aaaa", "b"), ("c", "")]) == "A      LONG\naaaa   b\nc"
    assert output.table(("A",), []) == "A"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (1536, "1.5KiB"), (256 << 20, "256MiB"), (5 << 40, "5.0TiB"),
     (1 << 60, "1048576TiB")],
)  # fmt: skip
def test_sizes(number: int, text: str) -> None:
    assert output.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 seconds"), (1, "1 second"), (59.9, "59 seconds"), (60, "1 minute"), (7200, "2 hours"), (259200, "3 days")],
)
def test_ages(seconds: float, text: str) -> None:
    assert output.ago(seconds) == text


def test_timestamps() -> None:
    assert output.timestamp(None) == "0001-01-01T00:00:00Z"
    assert output.timestamp(1_700_000_000.5) == "2023-11-14T22:13:20.500000000Z"


def test_progress_waits_before_it_speaks_and_wipes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    saved = os.dup(2)
    os.dup2(theirs, 2)
    try:
        monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(2), "w"))
        monkeypatch.setattr(output, "PATIENCE", 0.05)
        before = signal.getsignal(signal.SIGALRM)
        with output.progress("booting"):
            signal.sigtimedwait({signal.SIGRTMIN}, 0.3)  # any call that a signal interrupts
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        shown = b""
        while not (b"0s" in shown and shown.endswith(b"\x1b[2K")):  # a terminal gives it piece by piece
            shown += os.read(ours, 4096)
        assert b"booting 0s" in shown
    finally:
        os.dup2(saved, 2)
        for descriptor in (saved, ours, theirs):
            os.close(descriptor)


def test_progress_is_silent_without_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.01)
    with output.progress("booting"):
        time.sleep(0.05)  # the time is what is tested
    assert capfd.readouterr().err == ""


def test_steps_are_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.Steps() as steps:
        steps("one")
        steps("one")
        steps("two\x1b")
    assert capsys.readouterr().err == "one\ntwo\\x1b\n"


def test_steps_are_one_changing_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with output.Steps() as steps:
        steps("x" * 1000)
        steps("two")
    parts = terminal.getvalue().split("\r\x1b[2K")
    assert parts[2:] == ["two", ""] and 0 < len(parts[1]) < 1000


# ---- main


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nope"], 125, "no command 'nope' (see: casemate --help)"),
        (["inspct"], 125, "no command 'inspct' (did you mean inspect?)"),
        (["--nope"], 125, "unknown option '--nope' before a command"),
        (["ps", "--nope"], 125, "unknown option --nope (see: casemate ps --help)"),
        (["kill"], 125, "missing CONTAINER"),
    ],
)
def test_usage_errors(words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == status
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in main_module.COMMANDS)
    assert main([]) == 125
    assert "Usage" in capsys.readouterr().err


def raising(error: BaseException) -> object:
    def dispatch(words: list[str]) -> int:
        raise error

    return dispatch


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("odd"), "casemate: unexpected: ValueError: odd (CASEMATE_DEBUG=1 shows where)\n"),
        (OSError(28, "No space left on device", "/x"),
         "casemate: unexpected: /x: No space left on device (CASEMATE_DEBUG=1 shows where)\n"),
        (HostError("no root", "be root"), "casemate: no root (be root)\n"),
    ],
)  # fmt: skip
def test_no_error_is_a_traceback(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CASEMATE_DEBUG", raising=False)
    monkeypatch.setattr(main_module, "_dispatch", raising(error))
    assert main(["x"]) == 125
    assert capsys.readouterr().err == line
    monkeypatch.setenv("CASEMATE_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["x"])


def test_interruption_is_a_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(main_module, "_dispatch", raising(KeyboardInterrupt()))
    assert main(["x"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_left_is_no_error() -> None:
    import subprocess

    command = f"{sys.executable} -m casemate --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout in ("0\n", "141\n")


def test_a_command_imports_little() -> None:
    import subprocess

    script = (
        "import sys; from casemate.cli.main import main; main(['ps', '--format', 'nonsense'])\n"
        "print(sorted(m for m in sys.modules if m.startswith('casemate.cli.') or m in ('asyncio', 'tarfile', 'ssl')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    modules = done.stdout.splitlines()[-1]
    assert "casemate.cli.ps" in modules
    for other in ("cli.run", "cli.cp", "cli.inspect", "asyncio", "tarfile", "ssl"):
        assert other not in modules


# ---- templates

VALUE = {"State": {"OOMKilled": True, "ExitCode": 0, "Error": None}, "Mounts": [{"Source": "/x"}], "Name": "n"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{.State.OOMKilled}}", "true"), ("{{ .State.ExitCode }}", "0"), ("{{.state.exitcode}}", "0"),
        ("a {{.Name}} b\\n{{.Name}}", "a n b\nn"), ("{{json .Mounts}}", '[{"Source": "/x"}]'),
        ("{{.Mounts.0.Source}}", "/x"),
        ("{{json .Name}}", '"n"'), ("{{.State.Error}}", "<no value>"), ("plain", "plain"), ("", ""),
        ("{{json .State}}", '{"OOMKilled": true, "ExitCode": 0, "Error": null}'),
    ],
)  # fmt: skip
def test_templates(template: str, expected: str) -> None:
    assert render(template, VALUE) == expected


@pytest.mark.parametrize(
    "template",
    ["{{.Nope}}", "{{.Name.x}}", "{{range .Mounts}}", "{{.Mounts.9}}", "{{", "{{}}", "{{.State..x}}", "{{Name}}"],
)
def test_bad_templates(template: str) -> None:
    with pytest.raises(UsageError):
        render(template, VALUE)


@given(st.text(alphabet="{}. jsonNameStaterx09", max_size=40))
def test_any_template_is_rendered_or_refused(template: str) -> None:
    try:
        render(template, VALUE)
    except UsageError as error:
        assert error.message

"""What is read without argparse is read as argparse would."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from casemate.cli import do, main, plain, run
from casemate.cli.parser import Parser, reorder
from casemate.errors import UsageError

COMMANDS = ("do", "run", "exec")
SOME = st.sampled_from(
    [
        "-i", "-t", "-d", "-it", "--rm", "--rm=true", "--rm=false", "--rm=no", "-e", "--env", "-eA=1", "-e=B",
        "--env=C=2", "--env=--", "--name", "--name=x", "--name=", "--net", "--network=host", "-w", "/tmp", "--rw",
        "--cwd", "--strace", "--summary", "--", "-", "", "-x", "--help", "--unknown", "busybox", "true", "A=1", "none",
        "-h", "--user", "-u", "0", "a b",
    ]
)  # fmt: skip


def declared(command: str) -> Any:
    return importlib.import_module(f"casemate.cli.{main.COMMANDS[command][0]}").declare


def by_argparse(command: str, words: list[str]) -> dict[str, Any] | None:
    parser = Parser(command, "", "")
    declared(command)(parser)
    try:
        return vars(parser.parse_args(reorder(parser, list(words))))
    except (UsageError, SystemExit):
        return None


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(COMMANDS), st.lists(SOME, max_size=7))
@example("run", ["--rm", "-e", "A=1", "-e", "--rm", "--name=", "busybox", "sh", "-c", "true", "--", "x"])
@example("do", ["--rw", "-w", "-", "--", "make", "--rw"])
def test_both_read_the_same(command: str, words: list[str]) -> None:
    found = plain.parse(declared(command), list(words))
    if found is not None:
        assert vars(found) == by_argparse(command, words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("do", ["true"]),
        ("do", ["--", "make", "-j2", "all"]),
        ("do", ["--rw", "--network", "host", "--env", "A=1", "-e", "B", "-w", "/tmp", "sh", "-c", "exit 3"]),
        ("run", ["--rm", "--wall", "sentry", "busybox", "true"]),
        ("run", ["-i", "-t", "-e", "A=1", "-v", "/a:/b", "--memory=256m", "debian", "bash", "-l"]),
        ("exec", ["-i", "web", "sh", "-c", "ls"]),
    ],
)  # fmt: skip
def test_what_is_usual_needs_no_argparse(command: str, words: list[str]) -> None:
    found = plain.parse(declared(command), words)
    assert found is not None and vars(found) == by_argparse(command, words)


def test_values_are_not_those_of_the_time_before() -> None:
    for _ in range(2):
        found = plain.parse(run.declare, ["-e", "A", "busybox"])
        assert found is not None and found.env == ["A"]
    found = plain.parse(do.declare, ["true"])
    assert found is not None and found.env == []


@pytest.mark.parametrize("command", sorted(set(main.COMMANDS) - set(COMMANDS)))
def test_other_commands_are_left_to_argparse(command: str) -> None:
    for words in ([], ["x"], ["--help"], ["-q", "x"]):
        assert plain.parse(declared(command), words) is None


def test_argparse_is_not_imported() -> None:
    code = (
        "import sys\nfrom casemate.cli import main, do\ndo.ROOT = False\n"
        "do.run = lambda config, args: print(args.command, args.args, 'argparse' in sys.modules) or 7\n"
        "sys.exit(main.main(['do', '--rw', 'true', 'x']))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, "true ['x'] False\n"), done.stderr

"""How words become options: as Docker reads them."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli import main, run
from casemate.cli.parser import Parser, reorder
from casemate.errors import UsageError


def parse(*words: str, command: bool = True) -> Any:
    parser = Parser("test", "[OPTIONS]", "A test.")
    parser.flag("-i", "--interactive", help="-")
    parser.flag("-t", "--tty", help="-")
    parser.flag("--rm", help="-")
    parser.values("-e", "--env", metavar="E", help="-")
    parser.value("--entrypoint", metavar="P", help="-")
    if command:
        parser.command("image", "arguments")
    else:
        parser.add_argument("names", nargs="*")
    return parser.parse_args(reorder(parser, list(words)))


def test_options_after_the_image_belong_to_the_command() -> None:
    args = parse("-i", "busybox", "sh", "-c", "true", "--rm", "-t", "--", "x")
    assert args.interactive and not args.tty and not args.rm
    assert args.image == "busybox"
    assert args.arguments == ["sh", "-c", "true", "--rm", "-t", "--", "x"]


def test_an_image_alone() -> None:
    args = parse("busybox")
    assert (args.image, args.arguments) == ("busybox", [])


def test_a_command_that_begins_with_a_dash() -> None:
    assert parse("busybox", "-x", "--rm").arguments == ["-x", "--rm"]


def test_short_options_join() -> None:
    args = parse("-it", "-eA=1", "-teB=2", "-e", "C", "-e=D", "busybox")
    assert args.interactive and args.tty
    assert args.env == ["A=1", "B=2", "C", "D"]


def test_values_that_begin_with_a_dash() -> None:
    args = parse("--entrypoint", "-x", "-e", "-A=1", "--env", "--B=2", "busybox")
    assert args.entrypoint == "-x"
    assert args.env == ["-A=1", "--B=2"]


def test_an_empty_value_is_a_value() -> None:
    assert parse("--entrypoint", "", "busybox").entrypoint == ""
    assert parse("--entrypoint=", "busybox").entrypoint == ""
    assert parse("busybox").entrypoint is None


def test_flags_with_true_and_false() -> None:
    args = parse("--rm=true", "--tty=false", "busybox")
    assert args.rm and not args.tty
    with pytest.raises(UsageError, match="no value but true or false"):
        parse("--rm=maybe", "busybox")


def test_double_dash_ends_the_options() -> None:
    args = parse("--rm", "--", "busybox", "-t")
    assert (args.rm, args.image, args.arguments, args.tty) == (True, "busybox", ["-t"], False)


def test_options_between_names() -> None:
    args = parse("a", "-i", "b", "--rm", "-", command=False)
    assert args.names == ["a", "b", "-"]
    assert args.interactive and args.rm


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nope", "busybox"], "unknown option --nope"),
        (["-x", "busybox"], "unknown option -x"),
        (["-ix", "busybox"], "unknown option -x in -ix"),
        (["-e"], "-e needs a value"),
        (["--env"], "--env needs a value"),
        (["-i"], "missing IMAGE"),
        (["--inter", "busybox"], "unknown option --inter"),
    ],
)
def test_errors_are_one_line_with_a_hint(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert message in caught.value.message
    assert caught.value.hint == "see: casemate test --help"
    assert caught.value.exit_status == 125


def test_the_command_run_takes_every_option_once() -> None:
    parser = Parser("run", run.USAGE, run.SUMMARY)
    run.declare(parser)
    words = shlex.split(
        "-i -t -d --rm --name n --entrypoint e -e A=1 --env-file f -w /w -u u -v /a:/b --tmpfs /t --read-only"
        " --cap-add A --cap-drop B --memory 1g --cpus 1 --pids-limit 5 --hostname h --network none -p 1:2 --dns 1.1.1.1"
        " -l a=b --pull never --stop-signal INT --ulimit core=0 --security-opt seccomp=unconfined --sysctl a=b"
        " --shm-size 1m busybox true -x"
    )
    args = parser.parse_args(reorder(parser, words))
    assert args.image == "busybox" and args.arguments == ["true", "-x"]
    assert (args.interactive, args.tty, args.detach, args.rm, args.read_only) == (True,) * 5
    assert (args.name, args.entrypoint, args.workdir, args.user, args.hostname) == ("n", "e", "/w", "u", "h")
    assert (args.memory, args.cpus, args.pids_limit, args.shm_size) == ("1g", "1", "5", "1m")
    assert (args.volume, args.tmpfs, args.publish, args.dns) == (["/a:/b"], ["/t"], ["1:2"], ["1.1.1.1"])
    assert (args.cap_add, args.cap_drop, args.label, args.env, args.env_file) == (["A"], ["B"], ["a=b"], ["A=1"], ["f"])
    assert (args.network, args.pull, args.stop_signal) == ("none", "never", "INT")


def test_every_command_declares_options_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in main.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main.main([name, "--help"])
        assert caught.value.code == 0
        assert f"casemate {name}" in capsys.readouterr().out


@given(st.lists(st.text(max_size=6) | st.sampled_from(["-i", "-t", "-e", "--rm", "--", "-", "-it", "--env=x", "-"])))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    if "--help" in words:
        return
    try:
        args = parse(*words)
    except UsageError:
        return
    assert args.image in words
    assert list(words[len(words) - len(args.arguments) :]) == args.arguments

"""Options are read as urfave/cli and Go's flag package read them."""

from __future__ import annotations

import pytest

from casemate.errors import UsageError
from casemate.runtime_cli.options import BOOL, LIST, NUMBER, TEXT, Option, parse

KNOWN = (
    Option("bundle, b", TEXT, "", "."),
    Option("detach, d", BOOL, ""),
    Option("preserve-fds", NUMBER, ""),
    Option("env, e", LIST, ""),
)


@pytest.mark.parametrize(
    "words",
    [
        ["--bundle", "/x", "id"],
        ["-bundle", "/x", "id"],
        ["--bundle=/x", "id"],
        ["-b", "/x", "id"],
        ["-b=/x", "id"],
        ["--b", "/x", "id"],
        ["id", "--bundle", "/x"],
        ["id", "-b=/x"],
    ],
)
def test_a_value_may_stand_behind_the_option_or_in_it_before_or_after_the_arguments(words: list[str]) -> None:
    options, arguments = parse(KNOWN, words, anywhere=True)
    assert (options["bundle"], arguments) == ("/x", ["id"])
    assert options.given("bundle") and not options.given("detach")


@pytest.mark.parametrize(
    ("words", "value"),
    [(["-d"], True), (["--detach=true"], True), (["--detach=false"], False), (["-d=0"], False), ([], False)],
)
def test_a_switch_may_be_given_a_value_only_behind_an_equals_sign(words: list[str], value: bool) -> None:
    options, arguments = parse(KNOWN, [*words, "id"], anywhere=True)
    assert (options["detach"], arguments) == (value, ["id"])


def test_the_first_argument_ends_the_options_where_the_rest_is_somebody_elses() -> None:
    options, arguments = parse(KNOWN, ["-d", "id", "ls", "-d", "--bundle", "x"], anywhere=False)
    assert arguments == ["id", "ls", "-d", "--bundle", "x"]
    assert options["bundle"] == "."


def test_two_dashes_end_the_options() -> None:
    options, arguments = parse(KNOWN, ["id", "--", "-d", "--foo"], anywhere=True)
    assert (options["detach"], arguments) == (False, ["id", "-d", "--foo"])


def test_a_single_dash_is_an_argument_or_a_value() -> None:
    options, arguments = parse(KNOWN, ["-b", "-", "-"], anywhere=True)
    assert (options["bundle"], arguments) == ("-", ["-"])


def test_a_list_grows_with_each_time_and_does_not_leak_into_the_next_call() -> None:
    options, _ = parse(KNOWN, ["-e", "A=1", "--env=B=2"], anywhere=True)
    assert options["env"] == ["A=1", "B=2"]
    assert parse(KNOWN, [], anywhere=True)[0]["env"] == []


def test_a_value_may_begin_with_a_dash() -> None:
    assert parse((Option("memory-swap", TEXT, ""),), ["--memory-swap", "-1"], anywhere=True)[0]["memory-swap"] == "-1"


def test_an_unknown_option_after_an_argument_is_an_argument_as_with_runc() -> None:
    assert parse(KNOWN, ["id", "--foo"], anywhere=True)[1] == ["id", "--foo"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--foo"], "flag provided but not defined: -foo"),
        (["--bundle"], "flag needs an argument: -bundle"),
        (["--preserve-fds", "x"], 'invalid value "x" for flag -preserve-fds: parse error'),
        (["--detach=maybe"], 'invalid boolean value "maybe" for -detach: parse error'),
    ],
)
def test_what_cannot_be_read_is_told_in_gos_words(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(KNOWN, words, anywhere=True)
    assert str(caught.value) == complaint


def test_numbers_may_be_given_in_any_base() -> None:
    assert parse(KNOWN, ["--preserve-fds", "0x10"], anywhere=True)[0]["preserve-fds"] == 16

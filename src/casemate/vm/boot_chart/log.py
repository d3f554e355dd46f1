"""The kernel's messages as ``/dev/kmsg`` gives them. Source: Documentation/ABI/testing/dev-kmsg of the kernel.

They come from a guest, which may say anything: lines that are not understood are passed over, texts are cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from casemate.agent.marks import SYNC
from casemate.vm.boot_chart import Call
from casemate.wall.calls import line as printable

_RECORD = re.compile(r"\d{1,9},\d{1,20},(\d{1,18}),[^;]{0,64};(.*)\Z")
_CALLED = re.compile(r"initcall (\S+?)(?:\+0x\S+)?(?: \[\w+\])? returned -?\d+ after (\d{1,12}) usecs\Z")
MOST_RECORDS = 20_000
TEXT = 120


@dataclass(frozen=True, slots=True)
class Message:
    """A message: milliseconds by the kernel's clock, and its text."""

    at: float
    text: str


def parse(log: str) -> list[Message]:
    """The messages in order of time."""
    found = []
    for raw in log.split("\n")[:MOST_RECORDS]:
        if match := _RECORD.match(raw):
            found.append(Message(int(match[1]) / 1000, printable(match[2], TEXT)))
    return sorted(found, key=lambda message: message.at)


def offset(messages: Iterable[Message]) -> float:
    """What has to be added to the kernel's time to have the agent's, in milliseconds; 0 where the log does not say."""
    for message in messages:
        if message.text.startswith(SYNC) and message.text[len(SYNC) :].isdecimal():
            return int(message.text[len(SYNC) :]) / 1e6 - message.at
    return 0.0


def first(messages: Iterable[Message], *beginnings: str) -> Message | None:
    """The first message that begins with one of the texts."""
    return next((message for message in messages if message.text.startswith(beginnings)), None)


def calls(messages: Iterable[Message], most: int = 25) -> list[Call]:
    """What ``initcall_debug`` made the kernel say, the longest first; names without their addresses."""
    found = [
        Call(match[1], int(match[2]) / 1000, message.at)
        for message in messages
        if (match := _CALLED.match(message.text))
    ]
    return sorted(found, key=lambda call: -call.length)[:most]


def gaps(messages: list[Message], until: float, most: int = 12) -> list[Call]:
    """The longest silences before ``until``, each with the message that ended it."""
    found = [
        Call(after.text, after.at - before.at, after.at)
        for before, after in zip(messages, messages[1:], strict=False)
        if after.at <= until
    ]
    return sorted(found, key=lambda call: -call.length)[:most]

"""Members that are forked: what they have of the daemon, what they must not have, and how it hears of their end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from casemate.keeper import __main__ as keeper
from casemate.keeper import nursery
from casemate.pool import birth

Start = Callable[[Callable[[Sequence[str]], int]], birth.Forked]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def start(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Forks a keeper whose program is a test's; all are gone at the end."""
    made: list[birth.Forked] = []
    monkeypatch.setattr(nursery, "show", lambda words: None)  # the tests' own command line may be too short
    ours, theirs = os.pipe()

    def fork(program: Callable[[Sequence[str]], int]) -> birth.Forked:
        monkeypatch.setattr(keeper, "serve", program)
        with open(log, "ab") as file:
            made.append(birth.fork(["one", str(theirs)], [theirs], file.fileno(), {"WORD": "said"}))
        return made[-1]

    yield fork
    for fd in (ours, theirs):
        os.close(fd)
    for child in made:
        child.kill()
        child.wait()


def test_what_a_member_has(start: Start, log: Path) -> None:
    def told(words: Sequence[str]) -> int:
        found: dict[str, Any] = {
            "words": words, "open": sorted(map(int, os.listdir("/proc/self/fd"))), "cwd": os.getcwd(),
            "environment": dict(os.environ), "wakeup": signal.set_wakeup_fd(-1),
            "handlers": [str(number) for number in signal.valid_signals() if callable(signal.getsignal(number))],
            "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        }  # fmt: skip
        os.write(1, json.dumps(found).encode())
        return 7

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        child = start(told)
        assert child.wait(20) == 7 and child.poll() == 7 and child.returncode == 7
    finally:
        signal.signal(signal.SIGTERM, before)
    found = json.loads(log.read_text())
    given = int(found["words"][1])
    assert found["words"] == ["one", str(given)]
    assert len({*found["open"]} - {0, 1, 2, given}) == 1, "that of the listing"
    assert found["cwd"] == "/" and found["environment"] == {"WORD": "said"}
    assert (found["wakeup"], found["handlers"], found["blocked"]) == (-1, [], 0)


def test_how_one_is_ended(start: Start) -> None:
    def sleep(words: Sequence[str]) -> int:
        signal.pause()
        return 0

    child = start(sleep)
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.terminate()
    assert child.wait() == -signal.SIGTERM
    child.kill()  # of nobody else, now that the number may be given again
    assert child.wait(1) == -signal.SIGTERM


def test_one_that_breaks_says_so_and_is_no_second_daemon(start: Start, log: Path) -> None:
    def broken(words: Sequence[str]) -> int:
        raise RuntimeError("out of luck")

    assert start(broken).wait(20) == 1
    assert "RuntimeError: out of luck" in log.read_text()


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from casemate.config import Config
from casemate.keeper import nursery
from casemate.pool import birth

config = Config(root=Path(sys.argv[2]))
words = [str(config.root / "containers" / ("0" * 64)), "100", "101", str(config.root / "pool" / ("0" * 64))]
before = birth.can_fork(words) if not sys._xoptions else None
birth.make_room(config)
shown = Path("/proc/self/cmdline").read_text().rstrip("\\0").split("\\0")
assert shown == [word for word in sys.orig_argv if word != "-X" and "casemate-room" not in word], shown
assert birth.can_fork(words)
nursery.show([*birth.PROGRAM, *words])
assert Path("/proc/self/cmdline").read_text().rstrip("\\0").split("\\0") == [*birth.PROGRAM, *words]
print("good")
"""


def test_there_is_room_for_the_words_of_a_keeper(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(SCRIPT)
    source = str(Path(birth.__file__).parents[2])
    done = subprocess.run([sys.executable, script, source, tmp_path / ("x" * 100)], capture_output=True, timeout=60)
    assert done.stdout == b"good\n", done.stderr.decode()

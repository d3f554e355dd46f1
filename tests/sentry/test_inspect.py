"""``casemate sentry ps|maps|fds|stacks`` of real containers: what is told is what runs there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.vm.support import Casemate, Container, detached

SCRIPT = """
mkfifo /tmp/pipe
exec 7>/tmp/kept 8</etc/passwd
trap '' USR1
(exec sleep 1234) &
(cat /tmp/pipe) &
yes | (sleep 1235; cat) >/dev/null &
nc -l -p 4711 &
touch /tmp/ready
wait
"""


@pytest.fixture(scope="module")
def busy(cm: Casemate) -> Any:
    """A container whose processes wait for various things."""
    with detached(cm, "inspected", "--network", "none", command=("sh", "-c", SCRIPT)) as made:
        until(lambda: made.exec("test", "-e", "/tmp/ready").returncode == 0)
        yield made


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What the condition gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.1)
    return found


def rows(made: Container, what: str, *pid: str) -> list[dict[str, Any]]:
    found = made.cm.json("sentry", what, "--json", made.name, *pid)
    assert isinstance(found, list)
    return found


def of(made: Container, what: str, **wanted: Any) -> dict[str, Any]:
    """The one row that has these values, as soon as there is one."""

    def look() -> dict[str, Any] | None:
        matching = [row for row in rows(made, what) if all(row[key] == value for key, value in wanted.items())]
        assert len(matching) <= 1
        return matching[0] if matching else None

    found: dict[str, Any] = until(look)
    return found


def test_ps_tells_who_waits_for_what(busy: Container) -> None:
    sleeper = of(busy, "ps", command="sleep 1234", call="clock_nanosleep")
    assert sleeper["on"] == "the time"
    assert 0 < sleeper["left_ms"] <= 1_234_000
    assert (sleeper["ppid"], sleeper["state"], sleeper["uid"], sleeper["threads"]) == (1, "S", 0, 1)
    shell = of(busy, "ps", pid=1)
    assert shell["call"] in ("wait4", "rt_sigsuspend")
    assert of(busy, "ps", name="nc", call="accept")["on"].startswith("fd ")
    assert of(busy, "ps", name="yes", call="write")["on"].startswith("fd 1 (pipe:[")
    assert of(busy, "ps", on="somebody to open the other end of the FIFO")["name"] == "cat"
    told = busy.cm.out("sentry", "ps", busy.name).splitlines()
    assert told[0].split()[:3] == ["PID", "TID", "PPID"]
    assert any("clock_nanosleep" in line and line.endswith("sleep 1234") for line in told)


def test_ps_of_one_process_has_that_alone(busy: Container) -> None:
    number = of(busy, "ps", command="sleep 1234", call="clock_nanosleep")["pid"]
    assert [row["pid"] for row in rows(busy, "ps", str(number))] == [number]


def test_maps_are_those_that_the_process_sees(busy: Container) -> None:
    own = [line.split() for line in busy.sh("cat /proc/1/maps").splitlines()]
    told = rows(busy, "maps", "1")
    assert [f"{row['start']:08x}-{row['end']:08x}" for row in told] == [words[0] for words in own]
    assert [row["access"] for row in told] == [words[1] for words in own]
    assert [row["name"] for row in told] == [words[5] if len(words) > 5 else "" for words in own]
    assert "[stack]" in busy.cm.out("sentry", "maps", busy.name, "1")


def test_fds_tell_what_they_are(busy: Container) -> None:
    told = {row["fd"]: row for row in rows(busy, "fds", "1")}
    assert (told[7]["name"], told[7]["access"], told[7]["kind"]) == ("/tmp/kept", "w", "file")
    assert (told[8]["name"], told[8]["access"], told[8]["offset"]) == ("/etc/passwd", "r", 0)
    number = str(of(busy, "ps", name="nc", call="accept")["pid"])
    sockets = [row["what"] for row in rows(busy, "fds", number) if row["kind"] == "socket"]
    assert len(sockets) == 1
    assert sockets[0].endswith(":4711 listens")
    number = str(of(busy, "ps", name="yes", call="write")["pid"])
    pipe = next(row for row in rows(busy, "fds", number) if row["fd"] == 1)
    assert pipe["what"].startswith("65536 of 65536 bytes, ")
    assert "/tmp/kept" in busy.cm.out("sentry", "fds", busy.name)


def test_stacks_show_calls_and_signals(busy: Container) -> None:
    sleeper = of(busy, "ps", command="sleep 1234", call="clock_nanosleep")["pid"]
    row = rows(busy, "stacks", str(sleeper))[0]
    assert row["call"].startswith("clock_nanosleep(")
    assert (row["why"], row["restart"], row["pending"]) == ("the time", "ERESTARTNOHAND", [])
    opener = next(row for row in rows(busy, "stacks") if (row["call"] or "").startswith("open"))
    assert '"/tmp/pipe"' in opener["call"]
    told = busy.cm.out("sentry", "stacks", busy.name)
    assert "waits for somebody to open the other end of the FIFO" in told


def test_looking_does_not_disturb(busy: Container) -> None:
    before = of(busy, "ps", command="sleep 1234", call="clock_nanosleep")
    for what in ("ps", "maps", "fds", "stacks"):
        rows(busy, what)
    after = of(busy, "ps", command="sleep 1234", call="clock_nanosleep")
    assert after["pid"] == before["pid"]
    assert after["left_ms"] <= before["left_ms"]


def test_threads_and_what_they_wait_for(cm: Casemate, debian_image: str) -> None:
    program = (
        "import select, socket, threading\n"
        "lock = threading.Lock(); lock.acquire()\n"
        "a, b = socket.socketpair(); poll = select.epoll(); poll.register(a, select.EPOLLIN)\n"
        "for work in (lock.acquire, poll.poll, lambda: select.select([a, b], [], []), lambda: a.recv(1)):\n"
        "    threading.Thread(target=work).start()\n"
    )
    with detached(cm, "threads", image=debian_image, command=("python3", "-c", program)) as made:
        told = until(lambda: threads if len(threads := rows(made, "ps", "1")) == 5 and all(
            row["call"] for row in threads
        ) else None)  # fmt: skip
        assert {row["threads"] for row in told} == {5}
        assert len({row["tid"] for row in told}) == 5
        on = {row["call"]: row["on"] for row in told[1:]}
        assert "the word at 0x" in on.pop("futex")
        epoll = on.pop("epoll_wait", "") or on.pop("epoll_pwait", "")
        assert "(anon_inode:[eventpoll]), which watches fd " in epoll
        several = on.pop("select", "") or on.pop("pselect6", "")
        assert several.count("(socket:[") == 2
        assert on.pop("recvfrom").startswith("fd ")
        assert not on
        stopped = rows(made, "stacks", str(told[2]["tid"]))
        assert {row["pid"] for row in stopped} == {1}


def test_a_paused_container_can_be_looked_at(cm: Casemate) -> None:
    spin = ("sh", "-c", "while :; do :; done")
    with detached(cm, "spinning", command=spin) as made:
        assert rows(made, "stacks")[0]["why"] == "runs code of its own"
        cm("pause", made.name, check=True)
        row = rows(made, "stacks")[0]
        assert (row["frozen"], row["why"]) == (True, "runs when its container is resumed")
        assert "(R, paused)" in cm.out("sentry", "stacks", made.name)
        assert rows(made, "maps")
        cm("unpause", made.name, check=True)
        assert rows(made, "stacks")[0]["frozen"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ps", "no-such-container"), "no-such-container"),
        (("fds", "inspected", "31999"), "no process 31999"),
        (("maps", "inspected", "one"), "'one' is no number of a process"),
        (("ps",), "missing CONTAINER"),
        (("ps", "inspected", "1", "2"), "unexpected argument '2'"),
        (("heap", "inspected"), "does not know 'heap'"),
    ],
)
def test_mistakes_are_told_in_one_line(busy: Container, words: tuple[str, ...], said: str) -> None:
    done = busy.cm("sentry", *words)
    assert done.returncode != 0
    assert done.stdout == b""
    told = done.stderr.decode()
    assert said in told
    assert told.count("\n") == 1


def test_what_has_ended_is_told_so(cm: Casemate) -> None:
    cm("run", "--name", "ended", "busybox", "true", check=True)
    try:
        done = cm("sentry", "ps", "ended")
        assert done.returncode != 0
        assert b"container ended is not running" in done.stderr
    finally:
        cm.remove("ended")

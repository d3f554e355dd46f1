"""The throttler as a process, on files that look like the kernel's: paces, and every way to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate import jsonfile
from casemate.cli.main import main
from casemate.config import Config
from casemate.errors import HostError, StateError
from casemate.ksm import settings, status
from casemate.ksm.kept import Home
from casemate.ksm.kick import kick
from casemate.ksm.settings import Settings
from tests.unit.ksm import kernel
from tests.unit.ksm.kernel import FOUND, Process, values

Throttler = Callable[..., Process]
BEFORE = {"run": "0", "pages_to_scan": "123", "sleep_millisecs": "45"}


def pace(home: Home) -> tuple[str, str]:
    now = values(home.kernel)
    return now["run"], now["sleep_millisecs"]


def left(home: Home) -> set[str]:
    return {path.name for path in home.directory.iterdir()} - {"lock", "turn"}


def test_it_goes_from_pace_to_pace_and_back(home: Home, throttler: Throttler) -> None:
    daemon = throttler(home, **kernel.QUICK)
    for name, pause in (("aggressive", "1"), ("standard", "10"), ("slow", "100")):
        assert f" every {pause} ms" in daemon.says(name)
    daemon.says("restored")
    assert values(home.kernel) == BEFORE and left(home) == {"kick", "state.json"}
    kick(home.run)
    daemon.says("aggressive")
    assert pace(home) == ("1", "1")
    code, said = daemon.end()
    assert (code, values(home.kernel), left(home)) == (0, BEFORE, set())
    assert "found" in said


def test_a_start_makes_it_aggressive_at_once(home: Home, throttler: Throttler) -> None:
    daemon = throttler(home, **{**kernel.QUICK, "ksm_standard_seconds": 3600})
    daemon.says("standard")
    kick(home.run)
    daemon.says("aggressive")
    assert pace(home) == ("1", "1")


def test_the_pages_are_a_share_of_the_anonymous_ones(home: Home, throttler: Throttler) -> None:
    throttler(home, ksm_aggressive_share=4).says("aggressive")
    pages = int(values(home.kernel)["pages_to_scan"])
    assert 0.25 < pages / (settings.anonymous_pages() / 4) < 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_asked_to_end_it_restores(home: Home, throttler: Throttler, number: int) -> None:
    daemon = throttler(home)
    daemon.says("aggressive")
    assert home.found() == FOUND, "kept while others are in force"
    assert daemon.end(number)[0] == 0
    assert values(home.kernel) == BEFORE and left(home) == set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGUSR1, signal.SIGALRM])
def test_killed_its_guard_restores(home: Home, throttler: Throttler, number: int) -> None:
    daemon = throttler(home)
    daemon.says("aggressive")
    code, said = daemon.end(number)
    assert code == -number and "in force again" in said
    assert values(home.kernel) == BEFORE and left(home) == set()


def guards(daemon: Process) -> list[int]:
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text()
    return [int(word) for word in children.split()]


def kill_both(daemon: Process) -> None:
    """Nobody is left to restore anything."""
    for pid in guards(daemon):
        os.kill(pid, signal.SIGSTOP)
    [guard] = guards(daemon)
    daemon.process.kill()
    daemon.process.wait()
    os.kill(guard, signal.SIGKILL)


def test_killed_with_its_guard_the_next_one_restores(home: Home, throttler: Throttler) -> None:
    first = throttler(home)
    first.says("aggressive")
    kill_both(first)
    assert pace(home) == ("1", "1") and home.found() == FOUND
    second = throttler(home)
    second.says("killed")
    second.says("aggressive")
    assert home.found() == FOUND, "and not what the first one had set"
    assert second.end()[0] == 0
    assert values(home.kernel) == BEFORE


@pytest.mark.parametrize("both", [False, True])
def test_killed_at_any_moment_the_settings_can_be_had_back(home: Home, throttler: Throttler, both: bool) -> None:
    for moment in range(24):
        daemon = throttler(home, **kernel.QUICK)
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.process.wait(moment * 0.015)  # between nothing yet and all set up, which no line tells apart
        os.kill(daemon.process.pid, signal.SIGSTOP)
        left_over = guards(daemon) if both else []
        for pid in left_over:
            os.kill(pid, signal.SIGSTOP)
        daemon.process.kill()
        daemon.process.wait()
        for pid in left_over:
            os.kill(pid, signal.SIGKILL)
        assert daemon.process.stderr is not None
        daemon.process.stderr.read()  # until the guard has ended, too
        if both and home.directory.exists():
            home.restore()
        assert values(home.kernel) == BEFORE, moment
        assert home.holder() == 0


def test_signals_to_the_whole_group_leave_the_guard_to_its_work(home: Home, throttler: Throttler) -> None:
    daemon = throttler(home)
    daemon.says("aggressive")
    [guard] = guards(daemon)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(guard, number)
    os.killpg(daemon.process.pid, signal.SIGKILL)
    assert daemon.process.stderr is not None and "in force again" in daemon.process.stderr.read()
    assert values(home.kernel) == BEFORE


def test_a_guard_that_is_killed_gets_a_successor(home: Home, throttler: Throttler) -> None:
    daemon = throttler(home)
    daemon.says("aggressive")
    [first] = guards(daemon)
    os.kill(first, signal.SIGKILL)
    while (now := guards(daemon)) in ([first], []):
        assert daemon.process.poll() is None
    assert len(now) == 1
    code, said = daemon.end(signal.SIGKILL)
    assert "in force again" in said and values(home.kernel) == BEFORE


def test_two_at_once_are_refused(home: Home, throttler: Throttler) -> None:
    first = throttler(home)
    first.says("aggressive")
    kept = values(home.kernel)
    second = throttler(home)
    assert f"process {first.process.pid}" in second.says("refused")
    assert second.process.wait() == 1
    assert home.holder() == first.process.pid and values(home.kernel) == kept
    assert first.end()[0] == 0


def test_off_stops_the_kernel_and_initial_leaves_it_alone(tmp_path: Path, throttler: Throttler) -> None:
    home = Home(tmp_path / "run", kernel.make(tmp_path / "kernel", Settings(1, 9, 8)))
    daemon = throttler(home, "off")
    daemon.says("off")
    assert values(home.kernel) == {"run": "0", "pages_to_scan": "9", "sleep_millisecs": "8"}
    daemon.end()
    assert settings.read(home.kernel) == Settings(1, 9, 8)
    daemon = throttler(home, "initial")
    daemon.says("initial")
    kick(home.run)
    assert daemon.end()[0] == 0 and settings.read(home.kernel) == Settings(1, 9, 8)


def test_what_somebody_sets_while_it_rests_is_what_it_goes_back_to(home: Home, throttler: Throttler) -> None:
    daemon = throttler(home, **kernel.QUICK)
    daemon.says("restored")
    (home.kernel / "pages_to_scan").write_text("777")
    kick(home.run)
    daemon.says("aggressive")
    daemon.end()
    assert values(home.kernel) == {**BEFORE, "pages_to_scan": "777"}


@pytest.mark.parametrize("name", ["run", "pages_to_scan", "sleep_millisecs"])
def test_values_that_it_could_not_put_back_are_left_alone(home: Home, throttler: Throttler, name: str) -> None:
    (home.kernel / name).write_text("odd")
    before = values(home.kernel)
    daemon = throttler(home)
    daemon.says(name)
    assert daemon.process.wait() == 1
    assert values(home.kernel) == before and left(home) == set()


def test_a_setting_that_becomes_bad_ends_it_and_the_rest_is_restored(home: Home, throttler: Throttler) -> None:
    daemon = throttler(home, **{**kernel.QUICK, "ksm_standard_seconds": 0, "ksm_slow_seconds": 0})
    daemon.says("restored")
    (home.kernel / "sleep_millisecs").write_text("odd")
    kick(home.run)
    daemon.says("sleep_millisecs")
    assert daemon.process.wait() == 1
    assert values(home.kernel) == {**BEFORE, "sleep_millisecs": "odd"}


def test_a_kernel_that_does_not_merge(tmp_path: Path, throttler: Throttler) -> None:
    daemon = throttler(Home(tmp_path / "run", tmp_path / "kernel"))
    assert "CONFIG_KSM" in daemon.says("refused")
    assert daemon.process.wait() == 1 and not (tmp_path / "run").exists()


def test_a_damaged_record_is_told(home: Home, throttler: Throttler) -> None:
    home.make()
    (home.directory / "found.json").write_text("{")
    assert "remove it" in throttler(home).says("damaged")
    with pytest.raises(StateError, match="damaged"):
        home.found()
    assert values(home.kernel) == BEFORE


def test_the_record_of_an_earlier_boot_does_not_count(home: Home, throttler: Throttler) -> None:
    home.make()
    jsonfile.write(home.directory / "found.json", {**Settings(2, 1, 1).to_json(), "boot": "another"})
    daemon = throttler(home, "initial")
    daemon.says("initial")
    assert values(home.kernel) == BEFORE and left(home) == {"kick", "state.json"}
    daemon.end()


def test_what_a_killed_one_was_writing_is_removed(home: Home, throttler: Throttler) -> None:
    home.make()
    (home.directory / ".state.json.1.abcd").write_text("")
    (home.directory / "kick").write_text("")
    daemon = throttler(home, "initial")
    daemon.says("initial")
    assert left(home) == {"kick", "state.json"}
    daemon.end()


# ---- starts


def test_a_start_neither_waits_nor_fails(home: Home, throttler: Throttler) -> None:
    kick(home.run)  # no directory
    home.make()
    kick(home.run)  # no socket
    home.socket.write_text("")
    kick(home.run)  # something else
    home.socket.unlink()
    daemon = throttler(home)
    daemon.says("aggressive")
    os.kill(daemon.process.pid, signal.SIGSTOP)
    for _ in range(2000):  # far more than a socket holds; one that waits would never come back
        kick(home.run)
    os.kill(daemon.process.pid, signal.SIGCONT)
    assert daemon.end()[0] == 0
    kick(home.run)
    daemon = throttler(home)
    daemon.says("aggressive")
    kill_both(daemon)
    kick(home.run)  # a socket that nobody reads


def test_whatever_is_said_counts_as_a_start(home: Home, throttler: Throttler) -> None:
    daemon = throttler(home, **{**kernel.QUICK, "ksm_standard_seconds": 0, "ksm_slow_seconds": 0})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for words in (b"", b"x" * 60000, bytes(range(256))):
            daemon.says("restored")
            sender.sendto(words, str(home.socket))
            daemon.says("aggressive")
        assert daemon.end()[0] == 0


def test_only_the_owner_can_reach_it(home: Home, throttler: Throttler) -> None:
    throttler(home).says("aggressive")
    assert stat.S_IMODE(home.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.directory.stat().st_mode) == 0o755
    assert stat.S_IMODE((home.directory / "found.json").stat().st_mode) == 0o600


def test_telling_of_a_start_imports_little() -> None:
    script = (
        "import contextlib, pathlib, socket, sys; before = set(sys.modules)\n"
        "import casemate.ksm.kick\n"
        "print(sorted(set(sys.modules) - before - {'__future__'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['casemate', 'casemate.ksm', 'casemate.ksm.kick']"


def test_it_tells_the_service_manager_that_it_is_ready(
    home: Home, throttler: Throttler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        throttler(home)
        assert manager.recv(100) == b"READY=1"
        assert pace(home) == ("1", "1"), "all is set up by then"


# ---- status


def test_status_of_one_that_runs_and_of_none(home: Home, throttler: Throttler) -> None:
    (home.kernel / "pages_sharing").write_text("512")
    (home.kernel / "pages_shared").write_text("3")
    none = status.status(Config(ksm="initial"), home)
    assert (none["running"], none["mode"], none["state"], none["changes_in"]) == (False, "initial", None, None)
    assert none["general_profit"] is None and "profit" not in "\n".join(status.lines(none))
    (home.kernel / "general_profit").write_text("-1048576")
    daemon = throttler(home)
    daemon.says("aggressive")
    found = status.status(Config(), home)
    assert (found["running"], found["pid"], found["mode"]) == (True, daemon.process.pid, "auto")
    assert found["state"] == "aggressive" and 0 < found["changes_in"] <= 30
    assert found["saved_bytes"] == 512 * found["page_size"] and found["settings"]["run"] == 1
    text = "\n".join(status.lines(found))
    for words in (f"process {daemon.process.pid}, mode auto", "aggressive, for ", "merging, ", " every 1 ms",
                  "3 pages, in use at 515 places", f"{512 * found['page_size'] >> 20}.0 MiB", "-1.0 MiB"):  # fmt: skip
        assert words in text
    daemon.end()
    assert status.status(Config(), home)["running"] is False


def test_a_kernel_whose_advisor_chooses_is_shown_as_such(tmp_path: Path) -> None:
    home = Home(tmp_path / "run", kernel.make(tmp_path / "kernel", Settings(1, 5, 6, "scan-time")))
    assert "chosen by the kernel (scan-time)" in "\n".join(status.lines(status.status(Config(), home)))


def test_asking_disturbs_nobody(home: Home, throttler: Throttler) -> None:
    daemon = throttler(home)
    daemon.says("aggressive")
    for _ in range(20):
        assert home.holder() == daemon.process.pid
    with pytest.raises(HostError, match="runs already"):
        home.lock()
    daemon.end()
    assert home.holder() == 0
    os.close(home.lock())


# ---- the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "fast"], "auto, initial, off"),
        (["--json"], "--json needs --status"),
        (["--status", "--restore"], "exclude"),
        (["--mode", "auto", "--status"], "exclude"),
        (["now"], "unexpected"),
    ],
)
def test_what_the_command_refuses(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["ksm", *words]) == 125
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1

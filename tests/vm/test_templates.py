"""Machines from templates: what they share, what they must not share, and what happens when a template is no good."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.config import Config
from casemate.vm import boots
from casemate.vm.guest.lock import locked
from casemate.vm.template import store
from tests.vm.support import Casemate, Container, await_templates, detached, environment, processes

NONE = "none for this memory and these processors"


@pytest.fixture(scope="module")
def own() -> Iterator[Casemate]:
    """An environment where machines are made from templates."""
    with environment(own_templates=True) as env:
        yield Casemate(env)


@pytest.fixture(scope="module")
def made(own: Casemate) -> Path:
    """The template of the environment."""
    key = own.out("template", "create", timeout=200)
    return store.home(own.env.root) / key


def used(cm: Casemate, name: str) -> str:
    value = cm.inspect(name)["Guest"].get("template")
    assert isinstance(value, str)
    return value


@pytest.fixture(scope="module")
def pair(own: Casemate, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Container, Container]]:
    """Two containers from one template; the first has a volume."""
    volume = tmp_path_factory.mktemp("volume")
    with (
        detached(own, "first", "-v", f"{volume}:/volume", "--hostname", "one") as first,
        detached(own, "second", "--hostname", "two") as second,
    ):
        yield first, second


def test_both_are_from_the_template(own: Casemate, made: Path, pair: tuple[Container, Container]) -> None:
    assert [used(own, container.name) for container in pair] == [made.name[:12]] * 2


@pytest.mark.parametrize(
    "question",
    [
        "cat /proc/sys/kernel/random/boot_id",
        "head -c 32 /dev/urandom | sha256sum",
        "cat /proc/sys/kernel/random/uuid",
        "hostname",
        "cat /etc/hosts",
        "cat /sys/class/net/eth0/address",
        "ip -4 addr show eth0",
    ],
)
def test_they_differ(pair: tuple[Container, Container], question: str) -> None:
    first, second = (container.sh(question) for container in pair)
    assert first and second
    assert first != second


def test_their_clocks_are_the_hosts(pair: tuple[Container, Container]) -> None:
    for container in pair:
        # Set when the sandbox begins, in a guest that has nothing in its processor's caches; the template is older.
        before = int(time.time())
        assert before - 5 <= int(container.sh("date +%s")) <= time.time() + 1


def test_they_reach_the_network(own: Casemate, pair: tuple[Container, Container]) -> None:
    address = own.inspect("second")["NetworkSettings"]["IPAddress"]
    with own.popen("exec", "second", "nc", "-l", "-p", "7000", stdin=subprocess.DEVNULL) as server:
        pair[0].sh(f"until echo over | nc -w 5 {address} 7000; do :; done")
        assert server.communicate(timeout=60)[0] == b"over\n"


def test_files_go_through_the_window(own: Casemate, pair: tuple[Container, Container]) -> None:
    """More than the window holds, both ways, by several at a time."""
    data = os.urandom(1 << 20) * 24
    first = pair[0]
    first.exec("sh", "-c", "cat >/big", input=data, timeout=120, check=True)
    first.sh("for i in 1 2 3 4; do cp /big /volume/copy-$i & done; wait; sync", timeout=180)
    first.sh("echo 3 >/proc/sys/vm/drop_caches 2>/dev/null; true")
    found = first.sh("sha256sum /big /volume/copy-*", timeout=180).split()[::2]
    assert found == [hashlib.sha256(data).hexdigest()] * 5


def test_files_work_when_memory_is_short(pair: tuple[Container, Container]) -> None:
    """The bounce buffers are the kernel's for good: nobody else gets their memory."""
    second = pair[1]
    second.sh("dd if=/dev/zero of=/dev/shm/full bs=1M count=400 2>/dev/null; true", timeout=120)
    second.sh("for i in 1 2 3 4 5 6 7 8; do echo $i >/file-$i; done; cat /file-* | wc -l; rm /file-*; rm /dev/shm/full")


def test_nobody_has_changed_the_template(own: Casemate, made: Path, pair: tuple[Container, Container]) -> None:
    assert own.out("template", "verify") == f"{made.name[:12]}: as it was saved"


def test_memory_is_had_in_common(own: Casemate, made: Path, pair: tuple[Container, Container]) -> None:
    """The same file, and not a copy each."""
    inodes = set()
    for container in pair:
        maps = _maps(own, container)
        inodes |= {line.split()[4] for line in maps.splitlines() if "memfd:casemate-template-" in line}
    assert len(inodes) == 1


def _maps(own: Casemate, container: Container) -> str:
    word = f"guest=casemate-{own.inspect(container.name)['Id'][:12]}"
    (pid,) = (pid for pid in processes(own.env) if word in Path(f"/proc/{pid}/cmdline").read_text())
    text = Path(f"/proc/{pid}/maps").read_text()
    rows = [line for line in text.splitlines() if "memfd:casemate-template-" in line]
    assert rows and all(row.split()[1][3] == "p" for row in rows), "the template is mapped privately"
    return text


def test_memory_is_as_asked_for(own: Casemate, made: Path) -> None:
    """One template for machines with little memory and with much; all of it is there from the first instruction."""
    for asked in (128, 300, 4000):
        done = own.out(
            "run", "--rm", "--memory", f"{asked}m", "busybox",
            "sh", "-c", "awk '/MemTotal/ { print $2 }' /proc/meminfo; dd if=/dev/zero of=/dev/shm/x bs=1M count=16",
        )  # fmt: skip
        total = int(done.split()[0]) >> 10
        assert asked - 60 < total <= asked + 2


def test_memory_that_was_added_can_be_used(own: Casemate, made: Path) -> None:
    with detached(own, "large", "--memory", "700m") as large:
        assert used(own, large.name) == made.name[:12]
        # A reader that keeps all of a line of zeros in memory, twice what the template has.
        found = large.sh("head -c 250m /dev/zero | tr '\\0' x | awk '{ print length($0) }'", timeout=180)
        assert found == str(250 << 20)


def test_another_class_boots_and_has_a_template_made(own: Casemate, made: Path) -> None:
    """The first machine boots, a process of nobody makes the template meanwhile, the next one is made from it."""
    with detached(own, "other", "--cpus", "2") as other:
        assert used(own, other.name) == f"{NONE}: it is being made"
        (maker,) = {pid for pid, what in processes(own.env).items() if "template.background" in what}
        assert os.getpriority(os.PRIO_PROCESS, maker) == 19
        group = {line.split(":", 2)[2] for line in Path(f"/proc/{maker}/cgroup").read_text().splitlines()}
        assert group == {"/"}, "it is in no sandbox's control group"
        # A second one does not make another.
        with detached(own, "another", "--cpus", "2") as another:
            assert used(own, another.name).startswith(f"{NONE}: ")
            makers = [what for what in processes(own.env).values() if "template.background" in what]
            assert len(makers) <= 1
        # Its end does not depend on the sandbox's, which can be taken down meanwhile.
    await_templates(own.env)
    (key,) = {template.key for template in store.list_all(own.env.root)} - {made.name}
    rows = own.out("template", "list").splitlines()[1:]
    assert {row.split()[0] for row in rows} == {key[:12], made.name[:12]}
    with detached(own, "other", "--cpus", "2") as other:
        assert used(own, other.name) == key[:12]
        assert other.sh("nproc") == "2"
    assert own.out("template", "create", "--cpus", "2", timeout=200) == key, "it is there"
    assert own.out("template", "rm", key[:8]) == key[:12]
    assert own.out("template", "list").splitlines()[1:] == [row for row in rows if row.startswith(made.name[:12])]


def test_one_that_cannot_be_made_is_told_and_not_tried_again(tmp_path: Path) -> None:
    with environment(own_templates=True) as env:
        own = Casemate(env)
        own.out("template", "create", timeout=200)
        place = store.home(env.root)
        real = tmp_path / "real"
        place.rename(real)
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
        try:
            with detached(own, "first", "--cpus", "2") as first:
                assert used(own, first.name) == f"{NONE}: it is being made"
            await_templates(env)
            listed = own("template", "list", check=True)
            assert b"none for up to 4224 MiB and 2 processors: " in listed.stderr
            assert listed.stderr.count(b"\n") == 1
            with detached(own, "second", "--cpus", "2") as second:
                assert used(own, second.name).startswith(f"{NONE}: it could not be made: ")
                assert not [what for what in processes(env).values() if "template.background" in what]
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
        # By hand it is tried, and then what was noted is forgotten.
        key = own.out("template", "create", "--cpus", "2", timeout=200)
        assert own("template", "list", check=True).stderr == b""
        with detached(own, "third", "--cpus", "2") as third:
            assert used(own, third.name) == key[:12]


def test_the_first_run_makes_it() -> None:
    with environment(own_templates=True) as env:
        own = Casemate(env)
        with detached(own, "first") as first:
            assert used(own, first.name) == store.list_all(env.root)[0].key[:12]


def damage(made: Path, how: str) -> None:
    if how == "memory cut short":
        os.truncate(made / "memory", 1 << 20)
    elif how == "window gone":
        (made / "window").unlink()
    elif how == "another protocol":
        value = json.loads((made / "manifest.json").read_text())
        value["hello"]["protocol"] += 1
        (made / "manifest.json").write_text(json.dumps(value))
    elif how == "no manifest":
        (made / "manifest.json").write_text("{")
    elif how == "state of nothing":
        (made / "state").write_bytes(bytes((made / "state").stat().st_size))
    elif how == "state cut short":
        with open(made / "state", "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.truncate(size // 2)
            file.truncate(size)


@pytest.mark.parametrize(
    "how",
    ["memory cut short", "window gone", "no manifest", "another protocol", "state of nothing", "state cut short"],
)
def test_a_damaged_template_is_not_used(how: str) -> None:
    """The container runs all the same, and what is wrong is told."""
    with environment(own_templates=True) as env:
        own = Casemate(env)
        with detached(own, "warm") as warm:
            key = used(own, warm.name)
        (made,) = (path for path in store.directories(env.root) if path.name.startswith(key))
        damage(made, how)
        with detached(own, "damaged") as damaged:
            assert used(own, damaged.name).startswith("not used: ")
            assert damaged.sh("echo works") == "works"
        if how in ("memory cut short", "window gone", "no manifest"):
            assert key.encode() in own("template", "list").stderr
        if how != "another protocol":
            assert own("template", "verify").returncode == 1


def test_killed_while_it_is_made() -> None:
    with environment(own_templates=True) as env:
        own = Casemate(env)
        with own.popen("template", "create") as making:
            assert making.stderr is not None
            while b"boots" not in making.stderr.readline():
                pass
            making.send_signal(signal.SIGKILL)
        assert store.list_all(env.root) == []
        key = own.out("template", "create", timeout=200)
        assert [path.name for path in (store.home(env.root)).iterdir() if not path.name.startswith(".")] == [key]
        assert not list((store.home(env.root)).glob(".making-*"))


def test_two_make_it_at_once() -> None:
    with environment(own_templates=True) as env:
        own = Casemate(env)
        with own.popen("template", "create") as one, own.popen("template", "create") as two:
            keys = {process.communicate(timeout=200)[0] for process in (one, two)}
        assert len(keys) == 1
        assert len(store.list_all(env.root)) == 1


def test_who_waits_for_a_turn_to_boot_takes_the_template_that_was_made_meanwhile() -> None:
    with environment("parallel_boots = 1\n", own_templates=True) as env:
        own, gone = Casemate(env), threading.Event()
        config = Config(run=env.run, parallel_boots=1)
        turn = boots.take(config, "0" * 64, gone.set, gone)
        with own.popen("run", "--name", "late", "busybox", "echo", "ran") as late:
            with locked(store.home(env.root), mode=0o700):  # so that somebody makes one, as far as it can tell
                _await_queue(env.run / "boots" / "slot-0")
            key = own.out("template", "create", timeout=200)
            turn.end()
            assert late.communicate(timeout=100)[0] == b"ran\n"
        assert used(own, "late") == key[:12]
        own.remove("late")


def _await_queue(path: Path) -> None:
    """Wait until somebody waits for a file's lock (:manpage:`proc_locks(5)`); there is no event for it."""
    deadline = time.monotonic() + 60
    inode = f":{path.stat().st_ino} "
    while not any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_space_for_it(tmp_path: Path) -> None:
    with environment(own_templates=True) as env:
        own = Casemate(env)
        place = store.home(env.root)
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
        try:
            with detached(own, "full") as full:
                assert used(own, full.name).startswith("not used: ")
                assert full.sh("echo works") == "works"
            refused = own("template", "create", timeout=200)
            assert refused.returncode == 125
            assert b"free some space" in refused.stderr
            assert store.list_all(env.root) == []
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "x"], "unexpected argument"),
        (["list", "--memory", "1g"], "are for create"),
        (["create", "--memory", "1t"], "no template is for"),
        (["rm"], "missing TEMPLATE"),
        (["rm", "none"], "no template begins"),
        (["verify", "none"], "no template begins"),
        (["burn"], "unknown action"),
    ],
)
def test_what_is_refused(own: Casemate, arguments: list[str], said: str) -> None:
    done = own("template", *arguments)
    assert done.returncode in (1, 125)
    assert said in done.stderr.decode()


def manifest(path: Path) -> Any:
    return json.loads((path / "manifest.json").read_text())


def test_the_manifest(made: Path) -> None:
    value = manifest(made)
    assert value["growth_mib"] == 4096
    assert value["hello"]["role"] == "agent"
    assert set(value["sha256"]) == set(store.PARTS)
    assert (made / "memory").stat().st_blocks * 512 < (made / "memory").stat().st_size

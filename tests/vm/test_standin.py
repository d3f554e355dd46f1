"""Stand-ins on the real kernel: namespaces, mounts, trees, privileges, exit order. No machine is booted."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import CasemateError, ContainerError, HostError
from casemate.host import processes, syscalls
from casemate.pod.hooks import HookFailed
from casemate.standin import launch
from casemate.standin.launch import Blueprint, StandIn, Volume

NEW: dict[str, str | None] = {kind: None for kind in ("pid", "network", "ipc", "uts", "mount")}
KINDS = ("pid", "net", "ipc", "uts", "mnt")


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a forked process: it has one thread, as the commands that make stand-ins have, and what it does to
    its mounts is its own."""

    @wraps(test)
    def run(**arguments: Any) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            status = 1
            try:
                test(**arguments)
                status = 0
            except BaseException:  # noqa: BLE001 - told to the other side
                os.write(writer, traceback.format_exc().encode()[-60000:])
            finally:
                os._exit(status)
        os.close(writer)
        with open(reader, errors="replace") as file:
            said = file.read()
        _, status = os.waitpid(pid, 0)
        if status != 0:
            pytest.fail(said or f"ended with {status}", pytrace=False)

    return run


class Place:
    """A bundle's root filesystem and what belongs to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        for name in ("bin", "etc", "proc", "dev", "tmp"):
            (self.rootfs / name).mkdir(parents=True)
        (self.rootfs / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (self.rootfs / "bin/busybox").chmod(0o755)
        for name in ("cat", "hostname", "ip", "ls", "touch"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        (path / "scratch").mkdir()
        (path / "data/sub").mkdir(parents=True)
        (path / "data/file").write_text("data")

    def blueprint(self, *volumes: Volume, **rest: Any) -> Blueprint:
        rest.setdefault("namespaces", NEW)
        return Blueprint(str(self.rootfs), str(self.path / "scratch"), volumes=volumes, **rest)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Path(os.path.realpath(tmp_path)))


@contextlib.contextmanager
def standing(blueprint: Blueprint) -> Iterator[StandIn]:
    """A stand-in for a while."""
    with launch.spawn(blueprint) as starting:
        made = starting.finish()
    try:
        yield made
    finally:
        made.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(made.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(made.pid, 0)


def inside(standin: StandIn, script: str) -> str:
    """Run a script with the container's programs in all namespaces of a stand-in."""
    words = ["nsenter", "-t", str(standin.pid), "-m", "-p", "-u", "-n", "-i", "/bin/busybox", "sh", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def namespaces(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}


def attach(tree: int | None, target: Path) -> None:
    """Attach a tree as the keeper does, in a mount namespace of its own."""
    assert tree is not None
    target.mkdir()
    syscalls.move_mount(tree, "", syscalls.AT_FDCWD, str(target), syscalls.MOVE_MOUNT_F_EMPTY_PATH)


def own_mounts() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE, None)


def hook(script: str) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script]}


def mounted(pid: int) -> list[tuple[str, str]]:
    """Mount points and file systems that a process sees."""
    lines = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    return [(fields[4], fields[fields.index("-") + 1]) for fields in lines]


@alone
def test_every_namespace_is_new_and_it_is_the_first_process_there(place: Place) -> None:
    before = namespaces("self")
    with standing(place.blueprint(hostname="box", domainname="dom")) as made:
        own = namespaces(made.pid)
        assert all(own[kind] != before[kind] for kind in KINDS)
        assert namespaces("self") == before  # what makes one stays where it is, and so does what it starts later
        child = subprocess.run(["readlink", "/proc/self/ns/pid"], capture_output=True, text=True, check=True)
        assert child.stdout.strip() == before["pid"]
        assert inside(made, "hostname") == "box"
        assert f"NSpid:\t{made.pid}\t1\n" in Path(f"/proc/{made.pid}/status").read_text()
        assert os.fstat(made.netns or -1).st_ino == os.stat(f"/proc/{made.pid}/ns/net").st_ino
        assert "UP" in inside(made, "ip link show lo").split(">")[0]


@alone
def test_it_holds_nothing_of_ours(place: Place) -> None:
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leaked, True)  # as an engine does by mistake
    with standing(place.blueprint()) as made:
        held = {name: os.readlink(f"/proc/{made.pid}/fd/{name}") for name in os.listdir(f"/proc/{made.pid}/fd")}
        assert {name: target.partition(":")[0] for name, target in held.items()} == {
            "0": "/dev/null", "1": "/dev/null", "2": "/dev/null", "3": "socket",
        }  # fmt: skip
        assert Path(f"/proc/{made.pid}/environ").read_bytes() == b""
        assert os.stat(f"/proc/{made.pid}/cwd/").st_ino == os.stat(place.rootfs).st_ino
        assert os.stat(f"/proc/{made.pid}/root/").st_ino == os.stat(place.rootfs).st_ino
        assert Path(f"/proc/{made.pid}/stat").read_text().split()[5] == str(made.pid)  # leader of its session


@alone
def test_it_has_the_containers_user_and_no_privileges(place: Place) -> None:
    with standing(place.blueprint(uid=12345, gid=23456, words=("/bin/prog", "x"), oom_score_adj=321)) as made:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{made.pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert status["Uid"].split() == ["12345"] * 4 and status["Gid"].split() == ["23456"] * 4
        assert status["Groups"].strip() == ""
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Name"] == "prog"
        assert Path(f"/proc/{made.pid}/oom_score_adj").read_text().strip() == "321"
        assert os.stat(f"/proc/{made.pid}/fd").st_uid == 0  # not to be looked at by that user of the host


@alone
def test_root_is_left_with_what_changing_root_takes(place: Place) -> None:
    with standing(place.blueprint()) as made:
        status = Path(f"/proc/{made.pid}/status").read_text()
        assert int(status.partition("CapBnd:\t")[2].split()[0], 16) == (1 << 6) | (1 << 7) | (1 << 18)


@alone
def test_volumes_are_in_place_and_in_their_tree_in_order(place: Place) -> None:
    file = place.path / "single"
    file.write_text("one file")
    volumes = (
        Volume("/data", str(place.path / "data")),
        Volume("/etc/single", str(file), read_only=True),
        Volume("/new/place/deep", str(place.path / "data/sub")),
    )
    own_mounts()
    with standing(place.blueprint(*volumes)) as made:
        assert inside(made, "cat /data/file /etc/single; echo x >/data/sub/w; cat /new/place/deep/w") == "dataone filex"
        assert "Read-only" in inside(made, "echo x 2>&1 >/etc/single || true")
        attach(made.volumes, place.path / "volumes")
        attach(made.root, place.path / "root")
        assert sorted(os.listdir(place.path / "volumes")) == ["0", "1", "2"]
        assert (place.path / "volumes/0/file").read_text() == "data"
        assert (place.path / "volumes/1").read_text() == "one file"
        assert (place.path / "volumes/2/w").read_text() == "x\n"
        with pytest.raises(OSError, match="Read-only"):
            (place.path / "volumes/1").write_text("x")
        # The guest gets the root without the volumes: it mounts those itself.
        assert os.listdir(place.path / "root/data") == []


@pytest.mark.parametrize("deep", [False, True])
def test_a_read_only_volume_may_be_so_with_all_below_it(place: Place, deep: bool) -> None:
    @alone
    def check() -> None:
        own_mounts()
        data = place.path / "data"
        syscalls.mount("tmpfs", str(data / "sub"), "tmpfs", 0, None)
        with standing(place.blueprint(Volume("/data", str(data), read_only=True, deep=deep))) as made:
            attach(made.volumes, place.path / "volumes")
            for name, takes in ((".", False), ("sub", not deep)):
                if takes:
                    (place.path / "volumes/0" / name / "new").write_text("x")
                else:
                    with pytest.raises(OSError, match="Read-only"):
                        (place.path / "volumes/0" / name / "new").write_text("x")
        (data / "sub/after").write_text("the host's own is as it was")

    check()


@alone
def test_what_the_guest_has_of_its_own_is_not_shown_to_it(place: Place) -> None:
    volumes = (
        Volume("/first", str(place.path / "data")),
        Volume("/groups", str(place.path / "data"), passed=False),
        Volume("/third", str(place.path / "data/file")),
    )
    spec = {"hooks": {"createContainer": [hook(f"mount --bind {place.path}/data groups/sub")]}}
    own_mounts()
    with standing(place.blueprint(*volumes, hooks=(spec, {}), hooked=True)) as made:
        assert inside(made, "cat /groups/file /groups/sub/file") == "datadata"
        attach(made.volumes, place.path / "volumes")
        assert sorted(os.listdir(place.path / "volumes")) == ["0", "1", "2"]
        assert os.listdir(place.path / "volumes/1") == []
        assert (place.path / "volumes/2").read_text() == "data"


@alone
def test_a_writable_volume_is_the_same_directory_everywhere(place: Place) -> None:
    own_mounts()
    with standing(place.blueprint(Volume("/data", str(place.path / "data")))) as made:
        attach(made.volumes, place.path / "volumes")
        (place.path / "volumes/0/by-guest").write_text("g")
        assert (place.path / "data/by-guest").read_text() == "g"
        assert inside(made, "cat /data/by-guest") == "g"


@alone
def test_what_the_guest_mounts_itself_stands_empty_here_and_takes_no_files(place: Place) -> None:
    (place.rootfs / "dev/hidden").write_text("below")
    volumes = (
        Volume("/proc", None, kind="proc"),
        Volume("/dev", None, kind="tmpfs"),
        Volume("/dev/shm", str(place.path / "data")),
    )
    own_mounts()
    with standing(place.blueprint(*volumes, words=("prog",))) as made:
        assert inside(made, "ls /dev; cat /dev/shm/file") == "shm\ndata"
        assert "Read-only" in inside(made, "touch /dev/x 2>&1 || true")
        assert inside(made, "cat /proc/1/comm") == "prog"
        assert not (place.rootfs / "dev/shm").exists()
        attach(made.root, place.path / "root")
        assert os.listdir(place.path / "root/dev") == ["hidden"]
        assert os.listdir(place.path / "root/proc") == []  # the host's kernel is not shown to a guest


@alone
def test_mounts_below_the_root_filesystem_are_part_of_its_tree(place: Place) -> None:
    own_mounts()
    syscalls.mount(str(place.path / "data"), str(place.rootfs / "tmp"), None, syscalls.MS_BIND, None)
    with standing(place.blueprint()) as made:
        attach(made.root, place.path / "root")
        assert (place.path / "root/tmp/file").read_text() == "data"
        assert inside(made, "cat /tmp/file") == "data"


@alone
def test_nothing_of_the_hosts_is_left_in_the_namespace(place: Place) -> None:
    with standing(place.blueprint(Volume("/data", str(place.path / "data")))) as made:
        assert [point for point, _ in mounted(made.pid)] == ["/", "/data"]


@alone
def test_the_hosts_mounts_are_as_before(place: Place) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with standing(place.blueprint(Volume("/data", str(place.path / "data")))):
        assert Path("/proc/self/mountinfo").read_text() == before
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize("follows", [False, True])
def test_later_mounts_of_the_host_appear_where_that_was_asked_for(place: Place, follows: bool) -> None:
    @alone
    def check() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        data = place.path / "data"
        syscalls.mount(str(data), str(data), None, syscalls.MS_BIND, None)
        syscalls.mount(None, str(data), None, syscalls.MS_SHARED, None)
        with standing(place.blueprint(Volume("/data", str(data), follows=follows))) as made:
            attach(made.volumes, place.path / "volumes")
            syscalls.mount("tmpfs", str(data / "sub"), "tmpfs", 0, None)
            (data / "sub/later").write_text("x")
            expected = ["later"] if follows else []
            assert os.listdir(place.path / "volumes/0/sub") == expected
            assert inside(made, "ls /data/sub").split() == expected

    check()


@alone
def test_a_read_only_root_is_one_here_too(place: Place) -> None:
    with standing(place.blueprint(Volume("/data", str(place.path / "data")), read_only=True)) as made:
        assert "Read-only" in inside(made, "touch /x 2>&1 || true; touch /data/y")
        assert (place.path / "data/y").exists()


@pytest.mark.parametrize(
    ("link", "lands"),
    [("/elsewhere", "elsewhere"), ("../../../../elsewhere", "elsewhere"), ("missing/deep", "etc/missing/deep")],
)
def test_links_in_the_root_filesystem_lead_nowhere_else(place: Place, link: str, lands: str) -> None:
    @alone
    def check() -> None:
        os.symlink(link, place.rootfs / "etc/target")
        with standing(place.blueprint(Volume("/etc/target", str(place.path / "data")))) as made:
            assert inside(made, f"cat /{lands}/file") == "data"
        assert not Path("/elsewhere").exists()

    check()


@alone
def test_a_circle_of_links_is_refused(place: Place) -> None:
    os.symlink("b", place.rootfs / "a")
    os.symlink("a", place.rootfs / "b")
    with pytest.raises(HostError, match="too many symbolic links"):
        launch.spawn(place.blueprint(Volume("/a", str(place.path / "data"))))


@pytest.mark.parametrize("kind", ["socket", "fifo", "device", "missing", "over the root"])
def test_sources_that_a_guest_cannot_have_are_refused(place: Place, kind: str) -> None:
    @alone
    def check() -> None:
        source, destination, complaint = str(place.path / "s"), "/data", kind
        if kind == "socket":
            os.mknod(source, 0o140600)
        elif kind == "fifo":
            os.mkfifo(source)
            complaint = "pipe"
        elif kind == "device":
            source = "/dev/null"
        elif kind == "missing":
            complaint = "no such file or directory"
        else:
            source, destination, complaint = str(place.path / "data"), "/etc/..", "container's root"
        with pytest.raises(HostError, match=complaint):
            launch.spawn(place.blueprint(Volume(destination, source)))
        with pytest.raises(ChildProcessError):  # the child was reaped
            os.waitpid(-1, os.WNOHANG)

    check()


@alone
def test_create_container_hooks_run_in_the_containers_namespaces_before_its_root_changes(place: Place) -> None:
    out = place.path / "out"
    script = f"cat >{out}; pwd >>{out}; readlink /proc/self/ns/net >>{out}; cat data/file >>{out}; echo $$ >>{out}"
    spec = {"hooks": {"createContainer": [hook(script)]}}
    state = {"id": "c", "status": "creating"}
    with launch.spawn(place.blueprint(Volume("/data", str(place.path / "data")), hooks=(spec, state))) as starting:
        assert not out.exists()  # not before the runtime's own hooks have run
        made = starting.finish()
    lines = out.read_text().replace("}", "}\n").splitlines()
    assert json.loads(lines[0]) == {"id": "c", "status": "creating", "pid": 1}
    assert lines[1:3] == [str(place.rootfs), namespaces(made.pid)["net"]]
    assert lines[3].startswith("data") and int(lines[3][4:]) > 1
    made.kill()


@alone
def test_a_hook_that_fails_stops_it(place: Place) -> None:
    spec = {"hooks": {"createContainer": [hook("echo no >&2; exit 4")]}}
    with launch.spawn(place.blueprint(hooks=(spec, {}))) as starting, pytest.raises(HookFailed, match="exit status 4"):
        starting.finish()
    assert not processes.alive(starting.pid, starting.pid_start)


@alone
def test_what_hooks_mount_gets_to_the_guest(place: Place) -> None:
    (place.path / "extra").mkdir()
    (place.path / "extra/e").write_text("extra")
    extra = place.path / "extra"
    script = (
        f"mkdir -p opt/x data/sub dev/y; mount --bind {extra} opt/x; mount --bind {extra} data/sub;"
        f" mount --bind {extra} dev/y; mkdir -p p; mount -t proc proc p"
    )
    spec = {"hooks": {"createContainer": [hook(script)]}}
    volumes = (Volume("/dev", None, kind="tmpfs"), Volume("/data", str(place.path / "data")))
    own_mounts()
    with standing(place.blueprint(*volumes, hooks=(spec, {}), hooked=True)) as made:
        assert inside(made, "cat /opt/x/e /data/sub/e /dev/y/e") == "extra" * 3
        attach(made.root, place.path / "root")
        attach(made.volumes, place.path / "volumes")
        assert (place.path / "root/opt/x/e").read_text() == "extra"
        assert (place.path / "volumes/0/sub/e").read_text() == "extra"
        assert os.listdir(place.path / "volumes") == ["0"]
        assert os.listdir(place.path / "root/dev") == []
        assert os.listdir(place.path / "root/p") == []  # of the host's kernel


@alone
def test_the_runtimes_hooks_find_the_namespaces_and_the_mounts(place: Place) -> None:
    with launch.spawn(place.blueprint(Volume("/data", str(place.path / "data")))) as starting:
        assert namespaces(starting.pid)["net"] != namespaces("self")["net"]
        assert Path(f"/proc/{starting.pid}/root{place.rootfs}/data/file").read_text() == "data"
        starting.finish().kill()


@alone
def test_one_that_is_not_finished_is_gone_at_once(place: Place) -> None:
    with launch.spawn(place.blueprint()) as starting:
        assert processes.alive(starting.pid, starting.pid_start)
    assert not os.path.exists(f"/proc/{starting.pid}")


@alone
def test_namespaces_of_others_are_joined(place: Place) -> None:
    with standing(place.blueprint(hostname="first")) as first:
        paths: dict[str, str | None] = {
            "pid": f"/proc/{first.pid}/ns/pid", "network": f"/proc/{first.pid}/ns/net",
            "ipc": f"/proc/{first.pid}/ns/ipc", "uts": f"/proc/{first.pid}/ns/uts", "mount": None,
        }  # fmt: skip
        with standing(place.blueprint(namespaces=paths)) as second:
            ours, theirs = namespaces(first.pid), namespaces(second.pid)
            assert {kind for kind in KINDS if ours[kind] != theirs[kind]} == {"mnt"}
            second.socket.send(b"exit 5\n")
            assert os.waitstatus_to_exitcode(os.waitpid(second.pid, 0)[1]) == 5
            assert processes.alive(first.pid, first.pid_start)


@alone
def test_a_namespace_that_is_not_there_is_an_error(place: Place) -> None:
    with pytest.raises(CasemateError, match="no such file or directory"):
        launch.spawn(place.blueprint(namespaces={**NEW, "network": str(place.path / "none")}))
    with pytest.raises(CasemateError):
        launch.spawn(place.blueprint(namespaces={**NEW, "pid": str(place.path / "none")}))
    with pytest.raises(CasemateError, match="cannot join"):
        launch.spawn(place.blueprint(namespaces={**NEW, "network": "/proc/self/ns/uts"}))


@alone
def test_an_execs_joins_everything(place: Place) -> None:
    with standing(place.blueprint(words=("sleep", "9"))) as made:
        member = launch.join(made.pid, made.pid_start, words=("ls", "-l"), uid=7, gid=8, oom_score_adj=55)
        assert namespaces(member.pid) == namespaces(made.pid)
        assert Path(f"/proc/{member.pid}/cmdline").read_bytes().rstrip(b"\0") == b"ls\0-l"
        assert "Uid:\t7\t" in Path(f"/proc/{member.pid}/status").read_text()
        assert os.stat(f"/proc/{member.pid}/root/").st_ino == os.stat(place.rootfs).st_ino
        assert Path(f"/proc/{member.pid}/oom_score_adj").read_text().strip() == "55"
        assert sorted(os.listdir(f"/proc/{member.pid}/fd")) == ["0", "1", "2", "3"]
        member.socket.send(b"exit 3\n")
        assert os.waitstatus_to_exitcode(os.waitpid(member.pid, 0)[1]) == 3


@alone
def test_one_that_has_ended_cannot_be_joined(place: Place) -> None:
    with standing(place.blueprint()) as made:
        with pytest.raises(ContainerError, match="cannot exec in a stopped container"):
            launch.join(made.pid, made.pid_start + 1)
        made.kill()
        with pytest.raises(ContainerError, match="cannot exec in a stopped container"):
            launch.join(made.pid, made.pid_start)


@alone
def test_the_first_ends_last(place: Place) -> None:
    """The kernel holds the end of a pid namespace's first process back until all others in it have been reaped, so
    that an engine hears of an exec's end before the container's."""
    with standing(place.blueprint()) as made:
        member = launch.join(made.pid, made.pid_start)
        made.socket.send(b"exit 0\n")
        handle = os.pidfd_open(member.pid)
        assert select.select([handle], [], [], 30)[0]  # killed by the kernel, and not reaped yet
        assert os.waitpid(made.pid, os.WNOHANG) == (0, 0)
        assert os.waitpid(member.pid, 0)[1] == signal.SIGKILL
        assert os.waitpid(made.pid, 0)[1] == 0
        member.close()


@alone
def test_it_ends_when_all_that_could_be_its_keeper_is_gone(place: Place) -> None:
    with standing(place.blueprint()) as made:
        made.socket.close()
        assert os.waitstatus_to_exitcode(os.waitpid(made.pid, 0)[1]) == 255


@alone
def test_it_gets_along_under_a_subreaper(place: Place) -> None:
    """Whoever made one goes away, and the nearest subreaper gets it, as with conmon and containerd's shim."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    reader, writer = os.pipe()
    keeper, other = socket.socketpair()
    maker = os.fork()
    if maker == 0:
        keeper.close()
        made = launch.spawn(place.blueprint()).finish()
        socket.send_fds(other, [b"x"], [made.socket.fileno()])
        os.write(writer, str(made.pid).encode())
        os._exit(0)
    other.close()
    os.waitpid(maker, 0)
    pid = int(os.read(reader, 20))
    _, fds, _, _ = socket.recv_fds(keeper, 1, 1)
    assert Path(f"/proc/{pid}/status").read_text().partition("PPid:\t")[2].split()[0] == str(os.getpid())
    os.write(fds[0], b"exit 12\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 12


@alone
def test_a_terminal_is_its_controlling_one_and_its_size_is_told(place: Place) -> None:
    from casemate.runtime_cli import console

    terminal = console.Console((24, 80))
    with standing(place.blueprint(terminal=terminal.slave, uid=99)) as made:
        terminal.close_slave()
        assert made.socket.recv(100) == b"size 24 80\n"
        console.set_size(terminal.master, 30, 100)
        assert made.socket.recv(100) == b"size 30 100\n"
        assert os.readlink(f"/proc/{made.pid}/fd/0") == terminal.name
        terminal.close()  # the engine has gone: the process in the guest hears of it as any other would
        assert made.socket.recv(100).startswith(b"signal 1\n")


@alone
def test_without_pivoting_the_root_is_the_same(place: Place) -> None:
    with standing(place.blueprint(Volume("/data", str(place.path / "data")), pivot=False)) as made:
        assert inside(made, "cat /data/file") == "data"
        assert os.stat(f"/proc/{made.pid}/root/").st_ino == os.stat(place.rootfs).st_ino


@alone
def test_memory_stays_small(place: Place) -> None:
    with standing(place.blueprint()) as made:
        rollup = Path(f"/proc/{made.pid}/smaps_rollup").read_text()
        private = int(rollup.partition("Private_Dirty:")[2].split()[0])
        assert private < 4500, f"{private} KiB of a stand-in are its own (Python {sys.version.split()[0]})"

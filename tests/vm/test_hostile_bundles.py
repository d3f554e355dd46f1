"""Hostile bundles through the real command line: one clear error, exit status 1, and nothing left behind.

Most of them are refused before a machine is made. Those that could pass for sound have a prestart hook that fails, so
that everything before the guest is exercised and undone; the last ones fail in the guest itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.oci import specs
from tests.vm.support import Environment, environment, leaks

RUNTIME = Path(sys.executable).parent / "casemate-runtime"
PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 20.0
ROUNDS = 60
"""How many specifications are spoilt at random; each costs a start of the runtime and of a keeper."""


class Bundle:
    """A bundle, and the runtime's command line on it; its container's name is nobody else's."""

    def __init__(self, env: Environment, home: Path) -> None:
        self.env = env
        self.home = home
        self.id = f"hostile-{uuid.uuid4().hex}"
        self.log = home.with_name(f"{home.name}.log")
        busybox = shutil.which("busybox")
        assert busybox is not None, "install busybox-static"
        (home / "rootfs" / "bin").mkdir(parents=True)
        shutil.copy(busybox, home / "rootfs" / "bin" / "busybox")
        self.spec: dict[str, Any] = specs.docker()
        self.spec["process"]["terminal"] = False
        self.spec["process"]["args"] = ["/bin/busybox", "sleep", "600"]
        self.spec["root"]["path"] = "rootfs"
        self.spec["linux"]["seccomp"]["defaultAction"] = "SCMP_ACT_ALLOW"
        self.spec["linux"]["cgroupsPath"] = f"/casemate/{self.id}"
        self.spec["hooks"] = {"prestart": [{"path": "/bin/false"}]}

    def write(self, spec: Any = None) -> None:
        (self.home / "config.json").write_text(json.dumps(self.spec if spec is None else spec))

    def runtime(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RUNTIME, "--log", self.log, "--log-format", "json", *words], env=self.env.variables, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=250, check=False,
        )  # fmt: skip

    def create(self) -> str:
        """Try to make the container; the one error there is, after everything was checked to be as it was before."""
        before = self.surroundings()
        self.log.unlink(missing_ok=True)
        done = self.runtime("create", "--bundle", str(self.home), "--pid-file", str(self.home / "pid"), self.id)
        entries = [json.loads(line) for line in self.log.read_text().splitlines()]
        errors = [entry["msg"] for entry in entries if entry["level"] == "error"]
        assert done.returncode == 1, done
        assert len(errors) == 1, entries
        assert done.stderr == errors[0] + "\n"
        assert done.stdout == ""
        assert not re.search(r"Traceback|unexpected|\b[A-Z]\w+(Error|Exception)\b", errors[0]), errors
        reap()
        assert self.surroundings() == before
        gone = self.runtime("state", self.id)
        assert gone.returncode == 1 and "does not exist" in gone.stderr
        error: str = errors[0]
        return error

    def surroundings(self) -> dict[str, Any]:
        """Whatever a container leaves its traces in, as far as it can be told from other people's."""
        run = self.env.run
        with open("/proc/self/mountinfo") as file:
            mounts = sorted(line.split()[4] for line in file)
        groups = [directory for directory, _, _ in os.walk("/sys/fs/cgroup") if "hostile" in directory]
        return {
            "state": sorted(str(path) for path in (run / "runtime").rglob("*")),
            "run": sorted(name for name in os.listdir(run) if re.fullmatch("[0-9a-f]{12}", name)),
            "users": sorted(path.name for path in (run / "uids" / "owners").glob("*")),
            "mounts": [mount for mount in mounts if str(self.env.base) in mount or str(self.home) in mount],
            "groups": groups,
            "bundle": sorted(os.listdir(self.home)),
            "processes": processes(str(self.env.base)),
        }  # fmt: skip


def processes(text: str) -> list[str]:
    """The command lines of living processes whose environment or command line has a text."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                data = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue  # it has just ended
            if text.encode() in data:
                found.append(data.replace(b"\0", b" ").decode("utf-8", "replace")[:200])
    return found


_others: set[int] = set()
"""Children that are none of a test's: of whatever ran before in this process, such as a host for engines."""


def reap() -> None:
    """Wait until every child of the test's has ended: what a command leaves alone in the world becomes one."""
    deadline = time.monotonic() + PATIENCE
    while left := children() - _others:
        ended = 0
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                ended += os.waitpid(pid, os.WNOHANG)[0] != 0
        if not ended:
            assert time.monotonic() < deadline, f"still there: {[command_line(pid) for pid in left]}"
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)


def children() -> set[int]:
    """The process ids of our children."""
    return {int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def command_line(pid: int) -> str:
    """What a process was started as."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    """As containerd's shim and conmon are: orphans of the runtime's become children of this process."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    _others.clear()
    _others.update(children())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def env() -> Iterator[Environment]:
    """Without machines to be copied, which would wait for the next start: what a bundle leaves is compared."""
    with environment() as made:
        yield made
        assert leaks(made) == []


@pytest.fixture
def bundle(env: Environment, tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(env, tmp_path / "bundle")
    (env.run / "runtime" / ".pods").mkdir(parents=True, exist_ok=True)
    yield made
    made.runtime("delete", "--force", made.id)


# ---- refused by the first look


def many_annotations(bundle: Bundle) -> None:
    bundle.spec["annotations"] = {f"a{number}": "x" * 10_000 for number in range(1000)}
    bundle.write()


def deep(bundle: Bundle) -> None:
    (bundle.home / "config.json").write_text('{"a":' * 100_000)


def endless(bundle: Bundle) -> None:
    with open(bundle.home / "config.json", "wb") as file:
        file.truncate(1 << 40)


def pipe(bundle: Bundle) -> None:
    os.mkfifo(bundle.home / "config.json")


def device(bundle: Bundle) -> None:
    (bundle.home / "config.json").symlink_to("/dev/zero")


def missing(bundle: Bundle) -> None:
    return


def root_link(bundle: Bundle) -> None:
    (bundle.home / "rootfs").rename(bundle.home / "real")
    (bundle.home / "rootfs").symlink_to("/")
    bundle.write()


def root_behind_link(bundle: Bundle) -> None:
    (bundle.home / "way").symlink_to(".")
    bundle.spec["root"]["path"] = "way/rootfs"
    bundle.write()


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (many_annotations, "annotations must have at most"), (deep, "deep in each other"),
        (endless, "larger than 16 MiB"), (pipe, "not an ordinary file"), (device, "not an ordinary file"),
        (missing, "config.json not found"), (root_link, "symbolic link"),
        (root_behind_link, "symbolic link"),
    ],
)  # fmt: skip
def test_files_that_are_a_trap(bundle: Bundle, spoil: Callable[[Bundle], None], match: str) -> None:
    spoil(bundle)
    assert match in bundle.create()


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (("ociVersion",), "2.0.0", "ociVersion '2.0.0' is not supported"),
        (("root", "path"), "/", "the host's root directory"),
        (("root", "path"), "../../../../../../../../..", "the host's root directory"),
        (("root", "path"), "config.json", "not a directory"),
        (("mounts", 0, "destination"), "/../../etc", "without '..'"),
        (("mounts", 0), {"destination": "/x", "type": "ext4", "source": "/dev/vda"}, "type 'ext4' cannot be mounted"),
        (("mounts", 0), {"destination": "/x", "type": "bind", "source": "/dev/null"}, "the device /dev/null"),
        (("mounts", 0), {"destination": "/x", "type": "bind", "source": "/no/such"}, "No such file"),
        (("mounts", 0), {"destination": "/x", "type": "overlay", "options": ["lowerdir=/etc"]}, "type 'overlay'"),
        (("process", "cwd"), "..", "absolute path"),
        (("process", "apparmorProfile"), "mine", "AppArmor"),
        (("process", "user", "uid"), (1 << 32) - 1, "process.user.uid must be from"),
        (("linux", "namespaces"), [], "--network host cannot be given"),
        (("linux", "namespaces", 1, "path"), "/proc/self/ns/net", "--network host cannot be given"),
        (("linux", "namespaces", 1, "path"), "/etc/passwd", "namespace|join"),
        (("linux", "namespaces", 3, "path"), "/proc/self/ns/pid", "--pid host cannot be given"),
        (("linux", "namespaces", 0, "path"), "/proc/self/ns/mnt", "mount namespace"),
        (("linux", "sysctl"), {"kernel.core_pattern": "|/bin/sh"}, "kernel.core_pattern"),
        (("linux", "sysctl"), {"net/../kernel/core_pattern": "|/bin/sh"}, "sysctl"),
        (("linux", "seccomp", "listenerPath"), "/run/x", "listenerPath"),
        (("linux", "intelRdt"), {"closID": "x"}, "intelRdt"),
        (("linux", "devices", 0, "minor"), 232, "cannot be given"),
        (("linux", "devices", 0, "path"), "/dev/../../etc/x", "without '..'"),
        (("linux", "devices", 0), {"type": "b", "path": "/dev/x", "major": 4095, "minor": 9}, "block device 4095:9"),
        (("linux", "cgroupsPath"), "/../../../casemate/hostile-way-out", "prestart hook"),
        (("linux", "resources", "unified"), {"../x.y": "1"}, "control group"),
        (("linux", "resources", "hugepageLimits"), [{"pageSize": "2MB", "limit": 1}], "huge pages"),
        (("hooks", "prestart", 0, "path"), "bin/false", "absolute path"),
        (("hooks", "prestart", 0, "path"), "/no/such", "/no/such: no such file"),
        (("hooks", "prestart", 0, "path"), "/etc/passwd", "/etc/passwd: permission denied"),
    ],
)  # fmt: skip
def test_places_that_are_a_trap(bundle: Bundle, place: tuple[Any, ...], value: Any, match: str) -> None:
    bundle.write(specs.replaced(bundle.spec, place, value))
    assert re.search(match, bundle.create())


# ---- refused on the way


def test_a_sound_bundle_gets_as_far_as_its_hook(bundle: Bundle) -> None:
    """What makes the others of this file mean something."""
    bundle.write()
    assert "error running prestart hook #0: error running hook: exit status 1" in bundle.create()


@pytest.mark.parametrize("target", ["/etc", "../../../../../../../../etc", "/proc/self/cwd", "/nowhere/at/all"])
def test_a_mount_through_a_link_stays_inside(bundle: Bundle, target: str) -> None:
    """The place of a mount is looked for as if the container's root were the root, so it is made there and not here."""
    (bundle.home / "rootfs" / "way").symlink_to(target)
    name = f"hostile-{uuid.uuid4().hex}"
    bundle.spec["mounts"].append({"destination": f"/way/{name}", "type": "bind", "source": "/usr"})
    bundle.write()
    assert "prestart hook" in bundle.create()
    assert not (Path("/etc") / name).exists() and not (Path.cwd() / name).exists()
    assert not Path("/nowhere").exists()


def test_a_mount_on_a_file_that_cannot_be_a_directory(bundle: Bundle) -> None:
    for destination, source in (("/bin/busybox/x", "/usr"), ("/bin/busybox", "/usr"), ("/bin", "/etc/hosts")):
        bundle.write({**bundle.spec, "mounts": [{"destination": destination, "type": "bind", "source": source}]})
        assert destination in bundle.create()


def test_links_without_an_end(bundle: Bundle) -> None:
    (bundle.home / "rootfs" / "way").symlink_to("/way")
    bundle.write({**bundle.spec, "mounts": [{"destination": "/way/x", "type": "bind", "source": "/usr"}]})
    assert "too many symbolic links" in bundle.create()


def test_the_root_itself_is_no_place_for_a_mount(bundle: Bundle) -> None:
    (bundle.home / "rootfs" / "way").symlink_to("/")
    for destination in ("/", "/./", "/way"):
        bundle.write({**bundle.spec, "mounts": [{"destination": destination, "type": "bind", "source": "/usr"}]})
        assert "that is the container's root" in bundle.create()


def test_a_control_group_of_somebody_elses(bundle: Bundle) -> None:
    bundle.write(specs.replaced(bundle.spec, ("linux", "cgroupsPath"), "/"))
    assert re.search("cgroupsPath|control group", bundle.create())


def test_a_hook_that_does_not_end_is_ended(bundle: Bundle) -> None:
    bundle.spec["hooks"]["prestart"] = [{"path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1}]
    bundle.write()
    assert "timeout of 1.0s" in bundle.create()


def test_a_hook_that_floods_its_output(bundle: Bundle) -> None:
    words = ["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; exit 3"]
    bundle.spec["hooks"]["prestart"] = [{"path": "/bin/sh", "args": words}]
    bundle.write()
    error = bundle.create()
    assert "exit status 3" in error and len(error) < 200_000


@pytest.mark.slow
def test_specifications_spoilt_at_random(bundle: Bundle) -> None:
    """Whatever gets past the judges ends at the hook; one that has no more hook than a sound one would is left out."""
    chance = random.Random(20)
    sound = bundle.spec
    known = list(specs.places(sound))
    odd: list[Any] = [None, True, [], {}, [""], {"a": "b"}, ["/"] * 3, 0.5, [[]], {"": {}}]
    values = [*specs.WORDS, *specs.NUMBERS, *odd]
    for _ in range(ROUNDS):
        spec = sound
        for place in chance.sample(known, chance.randint(1, 3)):
            value = chance.choice(values)
            try:
                spec = specs.replaced(spec, place, value)
            except (KeyError, IndexError, TypeError):
                continue  # the place went with an earlier one
        # Never the host's own directories as a root filesystem, and always something that fails in the end.
        for key, own in (("root", {"path": "rootfs"}), ("hooks", sound["hooks"])):
            spec = {**spec, key: own}
        bundle.write(spec)
        error = bundle.create()
        assert len(error) < 3000, error


# ---- refused in the guest


def exec_link(bundle: Bundle) -> None:
    (bundle.home / "rootfs" / "bin" / "way").symlink_to("../../../../../../bin/sh")
    bundle.spec["process"]["args"] = ["/bin/way"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (("process", "args"), ["/no/such"], 'exec: "/no/such": stat /no/such: no such file or directory'),
        (("process", "args"), ["nosuch"], 'exec: "nosuch": executable file not found in [$]PATH'),
        (("process", "args"), ["/bin"], 'exec: "/bin": permission denied'),
        (("process", "args"), ["/bin/way"], 'exec: "/bin/way": stat /bin/way: no such file or directory'),
        (("process", "cwd"), "/bin/busybox", "cwd|chdir|directory"),
        (("mounts", 1, "options"), ["bogus=1"], "mount"),
        (("mounts", 5, "options"), ["size=1x"], "mount"),
        (("linux", "sysctl"), {"net.no.such": "1"}, "net[./]no[./]such"),
        (("linux", "sysctl"), {"net.core.somaxconn": "many"}, "somaxconn"),
        (("linux", "seccomp", "architectures"), ["SCMP_ARCH_PDP11"], "(?i)arch|pdp11"),
        (("linux", "devices", 0, "path"), "/bin/busybox/x", "busybox"),
        (("hooks",), {"startContainer": [{"path": "/bin/nosuch"}]}, "hook"),
    ],
)  # fmt: skip
def test_what_only_the_guest_finds_out(bundle: Bundle, place: tuple[Any, ...], value: Any, match: str) -> None:
    bundle.spec["hooks"] = {}
    exec_link(bundle)
    bundle.spec["process"]["args"] = ["/bin/busybox", "true"]
    bundle.write(specs.replaced(bundle.spec, place, value))
    if place == ("hooks",):  # these run when the container is started
        done = bundle.runtime("run", "--bundle", str(bundle.home), bundle.id)
        reap()
        assert done.returncode != 0 and re.search(match, done.stderr), done
    else:
        assert re.search(match, bundle.create())


@pytest.mark.slow
def test_a_mount_through_a_link_stays_inside_in_the_guest_too(bundle: Bundle) -> None:
    name = f"hostile-{uuid.uuid4().hex}"
    (bundle.home / "rootfs" / "way").symlink_to("../../../../../../etc")
    bundle.spec["mounts"].append({"destination": f"/way/{name}", "type": "bind", "source": "/usr"})
    bundle.spec["hooks"] = {}
    bundle.spec["process"]["args"] = ["/bin/busybox", "ls", f"/etc/{name}"]
    bundle.write()
    done = bundle.runtime("run", "--bundle", str(bundle.home), bundle.id)
    reap()
    assert (done.returncode, done.stdout.split()) == (0, sorted(os.listdir("/usr"))), done
    assert not (Path("/etc") / name).exists()
    assert (bundle.home / "rootfs" / "etc" / name).is_dir()

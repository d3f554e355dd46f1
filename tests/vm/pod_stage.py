"""A keeper's process with a sandbox for several containers in it, and beside it a host where an engine works.

To be made in a process of its own (:func:`tests.vm.host_tools.in_child`), for both have mount namespaces: the host's,
whose mounts are shared as those of most hosts are, and the keeper's, which is a slave of it.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from casemate import config as configuration
from casemate import ids
from casemate.host import cgroups, mounts, namespaces, network, syscalls
from casemate.sandbox import Disk, Nic, ProcessExit, ProcessStreams
from casemate.vm.pod import VmPod
from tests.vm.support import Environment

T = TypeVar("T")
WAIT = 60.0
"""Seconds that anything may take which has to happen."""
CLONE_FS = 0x200
ENV = ["PATH=/bin", "HOME=/"]


class Stage:
    """The keeper's side, and :attr:`place`, a file system of the host for the test's files.

    Arguments:
        env: the test process's environment.
        place: an empty directory.
        changes: of the configuration.
    """

    def __init__(self, env: Environment, place: Path, **changes: Any) -> None:
        self.place = place
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, None)
        mounts.tmpfs(place, size=64 << 20)
        mounts.make_shared(place)
        self._host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        namespaces.unshare_mounts()
        variables = {key: value for key, value in env.variables.items() if key.startswith("CASEMATE_")}
        self.config = replace(configuration.load(variables), **changes)
        self.id = ids.new_id()
        self.run_path = self.config.run / ids.short(self.id)
        self.logs = place / "logs"
        self.logs.mkdir()
        self.told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.group = cgroups.Cgroup.create(self.id)
        self.pod = VmPod(self.config, self.logs, self.run_path, self.id, 320, None, self.group.procs_files())
        self.pod.on_exit = lambda id, exec_id, end: self.told.put((id, exec_id, end))
        self.pod.on_oom = lambda id: self.told.put((id, "oom"))
        self.pod.on_end = self.told.put
        self.netns = network.isolated()
        self._execs = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.pod.close()
        self.run_path.rmdir()  # where nothing else is
        self.group.remove()  # in which nobody is
        os.close(self.netns)

    def boot(self, nics: Sequence[Nic] = (), disks: Sequence[Disk] = ()) -> Stage:
        self.pod.boot(self.netns, nics, disks, "stage")
        return self

    # ---- the host

    def on_host(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the host's mount namespace."""

        def enter() -> T:
            syscalls.unshare(CLONE_FS)
            syscalls.setns(self._host, syscalls.CLONE_NEWNS)
            return function()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()

    def sh(self, command: str) -> str:
        """Run a command on the host; what it wrote. It must succeed."""

        def call() -> str:
            done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            return done.stdout

        return self.on_host(call)

    def sh_in_netns(self, command: str) -> str:
        """Run a command in the sandbox's network namespace, with a ``/sys`` of that namespace."""
        script = f"mount -t sysfs sysfs /sys; {command}"
        words = ["unshare", "-m", "sh", "-c", script]
        done = namespaces.in_netns(
            self.netns, lambda: subprocess.run(words, capture_output=True, text=True, check=True)
        )
        return done.stdout

    def root(self, name: str) -> Path:
        """A root filesystem with busybox, a file ``/who`` that holds its name, and another file system at ``/inner``,
        as an engine has it on the host."""
        root = self.place / name
        for directory in ("bin", "dev", "proc", "sys", "tmp", "inner"):
            (root / directory).mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin/busybox")
        for applet in ("sh", "cat", "ls", "sleep", "dd", "ping", "head", "stty", "nc", "true"):
            (root / "bin" / applet).symlink_to("busybox")
        (root / "who").write_text(name)
        self.sh(f"mount -t tmpfs inner {root}/inner; echo inner {name} > {root}/inner/file")
        return root

    def tree(self, path: Path) -> int:
        """A detached copy of what is mounted at and below a path of the host."""
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
        return self.on_host(lambda: syscalls.open_tree(syscalls.AT_FDCWD, str(path), flags))

    def volumes(self, *sources: Path) -> int:
        """A detached tree of bind mounts, as the stand-in's set-up makes it."""

        def make() -> int:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE, None)
            mounts.tmpfs("/mnt", size=1 << 20)
            for number, source in enumerate(sources):
                target = Path("/mnt") / str(number)
                target.mkdir() if source.is_dir() else target.touch()
                mounts.bind(source, target)
            return syscalls.open_tree(
                syscalls.AT_FDCWD, "/mnt", syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
            )

        return self.on_host(make)

    # ---- the guest

    def spec(self, id: str, words: Iterable[str], volumes: int = 0, **changes: Any) -> dict[str, Any]:
        """A specification for the guest; volume N is at ``/vN``."""
        binds = [
            {
                "destination": f"/v{number}",
                "type": "bind",
                "source": f"/run/casemate/volumes/{id}/{number}",
                "options": ["rbind", "rslave"],
            }
            for number in range(volumes)
        ]
        return {
            "ociVersion": "1.0.2",
            "root": {"path": f"/run/casemate/share/{id}"},
            "process": self.process(words),
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
                *binds,
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")], **changes},
        }

    @staticmethod
    def process(words: Iterable[str], **changes: Any) -> dict[str, Any]:
        user = {"uid": 0, "gid": 0}
        names = ["CAP_KILL", "CAP_NET_RAW", "CAP_DAC_OVERRIDE", "CAP_MKNOD"]
        capabilities = {kind: names for kind in ("bounding", "effective", "permitted")}
        made = {"args": list(words), "cwd": "/", "env": ENV, "user": user, "capabilities": capabilities}
        return {**made, "terminal": False, **changes}

    def start(self, id: str, *words: str, volumes: int = 0, **changes: Any) -> ProcessStreams:
        """Create a container, whose trees are attached, and start it."""
        streams = self.pod.create(id, self.spec(id, words, volumes, **changes), [], True, None)
        self.pod.start(id)
        return streams

    def ask(self, id: str, script: str) -> str:
        """Run a shell script in a container; its output. It has to succeed."""
        self._execs += 1
        name = f"ask-{self._execs}"
        streams = self.pod.exec(id, name, self.process(["sh", "-c", script]), False, None)
        out, err = read_all(streams)
        end = self.end_of(id, name)
        assert end == ProcessExit(0), (script, out, err, end)
        return out.strip()

    def end_of(self, id: str, exec_id: str | None) -> ProcessExit:
        """How a process ended; nothing else may be told first."""
        told = self.told.get(timeout=WAIT)
        assert told[:2] == (id, exec_id), told
        assert isinstance(told[2], ProcessExit)
        return told[2]


def read_until(streams: ProcessStreams, word: str) -> str:
    """What a process writes, up to a word."""
    assert streams.stdout is not None
    text = ""
    while word not in text:
        data = streams.stdout.recv()
        assert data, f"it ended after {text!r}"
        text += data.decode()
    return text


def read_all(streams: ProcessStreams) -> tuple[str, str]:
    """All that a process writes."""
    texts = []
    for stream in (streams.stdout, streams.stderr):
        data = b""
        while stream is not None and (chunk := stream.recv()):
            data += chunk
        texts.append(data.decode())
    return texts[0], texts[1]

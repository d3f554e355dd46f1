"""Engines' containers and their sandboxes on disk, and who may change them.

Below the root that the engine names (``--root``): ``ID/`` for a container, with ``record.json`` and the specification
``config.json``; ``.pods/POD/`` for a sandbox, with ``pod.json``, ``lock`` and the logs.

The *lock* of a sandbox tells whether its keeper lives: whoever makes the sandbox holds it, hands the locked descriptor
to the keeper, and the keeper holds it until it has written the last record. A record that says the container lives
while the lock is free means that the keeper died; whoever finds this cleans up (:mod:`casemate.pod.reap`). While a
container is being made and no keeper has it yet, the record names its maker in the same sense.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate import ids, jsonfile
from casemate.config import Config
from casemate.errors import CasemateError, HostError, NameInUse, NoSuchContainer, StateError, UsageError
from casemate.host import processes
from casemate.keeper import locks
from casemate.pod.model import LIVE, PODS, PodRecord, Record, check_id

MAX_ANNOTATIONS = 1 << 20
"""Bytes of a container's annotations: they are in every answer to a question for its state."""
MAX_CONFIG = 64 << 20
_UNFINISHED, _REMOVED = ".new-", ".gone-"


LINK = "pod"
"""In a sandbox's run directory: where its own directory is, as a symbolic link."""


def roots(config: Config) -> list[Path]:
    """The root directories of all engines that have a sandbox now, by what keepers have announced."""
    found = {config.run / "runtime"}
    with contextlib.suppress(FileNotFoundError), os.scandir(config.run) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found.add(Pod(config, Path(os.readlink(os.path.join(entry.path, LINK)))).root)
    return sorted(found)


class Pod:
    """One sandbox's directory.

    Arguments:
        config: the configuration in force.
        path: the directory.
        lock_fd: the locked descriptor when this process made the sandbox, else None.
    """

    def __init__(self, config: Config, path: Path, lock_fd: int | None = None) -> None:
        self.config = config
        self.path = path
        self.id = path.name
        self.lock_fd = lock_fd

    @property
    def root(self) -> Path:
        """The root directory that it belongs to."""
        return self.path.parent.parent

    @property
    def run_path(self) -> Path:
        """The directory of what lasts only while the sandbox runs."""
        return self.config.run / ids.short(self.id)

    def announce(self) -> None:
        """Have :func:`roots` find it, whichever engine's root it is below; only for the keeper.

        Raises:
            OSError: no space.
        """
        with contextlib.suppress(FileExistsError):
            os.symlink(self.path, self.run_path / LINK)

    def record(self) -> PodRecord:
        """What its keeper wrote.

        Raises:
            NoSuchContainer: there is none.
            StateError: it is damaged.
        """
        try:
            return PodRecord.from_json(jsonfile.read(self.path / "pod.json"))
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchContainer(f"no sandbox {ids.short(self.id)}") from None

    def write(self, record: PodRecord) -> None:
        """Replace the record; only for the keeper.

        Raises:
            OSError: no space.
        """
        jsonfile.write(self.path / "pod.json", record.to_json(), durable=False)

    @contextlib.contextmanager
    def free(self, timeout: float = 0.0) -> Iterator[bool]:
        """Hold the lock for a while; gives whether no keeper is there, also when there is no sandbox at all.

        Arguments:
            timeout: how many seconds to wait for the keeper's end.
        """
        with locks.hold(self.path / "lock", timeout) as locked:
            yield locked or not (self.path / "lock").exists()

    def alive(self) -> bool:
        """Whether it has a keeper."""
        if self.lock_fd is not None:
            return True
        with self.free() as free:
            return not free

    def discard(self) -> None:
        """Take back a sandbox that this process has made and that has no keeper yet."""
        self.delete_files()
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None

    def delete_files(self) -> None:
        """Remove the directory; only for who holds the lock, or found none."""
        _remove(self.path, self.path.parent)


class PodStore:
    """All containers and sandboxes of one root directory.

    Arguments:
        config: the configuration in force.
        root: the directory; ``runtime`` in the run directory when None.
    """

    def __init__(self, config: Config, root: Path | None = None) -> None:
        self.config = config
        self.root = root or config.run / "runtime"
        self.pods_path = self.root / PODS

    # ---- containers

    def path(self, id: str) -> Path:
        """The directory of a container.

        Raises:
            UsageError: no container can have that id.
        """
        return self.root / check_id(id)

    def create_record(self, record: Record, spec: dict[str, Any]) -> Record:
        """Put a container on record, with this process as its maker.

        Arguments:
            record: its first one, of the status ``creating``; maker and time are filled in.
            spec: the validated specification of its bundle, which may go.

        Returns:
            The record as it was written.

        Raises:
            NameInUse: there is a container of that id.
            UsageError: the id is none, or the annotations are too large.
            HostError: the disk is full or cannot be written.
        """
        path = self.path(record.id)
        size = len(json.dumps(record.annotations))
        if size > MAX_ANNOTATIONS:
            raise UsageError(f"{size} bytes of annotations are too many", f"the limit is {MAX_ANNOTATIONS}")
        pid = os.getpid()
        start = processes.start_time(pid) or 0
        record = replace(record, creator=pid, creator_start=start, created=record.created or time.time())
        work = self._work()
        try:
            self._make_root()
            if path.exists():
                raise NameInUse(f"container with id exists: {record.id}", "choose another id, or delete that one")
            work.mkdir(mode=0o700)
            _write_spec(work / "config.json", spec)
            jsonfile.write(work / "record.json", record.to_json(), durable=False)
            os.rename(work, path)  # onto nothing: a container's directory is never empty
        except OSError as error:
            _clear(work)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise NameInUse(f"container with id exists: {record.id}", "choose another id") from None
            hint = "run as root" if error.errno in (errno.EACCES, errno.EPERM) else "free some space"
            raise HostError(f"cannot write to {self.root}: {error.strerror}", hint) from None
        except BaseException:
            _clear(work)
            raise
        return record

    def _make_root(self) -> None:
        """Make the directories. No umask that an engine has left us lets others write to them: who can rename a
        container's directory can put a record of his own in its place."""
        if self.pods_path.is_dir():
            return
        for place in (*reversed(self.root.parents), self.root, self.pods_path):
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o711 if place == self.pods_path else 0o755)

    def _work(self) -> Path:
        """A name for something unfinished that tells whose it is."""
        pid = os.getpid()
        return self.pods_path / f"{_UNFINISHED}{pid}-{processes.start_time(pid) or 0}-{os.urandom(4).hex()}"

    def stored(self, id: str) -> Record:
        """The record as it was last written, true or not.

        Raises:
            NoSuchContainer: there is no such container.
            StateError: the record is damaged or missing.
        """
        path = self.path(id)
        try:
            record = Record.from_json(jsonfile.read(path / "record.json"))
        except (FileNotFoundError, NotADirectoryError):
            if path.is_dir():
                raise StateError(f"container {id} has no record", "delete it with --force") from None
            raise NoSuchContainer(f'container "{id}" does not exist') from None
        if record.id != id:
            raise StateError(f"the record of container {id} is another one's", "delete it with --force")
        return record

    def get(self, id: str) -> Record:
        """The true record: what a keeper that died has left is cleaned up first.

        Raises:
            NoSuchContainer: there is no such container.
            StateError: the record is damaged.
        """
        record = self.stored(id)
        if record.status not in LIVE:
            return record
        if record.status == "creating" and processes.alive(record.creator, record.creator_start):
            return record
        from casemate.pod import reap

        with self.pod(record.pod).free() as free:
            if free:
                reap.reap(self, record.pod)
                marked = reap.mark(self, id)  # also when no sandbox had it yet, and when nothing could be written
            elif record.status == "creating":
                # Its maker died and the sandbox's keeper has not heard of it, or would be named in its place.
                marked = reap.mark(self, id, "whoever made it died")
            else:
                marked = None
        return marked or self.stored(id)

    def spec(self, id: str) -> dict[str, Any]:
        """The specification of a container, as its bundle had it.

        Raises:
            NoSuchContainer: there is no such container.
            StateError: it is damaged.
        """
        try:
            with open(self.path(id) / "config.json", "rb") as file:
                data = file.read(MAX_CONFIG + 1)
            value = json.loads(data) if len(data) <= MAX_CONFIG else None
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchContainer(f'container "{id}" does not exist') from None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise StateError(f"config.json of container {id} is damaged", "delete it with --force")
        return value

    def write(self, record: Record) -> None:
        """Replace a container's record; only for its maker, and then for its keeper.

        Raises:
            OSError: no space, or the container was removed.
        """
        jsonfile.write(self.path(record.id) / "record.json", record.to_json(), durable=False)

    def ids(self) -> builtins.list[str]:
        """The ids of all containers, whatever has become of them."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
            for entry in entries:
                with contextlib.suppress(UsageError):
                    if entry.is_dir(follow_symlinks=False):
                        found.append(check_id(entry.name))
        return sorted(found)

    def list(self) -> builtins.list[Record]:
        """True records of all containers, the oldest first. One whose record is damaged is told as stopped."""
        self.sweep()
        found = []
        for id in self.ids():
            try:
                found.append(self.get(id))
            except NoSuchContainer:
                continue
            except StateError as error:
                found.append(Record(id=id, pod="", bundle="", status="stopped", error=str(error)))
        return sorted(found, key=lambda record: (record.created, record.id))

    def members(self, pod: str) -> builtins.list[Record]:
        """Stored records of the containers of a sandbox."""
        found = []
        for id in self.ids():
            with contextlib.suppress(NoSuchContainer, StateError):
                record = self.stored(id)
                if record.pod == pod:
                    found.append(record)
        return found

    def remove(self, id: str, *, force: bool = False) -> bool:
        """Remove a container and all that it has on the host.

        Arguments:
            force: end it first when it lives; one that is not there is then no error.

        Returns:
            whether it was removed by this call, and not by another one at the same time, or never there.

        Raises:
            NoSuchContainer: there is no such container, and ``force`` is not given.
            StillRunning: it lives, and ``force`` is not given.
            HostError: something would not go.
        """
        from casemate.pod import removal

        return removal.remove(self, id, force=force)

    def delete_files(self, id: str) -> bool:
        """Remove a container's directory, at one stroke for whoever looks on; False when it was gone."""
        return _remove(self.path(id), self.pods_path)

    # ---- sandboxes

    def create_pod(self) -> Pod:
        """Make a sandbox's directory, locked by this process.

        No process that this one forks later may go on without ``execve``: it would keep the lock.

        Raises:
            HostError: the disk is full or cannot be written.
        """
        path, work, descriptor = self.pods_path / ids.new_id(), self._work(), -1
        try:
            self._make_root()
            work.mkdir(mode=0o700)
            descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(work, path)  # locked already when it can be found
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            _clear(work)
            raise HostError(f"cannot write to {self.pods_path}: {error.strerror}", "run as root, free space") from None
        return Pod(self.config, path, descriptor)

    def pod(self, id: str) -> Pod:
        """The sandbox of that id, whether or not it is there. An empty id is that of one that never was."""
        return Pod(self.config, self.pods_path / (id if ids.is_id(id) else "none"))

    def pods(self) -> builtins.list[Pod]:
        """All sandboxes."""
        with contextlib.suppress(FileNotFoundError):
            return [self.pod(name) for name in sorted(os.listdir(self.pods_path)) if ids.is_id(name)]
        return []

    def sweep(self) -> None:
        """Remove what a creation or removal that was cut short has left, and sandboxes that belong to no container."""
        from casemate.pod import reap

        try:
            names = os.listdir(self.pods_path)
        except FileNotFoundError:
            return
        for name in names:
            for prefix in (_UNFINISHED, _REMOVED):
                if name.startswith(prefix):
                    pid, _, start = name[len(prefix) :].rpartition("-")[0].partition("-")
                    if not (pid.isdigit() and start.isdigit() and processes.alive(int(pid), int(start))):
                        _clear(self.pods_path / name)
        used: set[str] | None = None
        for pod in self.pods():
            with pod.free() as free:
                if not free:
                    continue
                if used is None:
                    used = {record.pod for record in self._stored_all()}
                if pod.id not in used:
                    with contextlib.suppress(CasemateError, OSError):
                        reap.clean_pod(pod)
                        pod.delete_files()

    def _stored_all(self) -> Iterator[Record]:
        for id in self.ids():
            with contextlib.suppress(NoSuchContainer, StateError):
                yield self.stored(id)


def _write_spec(path: Path, spec: dict[str, Any]) -> None:
    with open(path, "x") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(spec, file)


def _remove(path: Path, beside: Path) -> bool:
    """Remove a directory of ours: renamed first, so that a removal cut short leaves nothing that looks whole. False
    when there is none."""
    pid = os.getpid()
    doomed = beside / f"{_REMOVED}{pid}-{processes.start_time(pid) or 0}-{os.urandom(4).hex()}"
    try:
        os.rename(path, doomed)
    except FileNotFoundError:
        return False
    _clear(doomed)  # what is left after a failure is swept later
    return True


def _clear(path: Path) -> None:
    """Remove a directory with what is in it, as far as it goes. No link is followed."""
    for directory, directories, files in os.walk(path, topdown=False):
        for name in (*files, *directories):
            place = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                if name in directories and not os.path.islink(place):
                    os.rmdir(place)
                else:
                    os.unlink(place)
    with contextlib.suppress(OSError):
        os.rmdir(path)

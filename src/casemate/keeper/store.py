"""Containers on disk: one directory each, and who may change it.

``containers/<id>/`` holds ``config.json``, ``state.json``, ``lock``, the writable layer (``upper``, ``work``), the log
and the guest's console. ``names/<name>`` is a link to the id.

The *lock* tells who is alive. Whoever makes a container holds it, hands the locked descriptor to the keeper, and the
keeper holds it until it has written the last state. flock(2) locks belong to the open file, so they end with their
holder whatever ended it. A state other than ``exited`` with the lock free therefore means that the sandbox died; the
process that finds this takes the lock and cleans up.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from casemate import ids, jsonfile
from casemate.config import Config
from casemate.errors import HostError, NameInUse, NoSuchContainer, StateError, StillRunning
from casemate.keeper import locks
from casemate.keeper.model import ContainerSpec, ContainerState

__all__ = ["Container", "ContainerSpec", "ContainerState", "Store"]


END_SECONDS = 5.0
"""How long a keeper may take from writing ``exited`` to its end."""
REMOVE_SECONDS = 20.0
"""How long a removal waits for whoever has the container."""


class Container:
    """One container's directory.

    Arguments:
        config: the configuration in force.
        path: the directory.
        lock_fd: the locked descriptor when this process made the container, else None.
    """

    def __init__(self, config: Config, path: Path, lock_fd: int | None = None) -> None:
        self.config = config
        self.path = path
        self.id = path.name
        self.lock_fd = lock_fd
        self._spec: ContainerSpec | None = None

    @property
    def spec(self) -> ContainerSpec:
        """The specification.

        Raises:
            NoSuchContainer: the container was removed meanwhile.
            StateError: ``config.json`` is damaged.
        """
        if self._spec is None:
            try:
                self._spec = ContainerSpec.from_json(jsonfile.read(self.path / "config.json"))
            except FileNotFoundError:
                raise NoSuchContainer(f"no container {ids.short(self.id)}") from None
        return self._spec

    @property
    def name(self) -> str:
        """The name; the short id where the specification cannot be read."""
        try:
            return self.spec.name
        except StateError:
            return ids.short(self.id)

    @property
    def run_path(self) -> Path:
        """The directory of what lasts only while the container runs."""
        return self.config.run / ids.short(self.id)

    def stored_state(self) -> ContainerState:
        """The state as it was last written, true or not.

        Raises:
            NoSuchContainer: the container was removed meanwhile.
            StateError: ``state.json`` is damaged.
        """
        try:
            return ContainerState.from_json(jsonfile.read(self.path / "state.json"))
        except FileNotFoundError:
            raise NoSuchContainer(f"no container {ids.short(self.id)}") from None

    def state(self) -> ContainerState:
        """The true state: a sandbox that died without saying so is cleaned up first.

        Raises:
            NoSuchContainer: it is gone, or died with ``--rm`` and was removed by this call.
        """
        state = self.stored_state()
        if state.status == "exited" or self.lock_fd is not None:
            return state
        with self.try_lock() as locked:
            if locked:
                from casemate.keeper.reap import reap

                return reap(self)
        return self.stored_state()

    def write_state(self, state: ContainerState) -> None:
        """Replace the state; only for who holds the lock.

        Raises:
            OSError: no space.
        """
        jsonfile.write(self.path / "state.json", state.to_json())

    @contextlib.contextmanager
    def try_lock(self, timeout: float = 0.0) -> Iterator[bool]:
        """Hold the lock for a while; gives whether it does, which is not so when the container is gone.

        Arguments:
            timeout: how many seconds to wait for who has it.
        """
        with locks.hold(self.path / "lock", timeout) as locked:
            yield locked

    def take_lock(self) -> bool:
        """Become the container's maker again, after a keeper that has died before it began; whether that worked."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self.lock_fd = descriptor
        return True

    def wait_gone(self, timeout: float) -> bool:
        """Wait until no process has this container any more.

        Arguments:
            timeout: seconds.

        Returns:
            Whether it is so.
        """
        with self.try_lock(timeout) as locked:
            return locked or not self.path.exists()

    def remove(self, force: bool = False) -> None:
        """Remove the container and all that it wrote.

        Arguments:
            force: end it first when it runs.

        Raises:
            StillRunning: it runs and ``force`` is not given.
            HostError: it could not be ended.
        """
        from casemate.keeper import reap

        try:
            status = self.state().status
        except StateError:
            status = "damaged"
        if status not in ("exited", "damaged") and not force:
            raise StillRunning(f"container {self.name} is {status}", "stop it first, or remove it with -f")
        deadline = time.monotonic() + REMOVE_SECONDS
        patience = END_SECONDS if status == "exited" else 0.0  # its keeper may still have to tell others how it ended
        while True:
            with self.try_lock(patience) as locked:
                if locked:
                    reap.clean_host(self)
                    self.delete_files()
                    return
            if not self.path.exists():
                return
            if time.monotonic() > deadline:
                raise HostError(f"container {self.name} is held by another process", "try again")
            reap.end_keeper(self)
            patience = 1.0  # and once more: a keeper that was just being started may not have been found

    def delete_files(self) -> None:
        """Remove the directory and the name; only for who holds the lock.

        The directory is renamed first, so that a removal cut short leaves nothing that looks like a container.
        """
        with Store(self.config).locked():
            names = self.config.root / "names"
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(names):
                    with contextlib.suppress(OSError):
                        if os.readlink(entry.path) == self.id:
                            os.unlink(entry.path)
            doomed = self.path.with_name(f".{self.id}.removed")
            try:
                os.rename(self.path, doomed)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    raise
        for path in (self.path, doomed):
            _remove(path)  # what is left after a failure is swept later


def _remove(path: Path) -> None:
    """Remove a directory and all that is in it, unless somebody else is about it."""
    from casemate.oci.trees import remove_tree

    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
        finally:
            os.close(descriptor)


class Store:
    """All containers of one root directory."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.root / "containers"
        self.names = config.root / "names"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock over names, for a moment."""
        try:
            self.names.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot use {self.config.root}: {error.strerror}", "run as root, free some space"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def create(self, spec: ContainerSpec, prepared: Path | None = None) -> Container:
        """Make a container's directory, locked by this process.

        Arguments:
            prepared: a directory of the pool's that becomes the container's (:mod:`casemate.pool.homes`). A keeper
                that waits there has the lock, and keeps it.

        Raises:
            FileNotFoundError: the prepared directory is gone.
            NameInUse: another container has the name.
            HostError: the disk is full or cannot be written.
        """
        path = self.path / spec.id
        with self.locked():
            link = self.names / spec.name
            self._check_free(link)
            if prepared is not None:
                return self._adopt(spec, prepared)
            lock_fd = -1
            try:
                path.mkdir(mode=0o700)
            except OSError as error:
                raise HostError(f"cannot write to {self.path}: {error.strerror}", "free some space") from None
            try:
                lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(lock_fd, fcntl.LOCK_EX)
                (path / "upper").mkdir(mode=0o755)
                (path / "work").mkdir(mode=0o755)
                jsonfile.write(path / "config.json", spec.to_json())
                jsonfile.write(path / "state.json", ContainerState().to_json())
                os.symlink(spec.id, link)
            except OSError as error:
                if lock_fd >= 0:
                    os.close(lock_fd)
                import shutil  # here, because it brings all that compresses

                shutil.rmtree(path, ignore_errors=True)
                raise HostError(f"cannot write to {self.path}: {error.strerror}", "free some space") from None
        return Container(self.config, path, lock_fd)

    def check_name(self, name: str) -> None:
        """Tell early that a name is in use; who makes the container finds out all the same.

        Raises:
            NameInUse: another container has it.
        """
        with self.locked():
            self._check_free(self.names / name)

    def _check_free(self, link: Path) -> None:
        holder = self._holder(link)
        if holder is not None:
            raise NameInUse(
                f"the name {link.name} is used by container {ids.short(holder)}",
                "choose another, or remove that one with 'casemate rm'",
            )

    def _adopt(self, spec: ContainerSpec, prepared: Path) -> Container:
        """Make a prepared directory a container's; the names' lock is held."""
        path = self.path / spec.id
        try:
            jsonfile.write(prepared / "config.json", spec.to_json())
            jsonfile.write(prepared / "state.json", ContainerState().to_json())
            # The name first: one without a container is dropped by whoever comes upon it.
            os.symlink(spec.id, self.names / spec.name)
            os.rename(prepared, path)
        except FileNotFoundError:
            raise
        except OSError as error:  # whoever waits in it removes it
            raise HostError(f"cannot write to {self.path}: {error.strerror}", "free some space") from None
        return Container(self.config, path)

    def _holder(self, link: Path) -> str | None:
        """The id that a name belongs to; a name without its container is dropped."""
        try:
            holder = os.readlink(link)
        except FileNotFoundError:
            return None
        if (self.path / holder).is_dir():
            return holder
        os.unlink(link)
        return None

    def get(self, ref: str) -> Container:
        """The container of a name, an id, or the beginning of one id.

        Raises:
            NoSuchContainer: none, or more than one id begins so.
        """
        if ref and "/" not in ref and not ref.startswith("."):
            with contextlib.suppress(OSError):
                holder = os.readlink(self.names / ref)
                if ids.is_id(holder) and (self.path / holder).is_dir():
                    return Container(self.config, self.path / holder)
            if ids.is_id(ref) and (self.path / ref).is_dir():
                return Container(self.config, self.path / ref)
            found = [identifier for identifier in self._ids() if identifier.startswith(ref)]
            if len(found) == 1:
                return Container(self.config, self.path / found[0])
            if found:
                raise NoSuchContainer(f"{len(found)} containers have ids that begin with {ref}", "give more digits")
        raise NoSuchContainer(f"no such container: {ref}", "'casemate ps -a' lists them")

    def _ids(self) -> builtins.list[str]:
        try:
            return sorted(name for name in os.listdir(self.path) if ids.is_id(name))
        except FileNotFoundError:
            return []

    def list(self) -> builtins.list[Container]:
        """Every container, the newest last; sandboxes that died are cleaned up first."""
        self.sweep()
        alive: list[tuple[float, Container]] = []
        for identifier in self._ids():
            container = Container(self.config, self.path / identifier)
            try:
                container.state()
                created = container.spec.created
            except NoSuchContainer:
                continue
            except StateError:
                created = 0.0
            alive.append((created, container))
        return [container for _, container in sorted(alive, key=lambda pair: pair[0])]

    def in_use(self, image_id: str) -> builtins.list[str]:
        """Names of the containers made from an image."""
        users = []
        for identifier in self._ids():
            with contextlib.suppress(NoSuchContainer, StateError):
                spec = Container(self.config, self.path / identifier).spec
                if spec.image_id == image_id:
                    users.append(spec.name)
        return users

    def sweep(self) -> None:
        """Remove what a removal or a creation that was cut short has left."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        for name in names:
            path = self.path / name
            if ids.is_id(name) and not (path / "state.json").exists():
                self._discard_unfinished(path)
            elif name.startswith(".") and name.endswith(".removed"):
                _remove(path)
        if (self.config.root / "pool").is_dir():
            from casemate.pool import homes  # here, because few have a pool

            homes.sweep(self.config)

    def _discard_unfinished(self, path: Path) -> None:
        """Remove a container that its maker did not finish: it has no state, and nothing was ever written in it."""
        doomed = path.with_name(f".{path.name}.removed")
        with contextlib.suppress(OSError), self.locked():  # who makes a container holds this lock
            if (path / "state.json").exists() or any((path / "upper").glob("*")):
                return
            os.rename(path, doomed)
        _remove(doomed)

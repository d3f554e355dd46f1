"""Containers behind the sentry wall: from an OCI specification to processes of the kernel.

The specification and the process objects are those that the agent of a machine gets (docs/protocol.md), with the same
paths; what the host cannot be asked for here is refused the same way. All of it runs on the kernel's thread.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from errno import EACCES, EISDIR, ENOENT, ENOEXEC, ENOTDIR
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from casemate.agent.user import resolve as resolve_user
from casemate.protocol.wire import RequestFailed
from casemate.sentry import creds as credentials
from casemate.sentry import world
from casemate.sentry.abi import AT_FDCWD
from casemate.sentry.creds import ALL_CAPS, Credentials
from casemate.sentry.errno import SysError
from casemate.sentry.limits import Limits
from casemate.sentry.signals.info import SI_USER, SigInfo
from casemate.sentry.signals.send import send
from casemate.sentry.tasks.filters import Filter
from casemate.sentry.tasks.profile import Profile
from casemate.sentry.tasks.start import start
from casemate.sentry.vfs import cgroupfs
from casemate.sentry.vfs.fdtable import FdTable
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.inode import FileSystem
from casemate.sentry.vfs.path import resolve
from casemate.sentry.vfs.standard import give

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.place import Place

MAX_MOUNTS = 1024
MAX_FILES = 64
MAX_SETTINGS = 1024
NAMESPACES = ("pid", "ipc", "uts")
"""Kinds that containers can share."""
DEVICES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
RLIMITS = {name: value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
CAPABILITIES: dict[str, int] = {
    name: value for name, value in vars(credentials).items() if name.startswith("CAP_") and name != "CAP_LAST_CAP"
}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def bad(message: str) -> RequestFailed:
    """A specification that is not as it should be."""
    return RequestFailed("bad-spec", message)


class Container:
    """One container.

    Arguments:
        identifier: its name.
        trees: gives the file system of a path in the guest's terms, or raises RequestFailed.
    """

    def __init__(self, kernel: Kernel, identifier: str, trees: Callable[[str, bool], FileSystem]) -> None:
        self.kernel = kernel
        self.identifier = identifier
        self.trees = trees
        self.root: Place | None = None
        self.ns = kernel.ns
        self._memory: set[str] = set()
        self.ending = False
        """Its first process has ended: nothing new begins in it."""
        self.seccomp: list[Filter] = []
        """The filter that all of its processes are under, if it has one."""

    # ---- the container

    def make(
        self, spec: dict[str, Any], files: list[dict[str, Any]], hostname: bytes = b"",
        peers: Callable[[str], Container] | None = None,
    ) -> None:
        """Give it its namespaces, and put its file systems together.

        Arguments:
            spec: an OCI runtime specification.
            files: ``{"path", "mode", "content"}`` of text files that are seen unless the specification mounts there.
            hostname: the sandbox's, for a specification without one.
            peers: gives the container whose namespaces are to be shared, or raises RequestFailed.

        Raises:
            RequestFailed: it cannot be.
        """
        root = spec.get("root")
        if not isinstance(root, dict) or not isinstance(root.get("path"), str):
            raise bad("root.path is missing")
        mounts = spec.get("mounts") or []
        if not isinstance(mounts, list) or len(mounts) > MAX_MOUNTS:
            raise bad(f"mounts must be a list of at most {MAX_MOUNTS}")
        for entry in mounts:
            if not isinstance(entry, dict) or not str(entry.get("destination", "")).startswith("/"):
                raise bad("a mount must be an object with an absolute destination")
        kernel = self.kernel
        self._namespaces(spec, hostname, peers)
        fs = self.trees(root["path"], False)
        self.root = world.mount_root(kernel, os.fsencode(self.identifier), fs)
        self.ns.ipc.users += 1
        try:
            world.mount_all(kernel, self.root, mounts, self._bind, self.ns.ipc, self._shared_memory)
            covered = {str(entry["destination"]) for entry in mounts}
            self._files(files, covered)
            linux = spec.get("linux")
            linux = linux if isinstance(linux, dict) else {}
            if isinstance(linux.get("seccomp"), dict):
                self.seccomp = [Filter(Profile(linux["seccomp"]))]
            self._devices(linux)
            world.mask(kernel, self.root, _texts(linux, "maskedPaths"))
            world.protect(kernel, self.root, _texts(linux, "readonlyPaths"))
            if root.get("readonly") is True:
                from casemate.sentry.vfs.mount import MS_RDONLY

                self.root.mount.flags |= MS_RDONLY
        except SysError as error:
            self.remove()
            raise RequestFailed("failed", f"the container's files cannot be put together: {error}") from None
        except ValueError as error:
            self.remove()
            raise bad(str(error)) from None
        except BaseException:
            self.remove()
            raise

    def _namespaces(
        self, spec: dict[str, Any], hostname: bytes, peers: Callable[[str], Container] | None
    ) -> None:
        """``linux.namespaces``: ``{"type", "container"}`` shares that container's; see docs/protocol.md."""
        linux = spec.get("linux")
        given = linux.get("namespaces") if isinstance(linux, dict) else None
        if given is None:
            return  # the kernel's own
        if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
            raise bad("linux.namespaces must be a list of objects")
        shared: dict[str, Any] = {}
        for entry in given:
            if (other := entry.get("container")) is None:
                continue
            kind = entry.get("type")
            if kind not in NAMESPACES:
                raise bad(f"a namespace of the type {str(kind)[:40]!r} cannot be shared")
            if peers is None or not isinstance(other, str):
                raise bad(f"the {kind} namespace must be that of a container")
            shared[kind] = getattr(peers(other).ns, kind)
        name = spec.get("hostname")
        wanted = os.fsencode(name)[:64] if isinstance(name, str) else b""
        self.ns = self.kernel.namespaces(wanted or hostname or self.kernel.ns.uts.hostname, **shared)
        if wanted:
            self.ns.uts.hostname = wanted
        if isinstance(domain := spec.get("domainname"), str) and domain:
            self.ns.uts.domainname = os.fsencode(domain)[:64]
        self._settings(linux if isinstance(linux, dict) else {})

    def _settings(self, linux: dict[str, Any]) -> None:
        """``linux.sysctl``: the network's are shown as they were made by the host's side, for all containers."""
        given = linux.get("sysctl") or {}
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise bad("linux.sysctl must have texts")
        known: dict[str, str] = self.kernel.subsystems.setdefault("sysctl", {})
        for name, value in given.items():
            path = name if "/" in name else name.replace(".", "/")
            if path == "kernel/domainname":
                self.ns.uts.domainname = os.fsencode(value)[:64]
            elif path.startswith("net/") and len(known) < MAX_SETTINGS and ".." not in path.split("/"):
                known[path] = value[:4096]

    def _shared_memory(self, name: str, make: Callable[[], FileSystem]) -> FileSystem:
        """The memory file system of a name: that of the first container that has it, as long as one does."""
        known: dict[str, tuple[FileSystem, set[Container]]] = self.kernel.subsystems.setdefault("memory", {})
        if name not in known:
            known[name] = make(), set()
        fs, users = known[name]
        users.add(self)
        self._memory.add(name)
        return fs

    def _bind(self, entry: dict[str, Any]) -> FileSystem:
        source = entry.get("source")
        if not isinstance(source, str):
            raise bad(f"the mount on {entry['destination']} has no source")
        options = entry.get("options") or []
        return self.trees(source, "ro" in options)

    def _files(self, files: list[dict[str, Any]], covered: set[str]) -> None:
        assert self.root is not None
        if len(files) > MAX_FILES:
            raise bad(f"at most {MAX_FILES} files can be given")
        for entry in files:
            path, content, mode = entry.get("path"), entry.get("content"), entry.get("mode")
            if not isinstance(path, str) or not path.startswith("/") or not isinstance(content, str):
                raise bad("a file must have an absolute path and a text")
            if path in covered:
                continue
            from casemate.sentry.vfs.tmpfs import TmpFs

            nobody: Any = world.Nobody(self.kernel, self.root)
            holder = TmpFs(self.kernel.mounts.device(), mode=0o755)
            inode = holder.root.create(
                nobody, b"file", stat.S_IFREG | (mode if type(mode) is int else 0o644) & 0o7777, 0, 0
            )
            file = inode.open(nobody, os.O_WRONLY)
            file.write(nobody, content.encode())
            file.decref()
            point = world.mount_point(self.kernel, self.root, os.fsencode(path), False)
            source = resolve_in(nobody, holder)
            self.kernel.mounts.bind(source, point)

    def _devices(self, linux: dict[str, Any]) -> None:
        """``linux.devices``: nodes for those that the kernel has; the rest cannot be had here."""
        assert self.root is not None
        for entry in linux.get("devices") or []:
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                raise bad("a device must be an object with a path")
            kind = DEVICES.get(str(entry.get("type")))
            if kind is None:
                raise bad(f"the device {entry['path']} is of no known type")
            place = world.mount_point(self.kernel, self.root, os.path.dirname(os.fsencode(entry["path"])), True)
            nobody: Any = world.Nobody(self.kernel, self.root)
            number = os.makedev(int(entry.get("major") or 0), int(entry.get("minor") or 0))
            name = os.path.basename(os.fsencode(entry["path"]))
            mode = entry.get("fileMode")
            try:
                place.dentry.inode.mknod(
                    nobody, name, kind | (mode if type(mode) is int else 0o666) & 0o7777, number,
                    int(entry.get("uid") or 0), int(entry.get("gid") or 0),
                )  # fmt: skip
            except SysError:
                continue  # it is there already, or the root is read-only: what is there stays

    def remove(self) -> None:
        """Take its file systems down."""
        cgroupfs.forget(self.kernel, self.identifier)
        if self.root is not None:
            root, self.root = self.root, None
            world.unmount_root(self.kernel, root)
            self.ns.ipc.leave()
        known = self.kernel.subsystems.get("memory", {})
        for name in self._memory:
            users = known[name][1]
            users.discard(self)
            if not users:
                del known[name]
        self._memory.clear()

    # ---- processes

    def process(
        self, spec: dict[str, Any], user: str, files: list[File], terminal: Any, door: Any, first: bool
    ) -> Task:
        """Make a process, which does not run yet.

        Arguments:
            spec: an OCI process object.
            user: ``user[:group]``, looked up in the container; empty for the object's own.
            files: its descriptors from 0 on, taken over.
            terminal: its controlling terminal, or None.
            door: told of its end.
            first: it is the container's first.

        Raises:
            RequestFailed: ``not-found``, ``not-executable``, ``bad-user``, ``bad-spec``.
        """
        root = self.root
        if root is None or self.ending or self.ns.pid.ended:
            for file in files:
                file.decref()
            raise RequestFailed("no-such-container", "the container has ended")
        try:
            limits = _limits(spec)
            table = FdTable(limits)
        except BaseException:
            for file in files:
                file.decref()
            raise
        for file in files:
            table.install(file)
        try:
            creds, home = self._credentials(spec, user)
            for file in files[:3]:
                give(file, creds.uid)
            env = [str(one) for one in spec.get("env") or []]
            if not any(one.startswith("HOME=") for one in env):
                env.append(f"HOME={home}")
            words = spec.get("args")
            if not isinstance(words, list) or not words or not all(isinstance(w, str) and "\0" not in w for w in words):
                raise bad("process.args must be a list of words")
            cwd = os.fsencode(str(spec.get("cwd") or "/"))
            self._make_cwd(cwd)
            umask = (spec.get("user") or {}).get("umask") if isinstance(spec.get("user"), dict) else None
            return self._start(
                words, env, cwd, creds, table, root=root, umask=umask if type(umask) is int else 0o022, limits=limits,
                door=door, terminal=terminal, no_new_privs=spec.get("noNewPrivileges") is True, unkillable=first,
                container=self.identifier, ns=self.ns, seccomp=list(self.seccomp),
                oom_score_adj=int(spec.get("oomScoreAdj") or 0),
            )  # fmt: skip
        except BaseException:
            nobody: Any = world.Nobody(self.kernel, root)
            table.decref(nobody)
            raise

    def _start(
        self, words: list[str], env: list[str], cwd: bytes, creds: Credentials, table: FdTable, **more: Any
    ) -> Task:
        """Look the program up and load it."""
        argv = [os.fsencode(word) for word in words]
        environment = [os.fsencode(one) for one in env]
        path = next((one[5:] for one in reversed(env) if one.startswith("PATH=")), PATH)
        candidates = [words[0]]
        if "/" not in words[0]:
            candidates = [f"{place or '.'}/{words[0]}" for place in path.split(":")]
        denied = False
        for candidate in candidates:
            try:
                # A start that fails gives its reference up, and the next candidate needs the table too. One that does
                # not has made a table of its own of one that it shares with us, as execve(2) does.
                task = start(
                    self.kernel, argv, environment, cwd, creds, table.incref(), os.fsencode(candidate), **more
                )
                table.decref(task)
                return task
            except SysError as error:
                if error.errno in (ENOENT, ENOTDIR):
                    continue
                if error.errno in (EACCES, EISDIR) and len(candidates) > 1:
                    denied = True
                    continue
                reason = {ENOEXEC: "it is no program", EACCES: "permission denied"}.get(error.errno, str(error))
                raise RequestFailed("not-executable", f"{words[0]!r} cannot be executed: {reason}") from None
        if denied:
            raise RequestFailed("not-executable", f"{words[0]!r} cannot be executed: permission denied")
        where = "in $PATH" if "/" not in words[0] else "in the container"
        raise RequestFailed("not-found", f"the command {words[0]!r} is not there: no such file {where}")

    def _make_cwd(self, cwd: bytes) -> None:
        assert self.root is not None
        nobody: Any = world.Nobody(self.kernel, self.root)
        try:
            resolve(nobody, AT_FDCWD, cwd)
        except SysError as error:
            if error.errno != ENOENT:
                return  # start() says what is wrong
            try:
                world.mount_point(self.kernel, self.root, cwd, True)
            except SysError:
                return

    def _credentials(self, spec: dict[str, Any], wanted: str) -> tuple[Credentials, str]:
        """Who it runs as, and the home directory."""
        assert self.root is not None
        root = self.root

        def read(path: str) -> bytes:
            return world.read_file(self.kernel, root, b"/" + os.fsencode(path), 1 << 20)

        given = spec.get("user")
        if wanted or not isinstance(given, dict):
            user = resolve_user(read, wanted)
            uid, gid, groups, home = user.uid, user.gid, tuple(user.groups), user.home
        else:
            uid, gid = _identity(given.get("uid")), _identity(given.get("gid"))
            groups = tuple(_identity(one) for one in given.get("additionalGids") or ())
            home = resolve_user(read, str(uid)).home
        creds = Credentials(uid, gid, groups)
        sets = spec.get("capabilities")
        if isinstance(sets, dict):
            creds.bounding = _capabilities(sets, "bounding")
            creds.permitted = _capabilities(sets, "permitted")
            creds.effective = _capabilities(sets, "effective") & creds.permitted
            creds.inheritable = _capabilities(sets, "inheritable")
            creds.ambient = _capabilities(sets, "ambient") & creds.permitted & creds.inheritable
        elif uid != 0:
            creds.permitted = creds.effective = 0
        else:
            creds.permitted = creds.effective = creds.bounding = ALL_CAPS
        return creds, home

    def end(self) -> None:
        """End everything in it, frozen or not, and let nothing begin any more."""
        self.ending = True
        self.kernel.freeze(self.identifier, False)
        self.kill(SIGKILL)

    def kill(self, number: int) -> None:
        """Send a signal to everything in the container."""
        for group in list(self.kernel.groups.values()):
            if group.container == self.identifier and not group.zombie:
                send(group, SigInfo.user(number, SI_USER, 0, 0), force=True)


def resolve_in(nobody: Any, holder: FileSystem) -> Place:
    """The place of the one file of a file system that is mounted nowhere."""
    from casemate.sentry.vfs.mount import Mount
    from casemate.sentry.vfs.place import Dentry, Place

    top = Dentry(holder.root)
    return Place(Mount(holder, top), top.child(b"file", holder.root.lookup(nobody, b"file")))


def _identity(value: Any) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < (1 << 32) - 1:
        raise bad(f"{value!r} is no user or group number")
    return value


def _texts(linux: dict[str, Any], key: str) -> list[str]:
    value = linux.get(key) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise bad(f"linux.{key} must be a list of paths")
    return value


def _capabilities(sets: dict[str, Any], key: str) -> int:
    found = 0
    for name in sets.get(key) or []:
        number = CAPABILITIES.get(str(name))
        if number is not None:
            found |= 1 << number
    return found


def _limits(spec: dict[str, Any]) -> Limits:
    values: dict[int, tuple[int, int]] = {}
    for entry in spec.get("rlimits") or []:
        if not isinstance(entry, dict) or entry.get("type") not in RLIMITS:
            raise bad(f"{entry!r} is no limit of a process")
        soft, hard = entry.get("soft"), entry.get("hard")
        if type(soft) is not int or type(hard) is not int or not 0 <= soft <= hard:
            raise bad(f"{entry['type']} needs a soft and a hard value, the soft one not above the hard one")
        values[RLIMITS[entry["type"]]] = (soft, hard)
    return Limits(values)

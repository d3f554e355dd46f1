"""Make a container: what ``create`` and ``run`` have in common."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from casemate.errors import CasemateError, CommandNotExecutable, CommandNotFound, HostError, UsageError
from casemate.keeper import nursery
from casemate.pod import hooks
from casemate.pod.client import PodClient, launch
from casemate.pod.model import Record, guest_name
from casemate.runtime_cli import console, descriptors
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import BOOL, NUMBER, TEXT, Option, Options
from casemate.standin import launch as standin

BUNDLE = Option("bundle, b", TEXT, "path to the root of the bundle directory, defaults to the current directory", ".")
PID_FILE = Option("pid-file", TEXT, "specify the file to write the process id to")
CONSOLE_SOCKET = Option(
    "console-socket", TEXT, "path to an AF_UNIX socket which will receive the master end of the pseudoterminal"
)
PRESERVE_FDS = Option("preserve-fds", NUMBER, "pass N additional file descriptors: pipes, connections, /dev/null")
OPTIONS = (
    BUNDLE, CONSOLE_SOCKET, PID_FILE, PRESERVE_FDS,
    Option("no-pivot", BOOL, "do not use pivot_root; needed where the rootfs is on top of a ramdisk"),
    Option("no-new-keyring", BOOL, "accepted and of no effect: the container's kernel has keyrings of its own"),
)  # fmt: skip


class Made:
    """A container that waits for its start.

    ``pid`` is its stand-in, a child of this process; ``console`` its terminal, of which the slave end is closed.
    """

    def __init__(self, id: str, pid: int, client: PodClient, spec: dict[str, Any], terminal: console.Console | None):
        self.id = id
        self.pid = pid
        self.client = client
        self.spec = spec
        self.console = terminal

    def state(self, status: str) -> dict[str, Any]:
        """The state object that hooks get."""
        return hooks.state(self.spec, self.id, status, self.pid, os.getcwd())


def make(context: Context, id: str, options: Options, *, detach: bool) -> Made:
    """Make a container from its bundle. The working directory is the bundle afterwards, as with runc.

    Arguments:
        options: at least :data:`OPTIONS`.
        detach: this process will not wait for the container's end.

    Raises:
        CasemateError: it cannot be made; nothing is left of it then.
    """
    from casemate.oci import bundle

    try:
        os.chdir(options["bundle"] or ".")
    except OSError as error:
        raise UsageError(f"chdir {options['bundle']}: {(error.strerror or '').lower()}") from None
    spec = bundle.load(".")
    process = spec["process"]
    kept = descriptors.take(options["preserve-fds"], process)
    terminal = bool(process.get("terminal"))
    console.check(terminal=terminal, console_socket=options["console-socket"], detach=detach)
    context.log.debug(f"bundle {os.getcwd()} read")
    size = console.asked_size(process)
    if terminal and not detach:
        size = console.size_of(0, 1, 2) or size
    maker = _Maker(context, id, spec, options, size, kept)
    try:
        with _interruptible():
            return maker.make()
    finally:
        maker.close()


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; ``signum`` tells which."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within it, signals that would end us raise :class:`Interrupted`, so that what was begun is undone."""

    def interrupt(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup(1) means it
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Maker:
    """The steps of making one container, and what has to be let go after them."""

    def __init__(
        self, context: Context, id: str, spec: dict[str, Any], options: Options, size: tuple[int, int] | None,
        kept: list[str],
    ) -> None:
        self._kept = kept
        self._context = context
        self._id = id
        self._spec = spec
        self._options = options
        self._size = size
        self._fds: list[int] = []
        self._connection: Any = None
        self._standin: standin.StandIn | None = None
        self._console: console.Console | None = None
        self._reached = ""

    def close(self) -> None:
        """Let go of what the keeper has by now."""
        if self._standin is not None:
            self._standin.close()
        for descriptor in self._fds:
            os.close(descriptor)
        if self._console is not None:
            self._console.close_slave()
        descriptors.close(self._kept)

    def make(self) -> Made:
        from casemate.pod import join, plan

        store, spec = self._context.store, self._spec
        joined = join.choose(spec, store)
        if joined is None:
            nursery.hurry()
        else:
            nursery.release()
        found = join.peers(store, joined)

        def peers(kind: str, identity: tuple[int, int]) -> str | None:
            peer = found(kind, identity)
            return None if peer is None else guest_name(peer)

        planned = plan.plan(spec, guest_name(self._id), peers)
        for line in planned.warnings:
            self._context.log.warning(line)
        disks = self._open_disks(planned.disks)
        record = self._record(joined)
        if joined is None:
            pod = store.create_pod()
            record = replace(record, pod=pod.id)
        try:
            record = store.create_record(record, spec)
        except BaseException:
            if joined is None:
                pod.discard()
            raise
        try:
            if joined is None:
                self._connection = launch(store, pod)
                self._context.log.debug("keeper started")
            record = self._stand(store, record, planned)
            self._ask(store, record, planned, disks)
            if self._options["pid-file"]:
                write_pid(self._options["pid-file"], record.pid)
        except BaseException as error:
            self._undo(store, record)
            if isinstance(error, CommandNotFound | CommandNotExecutable):
                raise type(error)(command_error(spec["process"], error)) from None
            raise
        return Made(self._id, record.pid, PodClient(store, record.pod), spec, self._console)

    def _record(self, joined: str | None) -> Record:
        spec = self._spec
        return Record(
            id=self._id, pod=joined or "", bundle=os.getcwd(), annotations=spec.get("annotations") or {},
            oci_version=spec["ociVersion"], terminal=bool(spec["process"].get("terminal")), owner=os.geteuid(),
            rootfs=spec["root"]["path"],
        )  # fmt: skip

    def _open_disks(self, disks: tuple[Any, ...]) -> list[tuple[str, bool]]:
        from casemate.pod.devices import serial

        opened = []
        for disk in disks:
            self._fds.append(open_disk(disk.major, disk.minor, disk.read_only))
            opened.append((serial(disk.major, disk.minor), disk.read_only))
        return opened

    def _stand(self, store: Any, record: Record, planned: Any) -> Record:
        """Make the stand-in with its control group, and run the hooks on the way."""
        from casemate.pod import cgroup

        spec = self._spec
        if record.terminal:
            self._console = console.Console(self._size)
        blueprint = self._blueprint(store, record, planned)
        with standin.spawn(blueprint) as starting:
            self._context.log.debug(f"stand-in {starting.pid} has its namespaces")
            record = replace(record, pid=starting.pid, pid_start=starting.pid_start)
            netns = os.stat(f"/proc/{starting.pid}/ns/net")
            bounds = spec["linux"].get("resources") or {}
            overhead = None if self._connection is None else cgroup.overhead_mib(bounds) + store.config.overhead
            group = cgroup.make(
                spec["linux"].get("cgroupsPath"), self._id, systemd=self._context.systemd,
                resources=bounds, overhead_mib=overhead, pid=starting.pid,
            )  # fmt: skip
            record = replace(record, netns=(netns.st_dev, netns.st_ino), cgroups=group.paths, unit=group.unit)
            store.write(record)
            self._reached = "hooks"
            state = hooks.state(spec, self._id, "creating", starting.pid, record.bundle)
            for point in ("prestart", "createRuntime"):
                hooks.run(spec, point, state)
            self._standin = starting.finish()
        self._context.log.debug("stand-in stands")
        if self._console is not None and self._options["console-socket"]:
            self._console.send(self._options["console-socket"])
        return record

    def _blueprint(self, store: Any, record: Record, planned: Any) -> standin.Blueprint:
        spec, linux, process = self._spec, self._spec["linux"], self._spec["process"]
        namespaces = {
            entry["type"]: entry.get("path") or None
            for entry in linux.get("namespaces", ())
            if entry["type"] in standin.NAMESPACES
        }
        user = process.get("user") or {}
        state = hooks.state(spec, self._id, "creating", 0, record.bundle)
        return standin.Blueprint(
            spec["root"]["path"], str(store.path(self._id)), namespaces=namespaces, volumes=_volumes(spec, planned),
            words=tuple(process["args"]), uid=host_id(linux.get("uidMappings"), user.get("uid", 0)),
            gid=host_id(linux.get("gidMappings"), user.get("gid", 0)), hostname=spec.get("hostname", ""),
            domainname=spec.get("domainname", ""), terminal=None if self._console is None else self._console.slave,
            oom_score_adj=process.get("oomScoreAdj"), read_only=bool(spec["root"].get("readonly")),
            private=linux.get("rootfsPropagation", "").endswith(("private", "unbindable")),
            pivot=not self._options["no-pivot"],
            hooks=(spec, state) if hooks.wanted(spec, "createContainer") else None,
            hooked=hooks.wanted(spec, "prestart", "createRuntime", "createContainer"),
        )  # fmt: skip

    def _ask(self, store: Any, record: Record, planned: Any, disks: list[tuple[str, bool]]) -> None:
        """Have the keeper make the container in the guest."""
        made = self._standin
        if made is None or made.root is None or made.netns is None:
            raise HostError("the container's process on the host is not there")
        fds = {"standin": made.socket.fileno(), "root": made.root, "netns": made.netns}
        if made.volumes is not None:
            fds["volumes"] = made.volumes
        fds |= stdio(self._console)
        fds |= {f"disk{number}": descriptor for number, descriptor in enumerate(self._fds)}
        fds |= descriptors.named(self._kept)
        connection, self._connection = self._connection, None
        PodClient(store, record.pod).create(
            self._id, spec=planned.spec, fds=fds, files=planned.files, hostname=planned.hostname, memory=planned.memory,
            cpus=planned.cpus, disks=disks, size=self._size, kept=self._kept, connection=connection,
            wall=self._context.wall,
        )  # fmt: skip
        self._context.log.debug("the guest has the container")

    def _undo(self, store: Any, record: Record) -> None:
        """Remove whatever there is by now; poststop hooks run where others have before (runtime.md "Lifecycle")."""
        if self._connection is not None:
            self._connection.close()  # a keeper that was never asked for a container ends
        if self._standin is not None:
            self._standin.close()
        if self._console is not None:
            self._console.close()
        ours = True
        try:
            ours = store.remove(self._id, force=True)
        except CasemateError as error:
            self._context.log.warning(f"cannot undo all of it: {error}")
        if self._reached and ours:
            state = hooks.state(self._spec, self._id, "stopped", 0, record.bundle)
            for problem in hooks.run_all(self._spec, "poststop", state):
                self._context.log.warning(problem)


def stdio(terminal: console.Console | None) -> dict[str, int]:
    """The descriptors for a process by the names that the keeper knows."""
    if terminal is not None:
        return {"stdin": terminal.slave, "stdout": terminal.slave}
    found = {}
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            continue
        found[name] = number
    return found


def _volumes(spec: dict[str, Any], planned: Any) -> tuple[standin.Volume, ...]:
    from casemate.oci.bundle import is_bind
    from casemate.pod.mounts import GUEST_VOLUMES

    # The guest has some things of its own, such as control groups: it must not see the host's then.
    shown = {mount["source"] for mount in planned.spec.get("mounts", ()) if mount.get("type") == "bind"}
    place = os.path.join(GUEST_VOLUMES, os.path.basename(planned.spec["root"]["path"]))
    numbers = iter(range(len(planned.volumes)))
    made = []
    for mount in spec.get("mounts", ()):
        if is_bind(mount):
            number = next(numbers)
            volume = planned.volumes[number]
            made.append(
                standin.Volume(
                    volume.destination, volume.source, recursive=volume.recursive, read_only=volume.read_only,
                    follows=volume.follows, passed=f"{place}/{number}" in shown, deep=volume.deep,
                )
            )  # fmt: skip
        else:
            made.append(standin.Volume(mount["destination"], None, kind=mount.get("type") or "tmpfs"))
    return tuple(made)


def host_id(mappings: list[dict[str, int]] | None, number: int) -> int:
    """The id on the host of one in the container (config-linux.md, "User namespace mappings")."""
    for mapping in mappings or ():
        offset = number - mapping["containerID"]
        if 0 <= offset < mapping["size"]:
            return mapping["hostID"] + offset
    return number if not mappings else 65534


def open_disk(major: int, minor: int, read_only: bool) -> int:
    """Open a block device of the host by its number.

    Raises:
        HostError: there is none, or it is in use by something that shares it with nobody.
    """
    try:
        with open(f"/sys/dev/block/{major}:{minor}/uevent") as file:
            name = next((line[8:].strip() for line in file if line.startswith("DEVNAME=")), "")
        descriptor = os.open(f"/dev/{name}", (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open block device {major}:{minor}: {error.strerror}") from None
    if os.fstat(descriptor).st_rdev != os.makedev(major, minor):
        os.close(descriptor)
        raise HostError(f"/dev/{name} is not block device {major}:{minor}")
    return descriptor


def write_pid(path: str, pid: int) -> None:
    """Write a pid file, whole as soon as it has its name.

    Raises:
        HostError: it cannot be written.
    """
    directory, name = os.path.split(path)
    # The directory may be one that others write to as well: what they have put there under this name is not written to.
    temporary = os.path.join(directory, f".{name[:200]}.{os.urandom(4).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(descriptor, "w") as file:
                file.write(str(pid))
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise HostError(f"open {path}: {(error.strerror or '').lower()}") from None


def command_error(process: dict[str, Any], error: CasemateError) -> str:
    """Why a command did not start, in runc's words: engines tell exit statuses 126 and 127 from those."""
    name = process["args"][0]
    if isinstance(error, CommandNotFound):
        why = f"stat {name}: no such file or directory" if "/" in name else "executable file not found in $PATH"
    else:
        why = "permission denied"
    return f'unable to start container process: exec: "{name}": {why}'

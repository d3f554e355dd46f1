"""``exec``: run another process in a container."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from casemate.errors import (
    CasemateError,
    CommandNotExecutable,
    CommandNotFound,
    ContainerError,
    NotRunning,
    Unsupported,
    UsageError,
)  # fmt: skip
from casemate.runtime_cli import console, descriptors, making
from casemate.runtime_cli.main import Context, words_for
from casemate.runtime_cli.options import BOOL, LIST, TEXT, Option, Options

USAGE = "[options] <container-id> <command> [command options]  |  --process process.json <container-id>"
OPTIONS = (
    making.CONSOLE_SOCKET,
    Option("cwd", TEXT, "current working directory in the container"),
    Option("env, e", LIST, "set environment variables"),
    Option("tty, t", BOOL, "allocate a pseudo-TTY"),
    Option("user, u", TEXT, "UID (format: <uid>[:<gid>])"),
    Option("additional-gids, g", LIST, "additional gids"),
    Option("process, p", TEXT, "path to the process.json"),
    Option("detach, d", BOOL, "detach from the container's process"),
    making.PID_FILE,
    Option("process-label", TEXT, "set the SELinux label of the process"),
    Option("apparmor", TEXT, "set the apparmor profile for the process"),
    Option("no-new-privs", BOOL, "set the no new privileges value for the process"),
    Option("cap, c", LIST, "add a capability to the bounding set for the process"),
    making.PRESERVE_FDS,
    Option("cgroup", LIST, "not supported: the guest's control groups are the agent's"),
    Option("ignore-paused", BOOL, "allow exec in a paused container"),
)
ARGUMENTS = (1, None)
ANYWHERE = False
FAILURE = 255
"""runc's exit status when there is no process whose it could be."""
CAPABILITY_SETS = ("bounding", "inheritable", "effective", "permitted", "ambient")
MAX_ID = (1 << 32) - 2


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Run it.

    Returns:
        the exit status of the process; 0 when detached.
    """
    try:
        return _exec(context, options, arguments)
    except CasemateError as error:
        raise CasemateError(f"exec failed: {words_for(error)}") from None


def _exec(context: Context, options: Options, arguments: list[str]) -> int:
    from casemate.pod.client import PodClient
    from casemate.pod.plan import guest_process

    record = context.store.get(arguments[0])
    if record.status in ("stopped", "creating"):
        raise NotRunning("cannot exec in a stopped container")
    if record.status == "paused" and not options["ignore-paused"]:
        raise ContainerError("cannot exec in a paused container (use --ignore-paused to override)")
    if options["cgroup"]:
        raise Unsupported("--cgroup cannot be given", "the process is in the container's own control group")
    spec = context.store.spec(record.id)
    process = _process(options, arguments[1:], spec)
    kept = descriptors.take(options["preserve-fds"], process)
    terminal = bool(process.get("terminal"))
    detach = bool(options["detach"])
    console.check(terminal=terminal, console_socket=options["console-socket"], detach=detach)
    size = console.asked_size(process)
    if terminal and not detach:
        size = console.size_of(0, 1, 2) or size
    guest = guest_process(process)
    client = PodClient(context.store, record.pod)
    made = console.Console(size) if terminal else None
    # Not only our number, which comes again while others may still wait for the one that had it before.
    name = f"{os.getpid()}-{os.urandom(6).hex()}"
    try:
        pid = _begin(client, record, spec, process, guest, name, made, options["console-socket"], size, kept)
    except (CommandNotFound, CommandNotExecutable) as error:
        raise CasemateError(making.command_error(process, error)) from None
    finally:
        if made is not None:
            made.close_slave()
        descriptors.close(kept)
    try:
        if options["pid-file"]:
            making.write_pid(options["pid-file"], pid)
    except CasemateError:
        with contextlib.suppress(CasemateError):
            client.kill(record.id, 9, exec_id=name)
        raise
    if detach:
        return 0
    from casemate.runtime_cli.foreground import Foreground

    def forward(number: int) -> None:
        with contextlib.suppress(CasemateError):  # it ends just now
            client.kill(record.id, number, exec_id=name)

    with Foreground(made) as foreground:
        return foreground.wait(pid, forward)


def _begin(
    client: Any, record: Any, spec: dict[str, Any], process: dict[str, Any], guest: dict[str, Any], name: str,
    made: console.Console | None, console_socket: str, size: tuple[int, int] | None, kept: list[str],
) -> int:
    """Make the stand-in and have the keeper start the process; the stand-in's pid."""
    from casemate.standin import launch

    linux, user = spec["linux"], process.get("user") or {}
    standin = launch.join(
        record.pid, record.pid_start, words=tuple(process["args"]),
        uid=making.host_id(linux.get("uidMappings"), user.get("uid", 0)),
        gid=making.host_id(linux.get("gidMappings"), user.get("gid", 0)),
        terminal=None if made is None else made.slave, oom_score_adj=process.get("oomScoreAdj"),
    )  # fmt: skip
    try:
        if made is not None and console_socket:
            made.send(console_socket)
        fds = {"standin": standin.socket.fileno(), **making.stdio(made), **descriptors.named(kept)}
        client.exec(record.id, name, guest, pid=standin.pid, fds=fds, size=size, kept=kept)
    except BaseException:
        standin.kill()
        raise
    standin.close()
    return standin.pid


def _process(options: Options, words: list[str], spec: dict[str, Any]) -> dict[str, Any]:
    """The process object: from the file that is named, or the container's own with what the command line changes."""
    from casemate.oci import bundle

    if options["process"]:
        return bundle.check_process(bundle.read_json(options["process"], "process"))
    process = {**spec["process"], "args": words, "terminal": options["tty"]}
    process.pop("consoleSize", None)
    if not words:
        raise UsageError("process args cannot be empty")
    for option, key in (("cwd", "cwd"), ("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")):
        if options[option]:
            process[key] = options[option]
    if options.given("no-new-privs"):
        process["noNewPrivileges"] = options["no-new-privs"]
    if options["cap"]:
        sets = process.get("capabilities") or {}
        process["capabilities"] = {name: [*sets.get(name, ()), *options["cap"]] for name in CAPABILITY_SETS}
    if options["env"]:
        process["env"] = [*process.get("env", ()), *options["env"]]
    process["user"] = _user(options, process.get("user") or {})
    return bundle.check_process(process)


def _user(options: Options, user: dict[str, Any]) -> dict[str, Any]:
    changed = dict(user)
    if options["user"]:
        uid, colon, gid = options["user"].partition(":")
        changed["uid"] = _id(uid, "UID")
        if colon:
            changed["gid"] = _id(gid, "GID")
    if options["additional-gids"]:
        more = [_id(text, "additional gid") for text in options["additional-gids"]]
        changed["additionalGids"] = [*user.get("additionalGids", ()), *more]
    return changed


def _id(text: str, what: str) -> int:
    if not text.isdigit() or int(text) > MAX_ID:
        raise UsageError(f"parsing {text} as int for {what} failed: a number from 0 to {MAX_ID} is wanted")
    return int(text)

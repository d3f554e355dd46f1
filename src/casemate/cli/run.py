"""``casemate run``: make a container from an image and run a command in it."""

from __future__ import annotations

import contextlib
import os
import time

from casemate import ids
from casemate.cli import attach, common, output, values
from casemate.config import WALLS
from casemate.errors import CasemateError, ContainerError, HostError, ImageNotFound, NameInUse, UsageError
from casemate.keeper import nursery
from casemate.oci import spec
from casemate.pool import client as pool

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.keeper.store import Container, Store
    from casemate.oci.store import Image
    from casemate.pool.client import Taken

SUMMARY = "Run a command in a new container behind its own kernel"
USAGE = "[OPTIONS] IMAGE [COMMAND [ARG...]]"
DEFAULT_STOP_SIGNAL = 15
STARTING = {"vm": "starting the virtual machine", "sentry": "starting the sentry"}
NAME_ATTEMPTS = 32


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-i", "--interactive", help="keep standard input open")
    parser.flag("-t", "--tty", help="give the command a terminal")
    parser.flag("-d", "--detach", help="leave it running, print its id")
    parser.flag("--rm", help="remove the container when it ends")
    parser.value("--name", metavar="NAME", help="its name; one is made up otherwise")
    parser.value("--pull", metavar="WHEN", default="missing", help="fetch it: always, missing (default) or never")
    parser.value("--entrypoint", metavar="PROGRAM", help="run this instead of the image's entrypoint; '' for none")
    parser.values("-e", "--env", metavar="NAME[=VALUE]", help="set a variable; without a value, take ours")
    parser.values("--env-file", metavar="FILE", help="set the variables in a file")
    parser.value("-w", "--workdir", metavar="DIR", default="", help="working directory in the container")
    parser.value("-u", "--user", metavar="USER[:GROUP]", help="who runs it: names or numbers")
    parser.value("-h", "--hostname", metavar="NAME", help="host name; the short id otherwise")
    parser.values("-v", "--volume", metavar="SRC:DST[:ro]", help="a directory or file of this machine in the container")
    parser.values("--tmpfs", metavar="DST[:OPTIONS]", help="a file system in memory")
    parser.value("--shm-size", metavar="SIZE", help="size of /dev/shm (64m)")
    parser.flag("--read-only", help="make the root file system read-only")
    parser.value("-m", "--memory", metavar="SIZE", help="memory of the machine, such as 256m or 1g")
    parser.value("--cpus", metavar="NUMBER", help="processors, such as 0.5 or 2")
    parser.value("--pids-limit", metavar="NUMBER", help="how many processes and threads there may be")
    parser.values("--ulimit", metavar="NAME=SOFT[:HARD]", help="a resource limit of every process")
    parser.values("--sysctl", metavar="NAME=VALUE", help="a kernel setting of the container")
    parser.value("--wall", metavar="WALL", default="", help="vm (a virtual machine) or sentry (a kernel in user space)")
    parser.value("--network", "--net", metavar="KIND", default="", help="nat (default), none, or with the sentry host")
    parser.values("-p", "--publish", metavar="[IP:][HOST:]CTR[/udp]", help="a port of this machine for one inside")
    parser.values("--dns", metavar="ADDRESS", help="a name server")
    parser.values("--cap-add", metavar="CAP", help="a capability more; ALL for every one")
    parser.values("--cap-drop", metavar="CAP", help="a capability less; ALL for every one")
    parser.values("--security-opt", metavar="OPTION", help="seccomp=unconfined, seccomp=FILE or no-new-privileges")
    parser.flag("--privileged", help="not supported: see --cap-add")
    parser.values("-l", "--label", metavar="NAME=VALUE", help="a label")
    parser.value("--stop-signal", metavar="SIGNAL", help="what 'casemate stop' sends (TERM)")
    parser.command("image", "arguments")


def run(config: Config, args: Any) -> int:
    """Make the container, start it, and serve it unless detached.

    Returns:
        The command's exit status; 0 when detached.
    """
    nursery.hurry()
    _check_terminal(args)
    wishes = wishes_of(args)
    settings = _settings(config, args)
    if args.pull not in ("always", "missing", "never"):
        raise UsageError(f"unknown value {args.pull!r} for --pull", "use always, missing or never")
    if settings["network"] == "nat" and not settings["dns"]:
        _look_for_name_servers()
    store = common.containers(config)
    with attach.interruptible():
        image = find_image(config, args.image, args.pull)
        settings["stop_signal"] = settings["stop_signal"] or _image_stop_signal(image)
        settings["user"] = settings["user"] or image.config.user
        settings["labels"] = {**image.config.labels, **settings["labels"]}
        from casemate.keeper.client import hand_over, launch

        size = attach.terminal_size() if args.tty else None
        stdio = (None, None, None) if args.detach else attach.stdio(args.interactive)
        with contextlib.ExitStack() as blocked:
            # A signal half-way through would leave a container that nobody knows of, so it waits for the try below.
            blocked.enter_context(attach.blocked())
            with common.images(config).hold():  # nobody removes the image before the container is on record
                image = common.images(config).resolve(image.id)
                container, taken, trees = _create(store, image, args, wishes, settings)
            held = blocked.pop_all()
        try:
            held.close()
            with (
                attach.interruptible(lambda: not args.detach and _runs(container)) as kept,
                output.progress(STARTING[settings["wall"]]),
            ):
                if taken is None:
                    session = launch(config, container, stdio, size=size)
                else:
                    session = hand_over(config, container, taken.connection, stdio, size=size, volumes=trees)
        except BaseException:
            if taken is not None:
                taken.close()
            _discard(container)
            raise
        finally:
            for fd in trees:
                os.close(fd)
    if args.detach:
        session.close()
        print(container.id)
        return 0
    status = attach.wait(session, tty=args.tty, interactive=args.interactive, kept=kept)
    if session.error:
        output.error(ContainerError(session.error))
    return status


def _check_terminal(args: Any) -> None:
    if args.privileged:
        raise UsageError("--privileged is not supported", "the kernel is the container's own: try --cap-add ALL")
    if args.detach:
        return
    if args.interactive and args.tty and not os.isatty(0):
        raise UsageError("-t needs a terminal, and standard input is none", "leave out -t")


def wishes_of(args: Any) -> spec.Wishes:
    """What the options say of the container itself.

    Raises:
        UsageError: a value is bad.
    """
    environ = os.environ
    env = [entry for path in args.env_file for entry in values.env_file(path, environ)]
    env += values.environment(args.env, environ)
    unconfined, no_new_privileges, profile = _security(args.security_opt)
    cap_add = tuple(name for value in args.cap_add for name in value.split(","))
    cap_drop = tuple(name for value in args.cap_drop for name in value.split(","))
    allowed = spec.capabilities(cap_add, cap_drop)
    seccomp = None
    if profile is not None:
        from casemate.config import machine
        from casemate.oci import seccomp_file

        seccomp = seccomp_file.read(profile, allowed, machine())
    if args.workdir and not args.workdir.startswith("/"):
        raise UsageError(f"the working directory {args.workdir!r} is relative", "begin it with a slash")
    return spec.Wishes(
        command=values.words(args.arguments, "the command"),
        entrypoint=None if args.entrypoint is None else values.text(args.entrypoint, "the entrypoint"),
        env=tuple(env),
        workdir=values.text(args.workdir, "the working directory"),
        hostname=values.hostname(args.hostname) if args.hostname else "",
        tty=args.tty,
        read_only=args.read_only,
        cap_add=cap_add,
        cap_drop=cap_drop,
        volumes=tuple(values.volume(value) for value in args.volume),
        tmpfs=tuple(values.tmpfs(value) for value in args.tmpfs),
        cpus=values.cpus(args.cpus) if args.cpus is not None else None,
        pids=values.pids(args.pids_limit) if args.pids_limit is not None else None,
        shm_size=values.size(args.shm_size, "--shm-size") if args.shm_size is not None else spec.SHM_SIZE,
        ulimits=tuple({limit.name: limit for limit in map(values.ulimit, args.ulimit)}.values()),
        sysctls=tuple(values.sysctl(value) for value in args.sysctl),
        no_new_privileges=no_new_privileges,
        seccomp=seccomp,
        unconfined=unconfined,
    )


def _security(options: list[str]) -> tuple[bool, bool, str | None]:
    unconfined, no_new_privileges, profile = False, False, None
    for option in options:
        name, _, value = option.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges" and value in ("", "true", "false"):
            no_new_privileges = value != "false"
        elif name == "seccomp" and value:
            unconfined = value == "unconfined"
            profile = None if unconfined else value
        else:
            hint = "use seccomp=unconfined, seccomp=FILE or no-new-privileges"
            raise UsageError(f"unknown option {option!r} for --security-opt", hint)
    return unconfined, no_new_privileges, profile


def _settings(config: Config, args: Any) -> dict[str, Any]:
    wall, network = _wall(config, args)
    if network != "nat" and args.publish:
        raise UsageError("-p needs a network", f"leave out --network {network}")
    return {
        "wall": wall,
        "name": ids.check_name(args.name) if args.name is not None else "",
        "user": values.user(args.user) if args.user else "",
        "memory_mib": values.memory(args.memory, config.memory_minimum) if args.memory is not None else None,
        "network": network,
        "ports": values.ports(args.publish),
        "dns": tuple(values.address(value, "--dns") for value in args.dns),
        "labels": values.labels(args.label),
        "stop_signal": values.signal(args.stop_signal) if args.stop_signal else 0,
    }


def _wall(config: Config, args: Any) -> tuple[str, str]:
    """Which wall, and which of its networks."""
    wall = args.wall or config.wall
    if wall not in WALLS:
        raise UsageError(f"no wall {wall!r}", f"choose {' or '.join(WALLS)}")
    if wall == "sentry" and args.network == "host":
        return wall, "host"
    return wall, values.network(args.network or "nat")


def _look_for_name_servers() -> None:
    """Say it now when no name will resolve: inside, it would look like anything."""
    from casemate.host.dns import host_dns

    if not host_dns().nameservers:
        output.warn("this machine's name servers cannot be reached from a container; name one with --dns")


def _image_stop_signal(image: Image) -> int:
    if not image.config.stop_signal:
        return DEFAULT_STOP_SIGNAL
    try:
        return values.signal(image.config.stop_signal)
    except UsageError:
        output.warn(f"the image's stop signal {image.config.stop_signal!r} is unknown; TERM is used")
        return DEFAULT_STOP_SIGNAL


def find_image(config: Config, reference: str, when: str) -> Image:
    """The image of a reference, fetched if need be.

    Arguments:
        when: ``always``, ``missing`` or ``never`` fetch it.
    """
    images = common.images(config)
    if when != "always":
        try:
            return images.resolve(reference)
        except ImageNotFound as error:
            if when == "never":
                raise ImageNotFound(error.message, "leave out --pull never, or fetch it with 'casemate pull'") from None
    with output.Steps(plain=False) as steps:  # what a script reads of run's standard error is the command's
        return images.pull(reference, steps)


def _create(
    store: Store, image: Image, args: Any, wishes: spec.Wishes, settings: dict[str, Any]
) -> tuple[Container, Taken | None, list[int]]:
    """Make the container; with it the member of the pool that is to be its keeper, if there is one, and a detached
    tree for each of its volumes then.
    """
    for volume in wishes.volumes:
        _make_source(volume.source)
    if settings["wall"] == "vm" and pool.socket_path(store.config).exists():
        # A member that is given up is lost: what stands in the way is better found before one is taken.
        if settings["name"]:
            store.check_name(settings["name"])
        _build(image, wishes, ids.new_id())
        trees = pool.open_trees([volume.source for volume in wishes.volumes])
        taken = None
        try:
            taken = pool.take(store.config, settings["memory_mib"], wishes.cpus, len(trees))
            if taken is not None:
                return _make(store, image, args, wishes, settings, taken), taken, trees
        except FileNotFoundError:  # it has died meanwhile, and somebody has cleaned up after it
            pass
        except BaseException:
            pool.let_go(taken, trees)
            raise
        pool.let_go(taken, trees)
    return _make(store, image, args, wishes, settings, None), None, []


def _build(image: Image, wishes: spec.Wishes, identifier: str) -> tuple[str, dict[str, Any]]:
    """The host name and the runtime specification of a container."""
    from dataclasses import replace

    from casemate.config import machine

    wishes = replace(wishes, hostname=wishes.hostname or ids.short(identifier))
    return wishes.hostname, spec.build(image.config, wishes, machine())


def _make(
    store: Store, image: Image, args: Any, wishes: spec.Wishes, settings: dict[str, Any], taken: Taken | None
) -> Container:
    from casemate.cli.names import make_up
    from casemate.keeper.store import ContainerSpec

    identifier = ids.new_id() if taken is None else taken.id
    hostname, oci = _build(image, wishes, identifier)
    settings = dict(settings)
    chosen = settings.pop("name")
    for attempt in range(NAME_ATTEMPTS):
        name = chosen or make_up(identifier, attempt)
        container_spec = ContainerSpec(
            id=identifier, name=name, image=args.image, image_id=image.id,
            layers=tuple(str(layer) for layer in image.layers), oci=oci, hostname=hostname, tty=args.tty,
            open_stdin=args.interactive, detach=args.detach, remove=args.rm, cpus=wishes.cpus, pids=wishes.pids,
            created=time.time(), command=tuple(oci["process"]["args"]), **settings,
        )  # fmt: skip
        try:
            return store.create(container_spec, None if taken is None else taken.path)
        except NameInUse:
            if chosen:
                raise
    raise ContainerError("no name could be made up", "give one with --name")


def _make_source(path: str) -> None:
    """A volume's source that is missing becomes an empty directory, as Docker has it."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        pass  # a file, a socket or a device: it can be mounted too
    except OSError as error:
        raise HostError(f"cannot make the directory {path} for -v: {error.strerror}") from None


def _runs(container: Container) -> bool:
    """Whether the command runs, although the keeper may not have written that down yet: output is logged first."""
    with contextlib.suppress(CasemateError, OSError):
        return container.stored_state().status == "running" or (container.path / "log").stat().st_size > 0
    return False


def _discard(container: Container) -> None:
    """Leave nothing of a container that did not start; why it did not is what the person has to hear."""
    if container.lock_fd is not None:
        os.close(container.lock_fd)
        container.lock_fd = None
    with contextlib.suppress(CasemateError, OSError):
        container.remove(force=True)

"""``casemate inspect``: everything about containers or images, as JSON with Docker's names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from casemate.cli import common, output
from casemate.errors import CasemateError, ImageNotFound, NoSuchContainer, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.host.ports import PortMap
    from casemate.keeper.store import Container
    from casemate.oci.store import Image

USAGE = "[OPTIONS] NAME..."


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("-f", "--format", metavar="TEMPLATE", help="such as {{.State.OOMKilled}} or {{json .Config}}")
    parser.value("--type", metavar="KIND", help="container or image; whichever there is otherwise")
    parser.add_argument("names", metavar="NAME", nargs="+")


def run(config: Config, args: Any) -> int:
    """Print a JSON array, or the template's text for each."""
    if args.type not in (None, "container", "image"):
        raise UsageError(f"unknown value {args.type!r} for --type", "use container or image")
    found: list[dict[str, Any]] = []
    status = 0
    for name in args.names:
        try:
            found.append(look_up(config, name, args.type))
        except CasemateError as error:
            output.error(error)
            status = 1
    if args.format is None or args.format == "json":
        print(json.dumps(found, indent=4))
        return status
    from casemate.cli.template import render

    for value in found:
        print(render(args.format, value))
    return status


def look_up(config: Config, name: str, kind: str | None) -> dict[str, Any]:
    """The description of the container or image called ``name``; containers come first.

    Raises:
        NoSuchContainer, ImageNotFound: there is none.
    """
    if kind != "image":
        try:
            return describe(common.containers(config).get(name))
        except NoSuchContainer:
            if kind == "container":
                raise
    try:
        return describe_image(common.images(config).resolve(name))
    except (ImageNotFound, UsageError) as error:
        if kind == "image":
            raise
        hint = "'casemate ps -a' and 'casemate images' list them"
        raise NoSuchContainer(f"no container or image {name}", hint) from error


def describe(container: Container) -> dict[str, Any]:
    """A container in the words of Docker's ``inspect``, and what only casemate has under ``Guest``."""
    spec, state = container.spec, container.state()
    process, linux = spec.oci["process"], spec.oci["linux"]
    mounts = [mount for mount in spec.oci["mounts"] if mount["type"] == "bind"]
    return {
        "Id": spec.id,
        "Name": spec.name,
        "Created": output.timestamp(spec.created),
        "Path": process["args"][0],
        "Args": process["args"][1:],
        "State": {
            "Status": state.status,
            "Running": state.status in ("running", "paused"),
            "Paused": state.status == "paused",
            "OOMKilled": state.oom_killed,
            "Dead": False,
            "Pid": state.pid or 0,
            "ExitCode": state.exit_code if state.exit_code is not None else 0,
            "Error": state.error,
            "StartedAt": output.timestamp(state.started),
            "FinishedAt": output.timestamp(state.finished),
        },
        "Image": spec.image_id,
        "Config": {
            "Hostname": spec.hostname,
            "User": spec.user,
            "Tty": spec.tty,
            "OpenStdin": spec.open_stdin,
            "Env": process["env"],
            "Cmd": list(spec.command),
            "Image": spec.image,
            "WorkingDir": process["cwd"],
            "Labels": spec.labels,
            "StopSignal": _signal_name(spec.stop_signal),
        },
        "HostConfig": {
            "AutoRemove": spec.remove,
            "Binds": [f"{mount['source']}:{mount['destination']}:{_access(mount)}" for mount in mounts],
            "Memory": (spec.memory_mib or 0) << 20,
            "NanoCpus": round((spec.cpus or 0) * 1e9),
            "PidsLimit": spec.pids,
            "NetworkMode": spec.network,
            "Dns": list(spec.dns),
            "PortBindings": _ports(spec.ports),
            "ReadonlyRootfs": spec.oci["root"]["readonly"],
            "CapEffective": process["capabilities"]["effective"],
            "Seccomp": "seccomp" in linux,
            "NoNewPrivileges": process["noNewPrivileges"],
        },
        "Mounts": [
            {
                "Type": "bind", "Source": mount["source"], "Destination": mount["destination"],
                "RW": _access(mount) == "rw",
            }
            for mount in mounts
        ],
        "NetworkSettings": {"IPAddress": state.address or "", "Ports": _ports(state.ports)},
        "GraphDriver": {
            "Name": "overlay",
            "Data": {"LowerDir": ":".join(reversed(spec.layers)), "UpperDir": str(container.path / "upper")},
        },
        "LogPath": str(container.path / "log"),
        "Guest": state.guest,
    }  # fmt: skip


def _ports(ports: tuple[PortMap, ...]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for port in ports:
        entry = {"HostIp": port.host_ip, "HostPort": str(port.host_port)}
        table.setdefault(f"{port.container_port}/{port.protocol}", []).append(entry)
    return table


def _access(mount: dict[str, Any]) -> str:
    return "ro" if "ro" in mount["options"] else "rw"


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def describe_image(image: Image) -> dict[str, Any]:
    """An image in the words of Docker's ``inspect``."""
    config = image.config
    return {
        "Id": image.id,
        "RepoTags": list(image.display_names),
        "RepoDigests": list(image.digests),
        "Created": config.created,
        "Architecture": config.architecture,
        "Os": config.os,
        "Author": config.author,
        "Size": image.size,
        "Config": {
            "User": config.user,
            "Env": list(config.env),
            "Entrypoint": list(config.entrypoint) or None,
            "Cmd": list(config.cmd) or None,
            "WorkingDir": config.working_dir,
            "ExposedPorts": {port: {} for port in config.exposed_ports},
            "Volumes": {volume: {} for volume in config.volumes},
            "Labels": dict(config.labels),
            "StopSignal": config.stop_signal,
        },
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
    }

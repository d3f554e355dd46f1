"""What ``casemate check`` tells about the host: what is there, what is not, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casemate.config import Config
from casemate.errors import CasemateError
from casemate.host import cgroups, commands, dns, firewall, namespaces, network

LEAST_KERNEL = (5, 12)
PROGRAMS = (("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables"))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Arguments:
        name: what, in a word or two.
        ok: whether it is as it should be.
        required: whether sandboxes cannot run without it.
        detail: what was found.
        fix: what to do; empty when ok.
    """

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str = ""


def check(config: Config) -> list[Finding]:
    """Look at the host. Changes nothing that lasts; without root, what needs root is told as not known."""
    return [
        _kernel(), _root(), *_programs(), _tun(), _namespaces(), _overlay(), *_cgroups(),
        _range(config), *_forwarding(config), _dns(), _ksm(config),
    ]


def _kernel() -> Finding:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    ok = numbers >= LEAST_KERNEL
    return Finding("kernel", ok, True, f"Linux {release}", "" if ok else "casemate needs Linux 5.12 or newer")


def _root() -> Finding:
    ok = os.geteuid() == 0
    return Finding("root", ok, True, f"running as user {os.geteuid()}", "" if ok else "run casemate as root")


def _programs() -> Iterator[Finding]:
    for program, package in PROGRAMS:
        path = commands.which(program)
        yield Finding(program, path is not None, True, path or "not found", "" if path else f"apt install {package}")


def _tun() -> Finding:
    path = "/dev/net/tun"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding("tun", False, True, f"no {path}", "modprobe tun")
    except OSError as error:
        return Finding("tun", False, True, f"{path}: {error.strerror}", "run as root; load the module tun")
    return Finding("tun", True, True, path)


def _namespaces() -> Finding:
    try:
        os.close(namespaces.new_netns())
    except CasemateError as error:
        return Finding("network namespaces", False, True, error.message, error.hint)
    return Finding("network namespaces", True, True, "can be made")


def _overlay() -> Finding:
    if "\toverlay\n" in Path("/proc/filesystems").read_text():
        return Finding("overlay", True, True, "in the kernel")
    module = any(Path("/lib/modules", os.uname().release).glob("kernel/fs/overlayfs/overlay.ko*"))
    detail = "a module that is not loaded" if module else "not in the kernel"
    return Finding("overlay", module, True, detail, "" if module else "use a kernel with CONFIG_OVERLAY_FS")


def _cgroups() -> Iterator[Finding]:
    trees = cgroups.hierarchies()
    offered: frozenset[str] = frozenset().union(*(tree.controllers for tree in trees))
    kinds = {tree.unified for tree in trees}
    layout = {frozenset(): "none", frozenset({True}): "version 2", frozenset({False}): "version 1"}.get(
        frozenset(kinds), "version 1 and 2 mixed"
    )
    yield Finding("control groups", bool(trees), False, layout, "" if trees else "mount cgroup2 on /sys/fs/cgroup")
    lost = {
        "memory": "--memory does not bound a sandbox on the host", "cpu": "--cpus has no effect on the host",
        "pids": "processes of a sandbox are not bounded on the host",
    }
    for controller in cgroups.WANTED:
        ok = controller in offered
        fix = "" if ok else f"boot with the {controller} controller on: {lost[controller]}"
        yield Finding(f"cgroup {controller}", ok, False, "offered" if ok else "not offered", fix)


def _range(config: Config) -> Finding:
    route = network.overlapping_route(config)
    if route is None:
        return Finding("network range", True, True, config.network)
    fix = "set network to a free range in the configuration"
    return Finding("network range", False, True, f"{config.network} overlaps the host's route {route}", fix)


def _forwarding(config: Config) -> Iterator[Finding]:
    on = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    yield Finding("ip forwarding", True, False, "on" if on else "off; the first sandbox turns it on")
    if os.geteuid() != 0:
        return
    if firewall.forward_is_dropped():
        ok = commands.which("iptables") is not None
        opened = ok and firewall.forwarding_is_opened(config.network)
        detail = "drops by default; " + ("sandboxes are let through" if opened else "sandboxes need a rule in it")
        yield Finding("iptables FORWARD", ok, False, detail, "" if ok else "apt install iptables, by which it is set")
    if firewall.firewalld_is_active():
        detail = "firewalld is active; it rejects what sandboxes send unless they are in a zone that it forwards"
        yield Finding(
            "firewalld", False, False, detail, f"firewall-cmd --permanent --zone=trusted --add-source={config.network}"
        )


def _dns() -> Finding:
    found = dns.host_dns().nameservers
    if found:
        return Finding("name servers", True, False, ", ".join(found))
    return Finding("name servers", False, False, "none but on the host's loopback", "name some with --dns")


def _ksm(config: Config) -> Finding:
    from casemate.ksm.kept import Home
    from casemate.ksm.status import status

    home = Home(config.run)
    if not home.kernel.is_dir():
        return Finding("same-page merging", True, False, "not in the kernel")
    try:
        found = status(config, home)
    except CasemateError as error:
        return Finding("same-page merging", False, False, error.message, error.hint or "set it anew")
    detail = "on" if found["settings"]["run"] == 1 else "off"
    detail += f", {found['saved_bytes'] >> 20} MiB saved"
    if found["running"]:
        return Finding("same-page merging", True, False, f"{detail}; the throttler is in mode {found['mode']}")
    return Finding("same-page merging", True, False, f"{detail}; no throttler ('casemate install ksm')")

"""Making a template: a guest boots, does what every sandbox would do first, and is saved."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate import jsonfile
from casemate.config import TEMPLATE_MIB, Config
from casemate.errors import CasemateError, TemplateError
from casemate.protocol.wire import LinkError
from casemate.vm import transport
from casemate.vm.guest.bundle import GuestBundle
from casemate.vm.guest.lock import locked
from casemate.vm.hypervisor import base
from casemate.vm.template import WINDOW_MIB, Class, memory, store
from casemate.vm.template.store import Template
from casemate.wall.calls import Calls, line
from casemate.wall.console import Console

PREPARE_SECONDS = 60.0


def machine_spec(
    bundle: GuestBundle, kind: Class, image: base.Image, port: base.Device, console: base.SerialConsole, name: str,
    log: Path | None, *, mergeable: bool = True,
) -> base.VmSpec:
    """The machine of a template: the same when it is saved and when it is made again, but for its connections."""
    return base.VmSpec(
        name=name,
        kernel=bundle.kernel,
        initrd=bundle.initrd,
        cmdline=(*bundle.cmdline(kind.accelerator.value), *store.CMDLINE),
        memory_mib=TEMPLATE_MIB,
        growth_mib=kind.growth_mib,
        vcpus=kind.vcpus,
        shared_memory=False,
        accelerator=kind.accelerator,
        devices=(
            base.Block("casemate-root", bundle.root),
            console,
            port,
            base.Rng(),
            base.Balloon(),
        ),
        log=log,
        hotplug_slots=base.MAX_SLOTS,
        image=image,
        mergeable=mergeable,
    )  # fmt: skip


class _Busy(Exception):
    """Another process makes a template."""


def make(
    config: Config,
    bundle: GuestBundle,
    kind: Class,
    jail: base.Confinement,
    hypervisor: base.Hypervisor,
    progress: Callable[[str], None],
    *,
    wait: bool,
) -> Template | None:
    """Make the template of a class, unless it is there.

    Arguments:
        jail: what the VMM is shut into while it boots.
        progress: told what is being done.
        wait: wait for another process that makes one; else there is none yet.

    Returns:
        the template; None where another process is making one and ``wait`` is false.

    Raises:
        TemplateError: it cannot be made; nothing is left of it.
    """

    def busy() -> None:
        if not wait:
            raise _Busy
        progress("waiting for another process that makes a template")

    try:
        with locked(store.home(config.root), busy, 0o700):
            return _make(config, bundle, kind, jail, hypervisor, progress)
    except _Busy:
        return None
    except TemplateError:
        raise
    except OSError as error:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see: casemate check"
        raise TemplateError(f"no template can be made: {error.strerror}", hint) from None
    except (CasemateError, LinkError) as error:
        raise TemplateError(f"no template can be made: {error}") from None


def _make(
    config: Config, bundle: GuestBundle, kind: Class, jail: base.Confinement, hypervisor: base.Hypervisor,
    progress: Callable[[str], None],
) -> Template:  # fmt: skip
    key = store.key(config, bundle, kind)
    with contextlib.suppress(FileNotFoundError, TemplateError):
        return store.load(store.home(config.root) / key)
    store.sweep(config.root)
    progress("making a template: the guest boots")
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=store.home(config.root)))
    fds: list[int] = []
    try:
        for name, mib in (("memory", TEMPLATE_MIB - WINDOW_MIB), ("window", WINDOW_MIB)):
            fds.append(memory.create(name, mib << 20))
        fds.append(os.open(work / "state", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        hello = _boot_and_save(config, bundle, kind, jail, hypervisor, work, (fds[0], fds[1], fds[2]), progress)
        progress("saving the guest's memory")
        for name, fd in (("memory", fds[0]), ("window", fds[1])):
            target = os.open(work / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fds.append(target)
            memory.copy_without_zeros(fd, target)
        for fd in fds[2:]:
            os.fsync(fd)
        (work / "console.log").unlink(missing_ok=True)
        manifest: dict[str, Any] = {
            "format": store.FORMAT,
            "key": key,
            "bundle": bundle.digest,
            "kernel_release": bundle.kernel_release,
            "accelerator": kind.accelerator.value,
            "growth_mib": kind.growth_mib,
            "vcpus": kind.vcpus,
            "hello": hello,
            "sizes": {name: (work / name).stat().st_size for name in store.PARTS},
            "sha256": {name: store.digest(work / name) for name in store.PARTS},
        }
        jsonfile.write(work / store.MANIFEST, manifest)
        final = store.home(config.root) / key
        if final.exists():
            store.remove(final)
        os.rename(work, final)
        return store.load(final)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        for fd in fds:
            os.close(fd)


def _boot_and_save(
    config: Config, bundle: GuestBundle, kind: Class, jail: base.Confinement, hypervisor: base.Hypervisor, work: Path,
    files: tuple[int, int, int], progress: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Run the guest until it waits for its sandbox, and save it. Returns the agent's HELLO."""
    ours, theirs = socket.socketpair()
    console = Console(ours.detach(), work / "console.log")
    way = transport.Serial()
    image = base.Image(os.dup(files[0]), os.dup(files[1]), WINDOW_MIB)
    spec = machine_spec(
        bundle, kind, image, way.device, base.SerialConsole(theirs.detach()), "casemate-template", None
    )
    vm = hypervisor.create(spec, jail)

    def why(said: str) -> str:
        end = vm.wait(1.0)
        console.join(1.0)
        return f"{end.reason if end else said}; its console says: {console.last_line()}"

    calls = Calls(PREPARE_SECONDS, lambda *end: None, lambda id: None, why)
    try:
        vm.start()
        try:
            link_fd = way.connect(config.boot_timeout, threading.Event())  # nobody else ends this machine
            hello = calls.connect(link_fd, config.boot_timeout, lambda reason: None)
        except LinkError as error:
            raise TemplateError(f"the guest did not come up: {why(str(error))}") from None
        progress("getting the guest ready")
        calls.call("sandbox.prepare", store.prepared())
        vm.save(files[2])
        return {key: line(value, 64) if isinstance(value, str) else value for key, value in hello.items()}
    finally:
        vm.kill()
        vm.wait(10.0)
        calls.close("saved")

"""Templates on disk: by what they were made from, whole from the moment they have their name.

::

    <root>/guest/templates/<key>/   manifest.json, memory, window, state
    <root>/guest/templates/.lock    held by who makes or removes one

Memory and window have holes where a page is zero. Nothing of a template is ever changed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import casemate
from casemate import jsonfile
from casemate.config import TEMPLATE_MIB, Config
from casemate.errors import StateError, TemplateError
from casemate.protocol import wire
from casemate.vm.guest.bundle import GuestBundle
from casemate.vm.hypervisor import base, qemu_args
from casemate.vm.template import WINDOW_MIB, Class
from casemate.wall import launch

FORMAT = 2
PARTS = ("memory", "window", "state")
MANIFEST = "manifest.json"
KEEP = 8
"""How many there are at most: one for each guest, class of memory and number of processors in use."""
BOUNCE_SLOTS = 4096
"""Bounce buffers of 2 KiB each."""
CMDLINE = (
    f"swiotlb={BOUNCE_SLOTS},force", "numa_balancing=disable", "workqueue.disable_numa=1", "MALLOC_ARENA_MAX=1",
    "casemate.template",
)  # fmt: skip
"""Of the kernel, and (in capitals: process 1 has it in its environment) of the agent's C library. The workers that the
kernel has for each memory node would be in the window, and what the agent's threads need is to be in one place: each
machine has for itself what is written to there."""
BLANK = ("oci/spec.py", "oci/seccomp.py", "vm/template/usual.py")
"""What :func:`prepared` depends on."""
_ASK = "make another: casemate template create"
_blank: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """A template.

    ``manifest`` has ``format``, ``key``, ``bundle`` (the guest's digest), ``accelerator``, ``growth_mib``, ``vcpus``,
    ``kernel_release``, ``hello`` (what the agent said), ``sizes`` and ``sha256`` of the three files.
    """

    key: str
    path: Path
    manifest: dict[str, Any]

    @property
    def hello(self) -> dict[str, Any]:
        """The agent's greeting, which it does not say twice."""
        value = self.manifest["hello"]
        return dict(value) if isinstance(value, dict) else {}

    def size(self) -> int:
        """Bytes on disk."""
        return sum(os.stat(self.path / name).st_blocks * 512 for name in PARTS)


def home(root: Path) -> Path:
    """Where the templates of a root directory are: beside the guests that they were made from."""
    return root / "guest" / "templates"


def key(config: Config, bundle: GuestBundle, kind: Class) -> str:
    """What a template for such a machine is called: a digest of all that its contents depend on.

    Raises:
        HostError: QEMU is not installed.
    """
    program = launch.find_program(config.qemu)
    found = os.stat(program)
    values: list[Any] = [
        FORMAT, casemate.__version__, wire.PROTOCOL, bundle.digest, bundle.cmdline(kind.accelerator.value),
        kind.accelerator.value, TEMPLATE_MIB, kind.growth_mib, kind.vcpus, WINDOW_MIB, CMDLINE,
        program, found.st_size, found.st_mtime_ns, Path(qemu_args.__file__).read_text(),
        *(_source(name) for name in BLANK),
    ]  # fmt: skip
    if kind.accelerator is base.Accelerator.KVM:
        values.append(_processor())
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def blank_spec() -> dict[str, Any]:
    """A container as most are, whose first process the guest has ready before it is saved. It is the same each time,
    and not to be changed: a keeper has it from where it was forked."""
    global _blank
    if _blank is None:
        from casemate.config import machine
        from casemate.oci import imageconfig, spec

        _blank = spec.build(imageconfig.ImageConfig(), spec.Wishes(command=("/",), hostname="casemate"), machine())
    return _blank


def prepared() -> dict[str, Any]:
    """What a guest is to make ready, as ``sandbox.prepare`` and ``sandbox.blank`` take it."""
    from casemate.vm.template import usual

    return {"spec": blank_spec(), "usual": usual.CONTAINERS}


def _source(name: str) -> str:
    """The text of a module, which is read in a fraction of the time that importing it takes."""
    return (Path(casemate.__file__).parent / name).read_text()


def _processor() -> list[str]:
    """What a guest on KVM sees of the host's processor, and the host's kernel."""
    words = [os.uname().release]
    with open("/proc/cpuinfo") as file:
        for line in file:
            if not line.strip():
                break
            if line.startswith(("model name", "flags", "microcode")):
                words.append(line)
    return words


def load(path: Path) -> Template:
    """Read a template and check that its files are there with the recorded sizes.

    Raises:
        TemplateError: it is damaged. FileNotFoundError: there is none.
    """
    try:
        manifest = jsonfile.read(path / MANIFEST)
        if manifest["format"] != FORMAT or manifest["key"] != path.name:
            raise ValueError("the manifest does not belong to it")
        for name in PARTS:
            size = (path / name).stat().st_size
            if size != manifest["sizes"][name]:
                raise ValueError(f"{name} has {size} bytes instead of {manifest['sizes'][name]}")
        if not isinstance(manifest["hello"], dict):
            raise ValueError("it does not say who answered")
        return Template(path.name, path, manifest)
    except FileNotFoundError:
        if not path.exists():
            raise
        raise TemplateError(f"the template {path} is not whole", _ASK) from None
    except (OSError, ValueError, KeyError, TypeError, StateError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TemplateError(f"the template {path} is damaged: {reason}", _ASK) from None


def verify(template: Template) -> None:
    """Read a template whole and compare it with what was saved.

    Raises:
        TemplateError: it is not the same.
    """
    for name in PARTS:
        if digest(template.path / name) != template.manifest["sha256"].get(name):
            raise TemplateError(f"{template.path / name} is not as it was saved", _ASK)


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_all(root: Path) -> list[Template]:
    """All whole templates, those that were used last first."""
    found = []
    for path in directories(root):
        try:
            found.append(((path / MANIFEST).stat().st_mtime_ns, load(path)))
        except (TemplateError, FileNotFoundError):
            continue
    return [template for _, template in sorted(found, key=lambda item: (-item[0], item[1].key))]


def damaged(root: Path) -> list[tuple[Path, str]]:
    """Those that are not whole, and what is wrong with them."""
    found = []
    for path in directories(root):
        try:
            load(path)
        except TemplateError as error:
            found.append((path, error.message))
        except FileNotFoundError:
            continue
    return found


def used(template: Template) -> None:
    """Note that a template is in use: those used longest ago are the first to go.

    Where nothing can be written, on a read-only file system, none goes either, and it is used all the same.
    """
    try:
        os.utime(template.path / MANIFEST)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


def remove(path: Path) -> None:
    """Take a template away: first its name, so that nobody finds half of it. Who runs from it is not disturbed."""
    gone = path.with_name(f".gone-{os.getpid()}-{os.urandom(4).hex()}")
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what interrupted makers left, what is damaged, and more than :data:`KEEP`. The lock must be held."""
    where = home(root)
    for path in where.glob(".*-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path, _ in damaged(root):
        remove(path)
    for template in list_all(root)[KEEP:]:
        remove(template.path)


def directories(root: Path) -> list[Path]:
    """Where templates are, whole or not."""
    try:
        with os.scandir(home(root)) as entries:
            names = [entry.name for entry in entries if len(entry.name) == 64 and entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [home(root) / name for name in sorted(names)]

"""The minimal kernels that were built and are kept in the cache.

::

    <cache>/guest/kernels/<key>/   vmlinux, config, modules/<release>/, kernel.json

A directory has its name only once it is whole. ``casemate guest build`` takes the newest one that was made of the
fragments that this casemate has.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import jsonfile
from casemate.errors import GuestMissing, StateError, UsageError
from casemate.vm.guest import kernel_config

FORMAT = 1
FILE = "kernel.json"
CHOICES = ("auto", "debian", "minimal")
BUILD = "run: casemate guest kernel build"


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A kernel that was built here.

    ``facts`` is what ``kernel.json`` holds: ``format``, ``key``, ``architecture``, ``version`` (of Debian's source),
    ``release`` (as ``uname -r`` says), ``fragments`` (a hash of casemate's), ``options`` (a hash of all options),
    ``compiler``, ``files`` (how many were compiled), ``seconds`` (how long it took).
    """

    key: str
    path: Path
    release: str
    version: str
    facts: dict[str, Any]

    @property
    def vmlinux(self) -> Path:
        """The ELF kernel."""
        return self.path / "vmlinux"

    @property
    def modules(self) -> Path:
        """The directory with ``modules.builtin``."""
        return self.path / "modules" / self.release


def home(cache: Path) -> Path:
    """Where the kernels are.

    Arguments:
        cache: as for :func:`casemate.vm.guest.build`.
    """
    return cache / "guest" / "kernels"


def load(path: Path) -> BuiltKernel | None:
    """The kernel in a directory; None where there is no whole one of a format that is known here."""
    try:
        facts = jsonfile.read(path / FILE)
        made = BuiltKernel(path.name, path, str(facts["release"]), str(facts["version"]), facts)
        whole = facts["format"] == FORMAT and facts["key"] == path.name
        return made if whole and made.vmlinux.is_file() and made.modules.is_dir() else None
    except (OSError, StateError, KeyError, TypeError):
        return None


def list_kernels(cache: Path) -> list[BuiltKernel]:
    """All that are there, the one that was asked for last first."""
    found = []
    try:
        paths = [path for path in home(cache).iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
    for path in paths:
        if (made := load(path)) is not None:
            found.append(((path / FILE).stat().st_mtime_ns, made))
    return [made for _, made in sorted(found, key=lambda item: (-item[0], item[1].key))]


def present(cache: Path, architecture: str) -> BuiltKernel | None:
    """The kernel that ``casemate guest build`` takes by itself: made of this casemate's fragments, asked for last."""
    wanted = kernel_config.digest(kernel_config.load())
    for made in list_kernels(cache):
        if made.facts.get("architecture") == architecture and made.facts.get("fragments") == wanted:
            return made
    return None


def choose(cache: Path, architecture: str, choice: str) -> BuiltKernel | None:
    """The kernel for a bundle; None for Debian's.

    Arguments:
        cache: where kernels are kept.
        architecture: the guest's.
        choice: ``auto`` (a minimal one where there is one), ``debian`` or ``minimal``.

    Raises:
        UsageError: another choice. GuestMissing: there is no minimal kernel, and one is insisted on.
    """
    if choice not in CHOICES:
        raise UsageError(f"no kernel is called {choice!r}", f"one of {', '.join(CHOICES)}")
    if choice == "debian":
        return None
    made = present(cache, architecture)
    if made is None and choice == "minimal":
        raise GuestMissing(f"there is no minimal kernel in {home(cache)}", BUILD)
    return made


def find(cache: Path, key: str) -> BuiltKernel:
    """The kernel whose key begins so; the newest where nothing is said.

    Raises:
        GuestMissing: there is none, or more than one.
    """
    found = [made for made in list_kernels(cache) if made.key.startswith(key)]
    if not found:
        what = f"no kernel in {home(cache)} begins with {key}" if key else f"there is no kernel in {home(cache)}"
        raise GuestMissing(what, "'casemate guest kernel list' shows them" if key else BUILD)
    if key and len(found) > 1:
        raise GuestMissing(f"{len(found)} kernels begin with {key}", "'casemate guest kernel list' shows them")
    return found[0]


def ask(made: BuiltKernel) -> None:
    """Make it the one that was asked for last."""
    os.utime(made.path / FILE)


def remove(made: BuiltKernel) -> None:
    """Take a kernel away; bundles that hold it stay as they are."""
    gone = made.path.with_name(f".gone-{os.getpid()}-{made.key}")
    os.rename(made.path, gone)
    shutil.rmtree(gone, ignore_errors=True)

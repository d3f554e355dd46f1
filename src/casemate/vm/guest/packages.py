"""Debian packages without installing them: what is needed is asked of apt, checked by checksum, and kept in the cache.

apt does what it is good at: it knows the mirrors, the proxies and the keys, and computes what a set of packages needs.
It is told that nothing is installed, so that the host's own packages do not shape the guest, and works in directories
of the cache, so that it needs no privileges and leaves the host's state alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from casemate.errors import GuestError, HostError
from casemate.vm.guest.recipe import Architecture
from casemate.vm.guest.tools import run

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One package in one version. ``file`` is the name it has in the cache, ``size`` is in bytes."""

    name: str
    version: str
    sha256: str
    size: int
    file: str

    def as_json(self) -> dict[str, Any]:
        """The package as a JSON object."""
        return asdict(self)


def from_json(value: Any) -> Package:
    """The package that :meth:`Package.as_json` gave.

    Raises:
        ValueError: it is not one.
    """
    if not isinstance(value, dict) or set(value) != {"name", "version", "sha256", "size", "file"}:
        raise ValueError("not a package")
    if not isinstance(value["size"], int) or not all(isinstance(value[k], str) for k in value if k != "size"):
        raise ValueError("not a package")
    if "/" in value["file"] or not re.fullmatch("[0-9a-f]{64}", value["sha256"]):
        raise ValueError("not a package")
    return Package(**value)


class Apt:
    """apt, working in a directory of the cache.

    Arguments:
        directory: where it may write.
        arch: the architecture of the packages.
        own_lists: read package lists that :meth:`update` fetched, and not the host's.
    """

    def __init__(self, directory: Path, arch: Architecture, *, own_lists: bool) -> None:
        state = directory / "state"
        for path in (state / "lists" / "partial", directory / "cache" / "archives" / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        status = state / "status"
        status.touch()
        self._options = [
            "-o", f"APT::Architecture={arch.debian}",
            "-o", f"Dir::State::status={status}",
            "-o", f"Dir::State::extended_states={state}/extended_states",
            "-o", f"Dir::Cache={directory}/cache",
            "-o", "APT::Sandbox::User=root",
            "-o", "APT::Install-Recommends=false",
            "-o", "Debug::NoLocking=true",
            "-o", "Acquire::Retries=3",
        ]
        if own_lists:
            self._options += ["-o", f"Dir::State::lists={state}/lists"]
        self._arch = arch

    def update(self) -> None:
        """Fetch package lists.

        Raises:
            GuestError: no list could be fetched.
        """
        run(["apt-get", "-q", "update", *self._options], "apt")

    def resolve(self) -> list[Package]:
        """The packages of a guest: kernel, busybox, crun, Python, and the libraries that these need.

        Raises:
            GuestError: apt does not know one of the packages.
        """
        kernel = self._dependency(self._arch.kernel, rf"linux-image-\S+-cloud-{self._arch.debian}")
        python = self._dependency("python3", r"python3\.\d+")
        wanted = ["busybox-static", "crun", f"{python}-minimal", f"lib{python}-stdlib"]
        command = ["apt-get", "install", "--print-uris", "-y", "-qq", "--no-install-recommends", *self._options]
        found = []
        for line in run([*command, *wanted], "apt").splitlines():
            words = line.split()
            if len(words) >= 3 and words[0].startswith("'"):
                name, version, _ = unquote(words[1]).rsplit("_", 2)
                # Only libraries: programs that packages ask for at their installation have no place in the guest.
                if name in wanted or name.startswith("lib") or name == "zlib1g":
                    found.append(f"{name}={version}")
        return self.describe([kernel, *found])

    def download(self, packages: Sequence[Package], directory: Path) -> None:
        """Fetch packages into a directory; apt checks the checksums."""
        run(
            ["apt-get", "-q", "download", *self._options, *(f"{p.name}={p.version}" for p in packages)],
            "apt", cwd=directory,
        )

    def _show(self, names: Iterable[str]) -> list[dict[str, str]]:
        text = run(["apt-cache", "show", "--no-all-versions", *self._options, *names], "apt")
        stanzas = []
        for block in text.split("\n\n"):
            fields = re.findall(r"^([A-Za-z0-9-]+): (.*)$", block, re.MULTILINE)
            if fields:
                stanzas.append(dict(fields))
        return stanzas

    def _dependency(self, name: str, pattern: str) -> str:
        for stanza in self._show([name]):
            for word in re.split(r"[,|]\s*", stanza.get("Depends", "")):
                if match := re.match(rf"({pattern})(?=\s|$)", word.strip()):
                    return match[1]
        raise GuestError(f"package {name} does not depend on one like {pattern}")

    def describe(self, names: Sequence[str]) -> list[Package]:
        """What apt knows of packages, as ``name`` or ``name=version``, sorted.

        Raises:
            GuestError: apt does not know one of them.
        """
        packages: dict[str, Package] = {}
        for stanza in self._show(names):
            try:
                name, version, digest = stanza["Package"], stanza["Version"], stanza["SHA256"]
                architecture, size = stanza["Architecture"], int(stanza["Size"])
            except (KeyError, ValueError):
                continue
            file = f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
            packages.setdefault(name, Package(name, version, digest, size, file))
        missing = {name.split("=")[0] for name in names} - packages.keys()
        if missing:
            raise GuestError(f"apt has no checksum of {', '.join(sorted(missing))}")
        return sorted(packages.values())


def good(package: Package, directory: Path) -> bool:
    """Whether a package's file is in the directory, whole and with the right checksum."""
    path = directory / package.file
    try:
        if path.stat().st_size != package.size:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
    except FileNotFoundError:
        return False


def fetch(packages: Sequence[Package], directory: Path, apt: Apt, progress: Progress) -> None:
    """See to it that every package is in the directory, whole; files that are not are fetched again.

    Raises:
        GuestError: one cannot be fetched or arrives with a wrong checksum.
    """
    directory.mkdir(parents=True, exist_ok=True)
    absent = [package for package in packages if not good(package, directory)]
    if not absent:
        return
    progress(f"downloading {len(absent)} Debian packages, {sum(p.size for p in absent) / 1e6:.0f} MB")
    temporary = Path(tempfile.mkdtemp(prefix=".download-", dir=directory))
    try:
        apt.download(absent, temporary)
        for package in absent:
            if not good(package, temporary):
                raise GuestError(f"package {package.file} arrived with a wrong checksum", "try again")
            os.replace(temporary / package.file, directory / package.file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpack(packages: Iterable[Package], directory: Path, into: Path) -> None:
    """Unpack packages into one tree. Nothing of them is run."""
    into.mkdir(parents=True, exist_ok=True)
    for package in packages:
        run(["dpkg-deb", "-x", directory / package.file, into], "dpkg")


def check_host() -> None:
    """Raise HostError when this is no machine on which packages can be had with apt."""
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(program) is None:
            raise HostError(f"building a guest needs Debian's {program}", "build it on Debian and copy the bundle")

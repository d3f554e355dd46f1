"""Guest bundles on disk: find, list, inspect, prune.

``<root>/guest/<digest>/`` holds ``manifest.json``, the kernel, the initial root and the root image;
``<root>/guest/current`` is a symbolic link to the digest in use. A bundle is complete from the moment it has its name
and its three images are never changed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import config, jsonfile
from casemate.errors import GuestError, GuestMissing, StateError

FORMAT = 1
FILES = {"kernel": ("vmlinux", "bzimage"), "initrd": ("initrd.cpio",), "root": ("root.erofs",)}
OPTIONAL = ("initrd",)
"""What a kernel may have no need for."""
_BUILD = "run: casemate guest build"


@dataclass(frozen=True, slots=True)
class GuestBundle:
    """One kernel with the root image that belongs to it.

    ``manifest`` is what ``manifest.json`` holds: ``format``, ``digest``, ``key``, ``version``, ``architecture``,
    ``kernel_release``, ``kernel`` (``kind``: ``debian`` or ``minimal``, and the ``key`` of a minimal one), ``files``
    (role to name, size, sha256), ``base_cmdline`` (accelerator to arguments), ``packages``.

    ``initrd`` is None where the kernel reaches the root image by itself.
    """

    digest: str
    path: Path
    kernel: Path
    initrd: Path | None
    root: Path
    version: str
    kernel_release: str
    manifest: dict[str, Any]

    def cmdline(self, accelerator: str) -> tuple[str, ...]:
        """The kernel's arguments for ``tcg`` or ``kvm``; devices and transports add theirs."""
        known: dict[str, list[str]] = self.manifest["base_cmdline"]
        return tuple(known.get(accelerator, known["kvm"]))

    @property
    def kernel_kind(self) -> str:
        """``debian`` or ``minimal``."""
        return str(self.manifest.get("kernel", {}).get("kind", "debian"))

    @property
    def files(self) -> tuple[Path, ...]:
        """The kernel, the initial root where there is one, and the root image."""
        return tuple(path for path in (self.kernel, self.initrd, self.root) if path is not None)


def home(root: Path) -> Path:
    """Where the bundles of a root directory are."""
    return root / "guest"


def load(path: Path) -> GuestBundle:
    """Read the bundle in a directory and check that its files are there with the recorded sizes.

    Raises:
        GuestError: it is damaged.
    """
    try:
        manifest = jsonfile.read(path / "manifest.json")
        if manifest["format"] != FORMAT or manifest["digest"] != path.name:
            raise ValueError("the manifest does not belong to it")
        paths: dict[str, Path] = {}
        for role, names in FILES.items():
            if role in OPTIONAL and role not in manifest["files"]:
                continue
            entry = manifest["files"][role]
            if entry["name"] not in names:
                raise ValueError(f"{entry['name']!r} is no name of a {role}")
            paths[role] = path / entry["name"]
            size = paths[role].stat().st_size
            if size != entry["size"]:
                raise ValueError(f"{entry['name']} has {size} bytes instead of {entry['size']}")
        return GuestBundle(
            manifest["digest"], path, paths["kernel"], paths.get("initrd"), paths["root"],
            str(manifest["version"]), str(manifest["kernel_release"]), manifest,
        )
    except (OSError, ValueError, KeyError, TypeError, StateError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise GuestError(f"guest bundle {path} is damaged: {reason}", _BUILD) from None


def find(root: Path, digest: str = "") -> GuestBundle:
    """The bundle to use.

    Arguments:
        root: the directory of what lasts, ``config.root``.
        digest: which one, whole or the first 12 characters or more; the current one when empty.

    Raises:
        GuestMissing: none was built, none has that digest, or the current one is of another architecture.
        GuestError: it is damaged.
    """
    where = home(root)
    if digest:
        matches = [path for path in _directories(where) if path.name.startswith(digest) and len(digest) >= 12]
        if len(matches) != 1:
            raise GuestMissing(f"no guest bundle {digest} in {where}", "see: casemate guest list")
        bundle = load(matches[0])
    else:
        name = current(root)
        if name is None:
            raise GuestMissing(f"there is no guest in {where}", _BUILD)
        bundle = load(where / name)
    machine = config.machine()
    if bundle.manifest.get("architecture") != machine:
        raise GuestMissing(f"the guest {bundle.digest[:12]} is not for {machine}", _BUILD)
    return bundle


def current(root: Path) -> str | None:
    """The digest that is in use, or None."""
    try:
        target = os.readlink(home(root) / "current")
    except OSError:
        return None
    return target if "/" not in target and (home(root) / target).is_dir() else None


def list_bundles(root: Path) -> list[GuestBundle]:
    """All whole bundles, the newest first; damaged ones are left out."""
    found = []
    for path in _directories(home(root)):
        try:
            found.append((path.stat().st_mtime_ns, load(path)))
        except (GuestError, FileNotFoundError):
            continue
    return [bundle for _, bundle in sorted(found, key=lambda item: (-item[0], item[1].digest))]


def prune(root: Path, keep: int = 0) -> list[str]:
    """Remove bundles, all but the current one and the newest others. A running machine keeps the files it has open.

    Arguments:
        root: the directory of what lasts.
        keep: how many to keep beside the current one.

    Returns:
        The digests of those removed.
    """
    from casemate.vm.guest.lock import locked

    with locked(home(root)):
        used = current(root)
        good = [bundle.digest for bundle in list_bundles(root) if bundle.digest != used]
        kept = {*good[: max(keep, 0)], used}
        removed = []
        for path in _directories(home(root)):
            if path.name not in kept:
                remove(path)
                removed.append(path.name)
        return removed


def remove(path: Path) -> None:
    """Take a bundle away: first its name, so that nobody finds half of it, then its files."""
    gone = path.with_name(f".gone-{os.getpid()}-{os.urandom(4).hex()}")
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def select(root: Path, digest: str) -> None:
    """Make a bundle the current one."""
    link = home(root) / "current"
    temporary = link.with_name(f".current-{os.getpid()}-{os.urandom(4).hex()}")
    os.symlink(digest, temporary)
    os.replace(temporary, link)


def _directories(where: Path) -> list[Path]:
    try:
        with os.scandir(where) as entries:
            names = [entry.name for entry in entries if len(entry.name) == 64 and entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [where / name for name in sorted(names)]

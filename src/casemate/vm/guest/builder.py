"""Building a guest bundle, step by step, each kept for the next time.

::

    <cache>/guest/packages.json   which packages in which versions
    <cache>/guest/packages/       the packages
    <cache>/guest/staged/<key>/   kernel, initial root and root tree made from them
    <root>/guest/<digest>/        the bundle: the above with the agent in it
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import casemate
from casemate import config, jsonfile
from casemate.errors import GuestError, HostError, StateError
from casemate.vm.guest import bundle, initrd, kernel, kernels, packages, rootfs
from casemate.vm.guest.bundle import GuestBundle
from casemate.vm.guest.kernels import BuiltKernel
from casemate.vm.guest.lock import locked
from casemate.vm.guest.modules import ModuleTree
from casemate.vm.guest.packages import Package
from casemate.vm.guest.recipe import (
    BASE_MODULES,
    BUSYBOX,
    DEVICE_MODULES,
    EXTRA_MODULES,
    Architecture,
    architecture,
)
from casemate.vm.guest.tools import require

Progress = Callable[[str], None]
_AGENT_PARTS = ("agent", "protocol")
_STAGED_KEEP = 2


def build(
    root: Path, cache: Path, progress: Progress, *, update: bool = False, choice: str = "auto",
    sources: Path | None = None,
) -> GuestBundle:
    """Build the guest bundle and make it the current one; nothing is done when nothing has changed.

    Arguments:
        root: the directory of what lasts, ``config.root``.
        cache: packages and half-products are kept in its directory ``guest``, which may be deleted between builds.
        progress: is given a line for each step that takes a second or more.
        update: ask apt for new versions of the packages. Without it a list that is in the cache is used as it is, and
            nothing is fetched when the packages are there too.
        choice: the kernel: ``debian``, ``minimal`` (what ``casemate guest kernel build`` has built), or ``auto``: the
            minimal one where there is one.
        sources: the ``casemate`` package to take the agent from; this one when None.

    Raises:
        HostError: a program is missing, no space is left, this is not Debian.
        GuestError: a package cannot be had or is not as expected.
        GuestMissing: there is no minimal kernel, and one is insisted on.
    """
    arch = architecture(config.machine())
    built = kernels.choose(cache, arch.name, choice)
    cache = cache / "guest"
    try:
        with locked(cache, lambda: progress("waiting for another build")):
            return _build(root, cache, progress, update, sources or Path(casemate.__file__).parent, arch, built)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostError("no space is left for the guest", f"free 500 MB in {cache} and {root}") from None
        raise HostError(f"the guest cannot be built: {error.strerror or error}: {error.filename or cache}") from None


def _build(
    root: Path, cache: Path, progress: Progress, update: bool, package: Path, arch: Architecture,
    built: BuiltKernel | None,
) -> GuestBundle:
    agent = _agent_sources(package)
    listed = None if update else _read_list(cache, arch)
    if listed is not None:
        key = _key(arch, _needed(listed, built), agent, built)
        if (existing := _existing(root, key)) is not None:
            return existing
    packages.check_host()
    for program, debian in (("mkfs.erofs", "erofs-utils"), ("lz4", "lz4")):
        require(program, debian)
    _sweep(cache)
    staged, listed = _staged(cache, progress, arch, listed, update, built)
    listed = _needed(listed, built)
    key = _key(arch, listed, agent, built)
    if (existing := _existing(root, key)) is not None:
        return existing
    progress("making the guest's root image")
    with locked(bundle.home(root)):
        return _publish(root, staged, listed, agent, key, arch, built)


def _agent_sources(package: Path) -> list[tuple[str, bytes]]:
    """The agent's source files by their path in the guest, sorted."""
    found = [("casemate/__init__.py", (package / "__init__.py").read_bytes())]
    for part in _AGENT_PARTS:
        for path in sorted((package / part).rglob("*.py")):
            found.append((f"casemate/{path.relative_to(package).as_posix()}", path.read_bytes()))
    if "casemate/agent/main.py" not in {name for name, _ in found}:
        raise GuestError(f"{package} holds no agent", "install casemate whole")
    return sorted(found)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _recipe_hash() -> str:
    """A change of how bundles are made makes new ones; nobody has to remember to raise a number."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _needed(listed: Sequence[Package], built: BuiltKernel | None) -> list[Package]:
    """The packages without Debian's kernel, where another one takes its place."""
    return [p for p in listed if built is None or not p.name.startswith("linux-image-")]


def _staged_key(arch: Architecture, needed: Sequence[Package], built: BuiltKernel | None) -> str:
    own = built.key if built else ""
    return _hash([bundle.FORMAT, _recipe_hash(), arch.name, [p.as_json() for p in needed], own])


def _key(
    arch: Architecture, needed: Sequence[Package], agent: Sequence[tuple[str, bytes]], built: BuiltKernel | None
) -> str:
    sources = [(name, hashlib.sha256(content).hexdigest()) for name, content in agent]
    return _hash([_staged_key(arch, needed, built), casemate.__version__, sources])


def _existing(root: Path, key: str) -> GuestBundle | None:
    """A whole bundle with that key, made the current one."""
    for found in bundle.list_bundles(root):
        if found.manifest.get("key") == key:
            if bundle.current(root) == found.digest:
                return found
            with locked(bundle.home(root)):
                if not found.path.is_dir():  # pruned since it was listed
                    return None
                bundle.select(root, found.digest)
                return found
    return None


def _read_list(cache: Path, arch: Architecture) -> list[Package] | None:
    try:
        value = jsonfile.read(cache / "packages.json")
        if value["architecture"] != arch.name:
            return None
        return [packages.from_json(entry) for entry in value["packages"]]
    except (OSError, StateError, KeyError, TypeError, ValueError):
        return None  # absent or damaged: it is made anew


def _sweep(cache: Path) -> None:
    """Remove what an interrupted build left. The lock is held: nobody else is at work here."""
    for directory in (cache, cache / "packages", cache / "staged"):
        for path in directory.glob(".*-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def _staged(
    cache: Path, progress: Progress, arch: Architecture, listed: list[Package] | None, update: bool,
    built: BuiltKernel | None,
) -> tuple[Path, list[Package]]:
    """The directory with what comes from packages, and the packages it came from."""
    if listed is not None:
        made = cache / "staged" / _staged_key(arch, _needed(listed, built), built)
        if made.is_dir():
            return made, listed
    store = cache / "packages"
    own_lists = update
    while True:
        apt = packages.Apt(cache / "apt", arch, own_lists=own_lists)
        try:
            if listed is None:
                if own_lists:
                    progress("fetching Debian's package lists")
                    apt.update()
                progress("asking apt for the guest's packages")
                listed = apt.resolve()
            packages.fetch(_needed(listed, built), store, apt, progress)
            break
        except GuestError:
            # The host's lists may be absent or older than what the mirror still has: once more with fresh ones.
            if own_lists:
                raise
            own_lists, listed = True, None
    jsonfile.write(
        cache / "packages.json", {"architecture": arch.name, "packages": [p.as_json() for p in listed]}, mode=0o644
    )
    needed = _needed(listed, built)
    made = cache / "staged" / _staged_key(arch, needed, built)
    if not made.is_dir():
        _stage(store, needed, made, progress, built)
    return made, listed


def _stage(
    store: Path, needed: Sequence[Package], made: Path, progress: Progress, built: BuiltKernel | None
) -> None:
    made.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".stage-", dir=made.parent))
    try:
        progress("unpacking the guest's packages")
        unpacked = work / "unpacked"
        packages.unpack(needed, store, unpacked)
        result = work / "result"
        result.mkdir()
        if built is not None:
            shutil.copyfile(built.vmlinux, result / "vmlinux")
            tree = ModuleTree(built.modules)
            wanted = tree.names()
        else:
            tree = _debian_kernel(unpacked, result, progress)
            wanted = [n for n in (*BASE_MODULES, *DEVICE_MODULES.values(), *EXTRA_MODULES) if tree.has(n)]
        progress("making the root tree")
        rootfs.stage(unpacked, tree, wanted, result / "root")
        (result / "release").write_text(tree.release)
        os.rename(result, made)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in sorted(made.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)[_STAGED_KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def _debian_kernel(unpacked: Path, result: Path, progress: Progress) -> ModuleTree:
    """Take Debian's kernel out of the packages, and make the initial root that it needs; the kernel's modules."""
    images = sorted((unpacked / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise GuestError(f"the packages hold {len(images)} kernels where one is needed")
    release = images[0].name.removeprefix("vmlinuz-")
    modules = next(
        (path for base in ("lib", "usr/lib") if (path := unpacked / base / "modules" / release).is_dir()), None
    )
    if modules is None:
        raise GuestError(f"the kernel package holds no modules of {release}")
    progress("extracting the kernel")
    image = images[0].read_bytes()
    plain = kernel.extract(image)
    (result / ("vmlinux" if plain else "bzimage")).write_bytes(plain or image)
    tree = ModuleTree(modules)
    progress("making the initial root")
    busybox = next(path for name in BUSYBOX if (path := unpacked / name).exists())
    (result / "initrd.cpio").write_bytes(initrd.build(busybox.read_bytes(), tree))
    return tree


def _publish(
    root: Path,
    staged: Path,
    listed: Sequence[Package],
    agent: Sequence[tuple[str, bytes]],
    key: str,
    arch: Architecture,
    built: BuiltKernel | None,
) -> GuestBundle:
    home = bundle.home(root)
    for stale in home.glob(".build-*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=home))
    try:
        result, scratch = work / "result", staged.parent / f".image-{os.getpid()}"
        result.mkdir(mode=0o755)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            rootfs.image(staged / "root", agent, scratch, result / "root.erofs")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for name in (*bundle.FILES["kernel"], *bundle.FILES["initrd"]):
            if (staged / name).exists():
                shutil.copyfile(staged / name, result / name)
        files: dict[str, dict[str, Any]] = {}
        for role, names in bundle.FILES.items():
            path = next((result / name for name in names if (result / name).exists()), None)
            if path is None and role in bundle.OPTIONAL:
                continue
            assert path is not None  # a staged directory is whole
            files[role] = {"name": path.name, **_seal(path)}
        digest = _hash([bundle.FORMAT, arch.name, {role: [f["name"], f["sha256"]] for role, f in files.items()}])
        release = (staged / "release").read_text()
        debian = built.version if built else next(p.version for p in listed if p.name.startswith("linux-image-"))
        cmdline = arch.minimal_cmdline if built else arch.cmdline
        manifest = {
            "format": bundle.FORMAT,
            "digest": digest,
            "key": key,
            "version": f"{casemate.__version__}+linux{debian}",
            "architecture": arch.name,
            "kernel_release": release,
            "kernel": {"kind": "minimal", "key": built.key} if built else {"kind": "debian"},
            "files": files,
            "base_cmdline": {name: list(words) for name, words in cmdline.items()},
            "packages": [p.as_json() for p in listed],
        }
        jsonfile.write(result / "manifest.json", manifest, mode=0o644)
        # Readable by the hypervisor's user whatever the umask of the builder.
        os.chmod(result / "manifest.json", 0o644)
        os.chmod(result, 0o755)
        os.chmod(home, 0o755)
        target = home / digest
        try:
            bundle.load(target)
            # The same files from other inputs, such as a recipe that was only written differently.
            os.replace(result / "manifest.json", target / "manifest.json")
        except GuestError:
            if target.exists():
                bundle.remove(target)
            os.rename(result, target)
        bundle.select(root, digest)
        _sync(home)
        return bundle.load(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _seal(path: Path) -> dict[str, Any]:
    """Make a file lasting and read-only; its size and checksum."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    os.chmod(path, 0o444)
    return {"size": path.stat().st_size, "sha256": digest}


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

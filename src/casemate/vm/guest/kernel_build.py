"""Building the minimal kernel from Debian's source package, without privileges.

::

    <cache>/guest/kernel-source.json   which version of the source
    <cache>/guest/packages/            the package
    <cache>/guest/kernel-work/         unpacked source, objects and log of a build under way
    <cache>/guest/kernels/<key>/       see :mod:`casemate.vm.guest.kernels`

The key is a hash of the source, the options, the compiler and this recipe: what exists is not built again. A build that
was interrupted goes on where it stopped; after one that succeeded the work directory is removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from casemate import config, jsonfile
from casemate.errors import GuestError, HostError, StateError
from casemate.vm.guest import kernel_config, kernels, packages
from casemate.vm.guest.kernels import BuiltKernel
from casemate.vm.guest.lock import locked
from casemate.vm.guest.packages import Package
from casemate.vm.guest.recipe import KERNEL_FILES, KERNEL_SOURCE, Architecture, architecture
from casemate.vm.guest.tools import environment, run

Progress = Callable[[str], None]
SPACE = 3 << 30
"""Bytes that source and objects take, with something to spare."""
TELL_SECONDS = 20.0
_PROGRAMS = (
    ("gcc", "gcc"), ("ld", "binutils"), ("make", "make"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc"),
    ("perl", "perl"), ("xz", "xz-utils"), ("tar", "tar"),
)  # fmt: skip
_HEADERS = (("stdio.h", "libc6-dev"), ("gelf.h", "libelf-dev"))
# The same bytes whoever builds, and when.
_ENVIRONMENT = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01", "KBUILD_BUILD_USER": "casemate", "KBUILD_BUILD_HOST": "casemate",
    "KBUILD_BUILD_VERSION": "1",
}  # fmt: skip
_COMPILED = re.compile(r" {2}(?:CC|AS)\b")


def build(
    cache: Path, progress: Progress, *, update: bool = False, more: Sequence[Path] = (), keep: bool = False,
    jobs: int = 0,
) -> BuiltKernel:
    """Build the minimal kernel, unless the same one is there; it is then the one that guests are built with.

    Arguments:
        cache: packages, work and kernels are kept in its directory ``guest``.
        progress: is given a line for each step that takes a second or more.
        update: ask apt for a newer source.
        more: files with further options, which win against casemate's.
        keep: leave source and objects, for a faster build after a change of options.
        jobs: how many compilers at once; 0 for one on each processor.

    Raises:
        HostError: programs are missing; all of them are named. No space is left, or this is not Debian.
        GuestError: the source cannot be had, an option was not taken, or the kernel cannot be compiled.
        UsageError: one of ``more`` cannot be read.
    """
    arch = architecture(config.machine())
    fragments = kernel_config.load(more)
    merged = kernel_config.merge(fragments)
    where = cache / "guest"
    try:
        with locked(where / "kernel-work", lambda: progress("waiting for another build of a kernel")):
            check_host()
            source = _source(where, arch, progress, update)
            compiler = _compiler()
            ours = kernel_config.digest([each for each in fragments if not each.own])
            key = _key(arch, source, merged, compiler, ours)
            made = kernels.load(kernels.home(cache) / key)
            if made is None:
                facts = {
                    "format": kernels.FORMAT, "key": key, "architecture": arch.name, "version": source.version,
                    "fragments": ours, "options": kernel_config.digest(fragments), "compiler": compiler,
                }  # fmt: skip
                made = _Build(where, source, arch, merged, progress, jobs or len(os.sched_getaffinity(0))).make(
                    kernels.home(cache) / key, facts
                )
                if not keep:
                    progress("removing source and objects")
                    for name in ("source", "objects"):
                        shutil.rmtree(where / "kernel-work" / name, ignore_errors=True)
            kernels.ask(made)
            return made
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostError("no space is left for the kernel", f"free {SPACE >> 30} GB in {where}") from None
        raise HostError(f"the kernel cannot be built: {error.strerror or error}: {error.filename or where}") from None


def check_host() -> None:
    """See to it that all is there that a build needs.

    Raises:
        HostError: with everything that is missing, and how to install it.
    """
    packages.check_host()
    path = os.environ.get("PATH", os.defpath)
    absent = {name: package for name, package in _PROGRAMS if shutil.which(name, path=path) is None}
    for name, package in _HEADERS if "gcc" not in absent else ():
        done = subprocess.run(
            ["gcc", "-fsyntax-only", "-x", "c", "-"], input=f"#include <{name}>\n".encode(), capture_output=True,
            check=False,
        )  # fmt: skip
        if done.returncode != 0:
            absent[name] = package
    if absent:
        raise HostError(
            f"building a kernel needs {', '.join(absent)}",
            f"apt-get install --no-install-recommends {' '.join(absent.values())}",
        )


def _compiler() -> str:
    return ", ".join(run([name, "--version"], package).splitlines()[0] for name, package in _PROGRAMS[:2])


def _key(
    arch: Architecture, source: Package, merged: Mapping[str, tuple[str, str]], compiler: str, ours: str
) -> str:
    """A change of how kernels are built makes another one, too."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    parts = [kernels.FORMAT, recipe, arch.name, source.sha256, kernel_config.text(merged), compiler, ours]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _source(where: Path, arch: Architecture, progress: Progress, update: bool) -> Package:
    """The source package, whole and in the cache."""
    path, store = where / "kernel-source.json", where / "packages"
    if not update:
        try:
            known = packages.from_json(jsonfile.read(path))
            if packages.good(known, store):
                return known
        except (OSError, StateError, ValueError, TypeError):
            pass  # absent or damaged: apt is asked
    own_lists = update
    while True:
        apt = packages.Apt(where / "apt", arch, own_lists=own_lists)
        try:
            if own_lists:
                progress("fetching Debian's package lists")
                apt.update()
            found = apt.describe([KERNEL_SOURCE])[0]
            packages.fetch([found], store, apt, progress)
            break
        except GuestError:
            if own_lists:
                raise
            own_lists = True  # the host's lists may be absent, or older than what the mirror still has
    jsonfile.write(path, found.as_json(), mode=0o644)
    return found


class _Build:
    """One build in the work directory, whose lock is held."""

    def __init__(
        self, where: Path, source: Package, arch: Architecture, merged: Mapping[str, tuple[str, str]],
        progress: Progress, jobs: int,
    ) -> None:
        self._store = where / "packages"
        self._work = where / "kernel-work"
        self._source = source
        self._arch = arch
        self._merged = merged
        self._progress = progress
        self._jobs = jobs
        self._log = self._work / "build.log"

    def make(self, target: Path, facts: dict[str, object]) -> BuiltKernel:
        began = time.monotonic()
        self._log.unlink(missing_ok=True)
        self._unpack()
        self._configure()
        count = self._compile()
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        for left in target.parent.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)
        new = target.with_name(f".new-{target.name}")
        new.mkdir()
        self._progress("installing the kernel's modules")
        self._call("modules_install", f"INSTALL_MOD_PATH={new / 'tree'}", "INSTALL_MOD_STRIP=1", "DEPMOD=true")
        (tree,) = (new / "tree" / "lib" / "modules").iterdir()
        for link in ("build", "source"):
            (tree / link).unlink(missing_ok=True)
        (new / "modules").mkdir()
        os.rename(tree, new / "modules" / tree.name)
        shutil.rmtree(new / "tree")
        run(["objcopy", "-S", "-R", ".comment", self._objects / "vmlinux", new / "vmlinux"], "binutils")
        shutil.copyfile(self._objects / ".config", new / "config")
        whole = {**facts, "release": tree.name, "files": count, "seconds": round(time.monotonic() - began)}
        jsonfile.write(new / kernels.FILE, whole, mode=0o644)
        if target.exists():  # damaged, or it would have been found
            shutil.rmtree(target)
        os.rename(new, target)
        made = kernels.load(target)
        assert made is not None  # it has just been written
        return made

    @property
    def _objects(self) -> Path:
        return self._work / "objects"

    def _unpack(self) -> None:
        """The source tree; nothing is done when it is there and of the right version."""
        tree, mark = self._work / "source", self._work / "source" / ".casemate"
        if mark.is_file() and mark.read_text() == self._source.sha256:
            return
        figures = os.statvfs(self._work)
        if figures.f_bavail * figures.f_frsize < SPACE:
            raise HostError(f"building a kernel needs {SPACE >> 30} GB", f"free some in {self._work}")
        for path in (tree, self._objects):
            shutil.rmtree(path, ignore_errors=True)
        unpacked = self._work / "package"
        shutil.rmtree(unpacked, ignore_errors=True)
        self._progress("unpacking the kernel's source")
        packages.unpack([self._source], self._store, unpacked)
        archives = sorted((unpacked / "usr" / "src").glob("linux-source-*.tar.*"))
        if len(archives) != 1:
            raise GuestError(f"package {self._source.file} holds {len(archives)} archives where one is needed")
        tree.mkdir()
        run(["tar", "-xf", archives[0], "-C", tree, "--strip-components=1"], "tar")
        shutil.rmtree(unpacked)
        mark.write_text(self._source.sha256)

    def _configure(self) -> None:
        self._progress("configuring the kernel")
        self._objects.mkdir(exist_ok=True)
        wanted = self._work / "wanted.config"
        wanted.write_text(kernel_config.text(self._merged))
        self._call("allnoconfig", f"KCONFIG_ALLCONFIG={wanted}")
        kernel_config.check(self._merged, (self._objects / ".config").read_text())

    def _compile(self) -> int:
        began = told = time.monotonic()
        count = 0
        self._progress(f"compiling the kernel with {self._jobs} jobs (messages in {self._log})")

        def line(text: str) -> None:
            nonlocal count, told
            count += bool(_COMPILED.match(text))
            if (now := time.monotonic()) >= told + TELL_SECONDS:
                told = now
                spent = round(now - began)
                self._progress(
                    f"compiling the kernel: {count} of about {KERNEL_FILES} files, {spent // 60}:{spent % 60:02d} min"
                )

        self._call(f"-j{self._jobs}", "vmlinux", "modules", line=line)
        return count

    def _call(self, *arguments: str, line: Callable[[str], None] = lambda text: None) -> None:
        """Run the kernel's make, and give it up with all that it has started when this is interrupted."""
        command = [
            "make", "-C", str(self._work / "source"), f"O={self._objects}", f"ARCH={self._arch.name}", *arguments
        ]  # fmt: skip
        last = ""
        with open(self._log, "a") as log:
            maker = subprocess.Popen(
                command, env={**environment(), **_ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
            try:
                assert maker.stdout is not None
                for text in maker.stdout:
                    log.write(text)
                    line(text)
                    if re.search(r"\b(error|Error \d|fatal):? ", text) and not last:
                        last = text.strip()
                status = maker.wait()
            except BaseException:
                os.killpg(maker.pid, signal.SIGTERM)
                maker.wait()
                raise
            finally:
                assert maker.stdout is not None
                maker.stdout.close()
        if status != 0:
            raise GuestError(f"the kernel cannot be built: {last or f'make says {status}'}", f"see {self._log}")

"""The root image: Python, crun, their libraries, the agent, modprobe; no shell and no package manager.

Two steps, because they change at different times. :func:`stage` makes a tree from packages; :func:`image` adds the
agent and makes an EROFS image of it. The tree's own Python compiles all code, whatever Python runs casemate: byte code
belongs to one version of the interpreter. Only byte code is kept, as files that are never compared with a source.
"""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from casemate.errors import GuestError
from casemate.vm.guest.elf import Elf
from casemate.vm.guest.modules import ModuleTree
from casemate.vm.guest.recipe import (
    AGENT_HOME,
    BUSYBOX,
    ENCODINGS_KEEP,
    EXTENSIONS_KEEP,
    PYTHON_DROP,
)
from casemate.vm.guest.tools import run

_DIRECTORIES = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "var")
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/bin", "var/run": "../run"}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/\nnobody:x:65534:65534:nobody:/:/\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/os-release": 'ID=casemate\nNAME="casemate guest"\n',
}
# The minimal kernel starts it as a program; the options are one word, for a kernel hands on no more of this line.
_INIT = """#!/usr/bin/python3 -ISu
import sys
from time import CLOCK_BOOTTIME, clock_gettime_ns
began = clock_gettime_ns(CLOCK_BOOTTIME)
sys.path.insert(0, {home!r})
from casemate.agent.main import main
sys.exit(main(began))
"""
_UUID = "63617365-6d61-7465-0000-000000000001"

# Every .py below the directories becomes a .pyc in its place. The name inside is the one that it has in the guest.
_COMPILE = """
import os, py_compile, sys
root, top, level = sys.argv[1:]
for base, dirs, files in os.walk(top):
    for name in files:
        if name.endswith(".py"):
            path = os.path.join(base, name)
            py_compile.compile(path, path + "c", dfile=path[len(root):], doraise=True, optimize=int(level),
                               invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
            os.unlink(path)
"""


# Imports every named module with nothing but the guest's library to find it in.
_IMPORT = """
import importlib, sys
root, names = sys.argv[1], sys.argv[2:]
assert all(path.startswith(root) for path in sys.path if path), sys.path
for name in names:
    importlib.import_module(name)
"""


def stage(unpacked: Path, tree: ModuleTree, wanted: Sequence[str], into: Path) -> None:
    """Make the part of the root that comes from packages.

    Arguments:
        unpacked: the tree that all packages were unpacked to.
        tree: the kernel's modules.
        wanted: which of them to take, with those that these need.
        into: the new root; must not exist.
    """
    for directory in _DIRECTORIES:
        (into / directory).mkdir(parents=True, exist_ok=True)
    for name, target in _LINKS.items():
        (into / name).symlink_to(target)
    for name, text in _FILES.items():
        (into / name).write_text(text)
    python = _python(unpacked)
    programs = [f"usr/bin/{python}", "usr/bin/crun"]
    library = _library(unpacked, python, into)
    extensions = [
        path.relative_to(unpacked).as_posix()
        for name in EXTENSIONS_KEEP
        for path in sorted((unpacked / "usr/lib" / python / "lib-dynload").glob(f"{name}.*.so"))
    ]
    for name in (*programs, *extensions):
        _copy(unpacked / name, into / name)
    (into / "usr/bin/python3").symlink_to(python)
    _libraries(unpacked, [*programs, *extensions], into)
    _compile(into, library, 2)
    modules = into / "usr/lib/modules" / tree.release
    modules.mkdir(parents=True)
    names = tree.order(wanted)
    for name in names:
        (modules / f"{name}.ko").write_bytes(tree.read(name))
    for file, text in tree.tables(names).items():
        (modules / file).write_text(text)
    # Under this name it does nothing else. Python would take a second, and the kernel asks dozens of times.
    home = into / AGENT_HOME.strip("/")
    home.mkdir(parents=True)
    _copy(next(path for name in BUSYBOX if (path := unpacked / name).exists()), home / "modprobe")


def image(staged: Path, sources: Sequence[tuple[str, bytes]], work: Path, output: Path) -> None:
    """Add the agent to a copy of the staged root and make the image.

    Arguments:
        staged: what :func:`stage` made; left as it is.
        sources: path below the agent's directory and content of each source file.
        work: an empty directory on the same file system.
        output: the image.
    """
    root = work / "root"
    # Links instead of copies: nothing below is changed in place.
    shutil.copytree(staged, root, symlinks=True, copy_function=os.link)
    home = root / AGENT_HOME.strip("/")
    for name, content in sources:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (home / "agent-init").write_text(_INIT.format(home=AGENT_HOME))
    (home / "agent-init").chmod(0o755)
    _compile(root, home, 0)
    _check_imports(root, sources)
    _plain_modes(root)
    run(
        ["mkfs.erofs", "-T0", "-U", _UUID, "--all-root", "-x-1", "-E", "force-inode-compact", output, root],
        "erofs-utils",
    )
    shutil.rmtree(root)


def _python(unpacked: Path) -> str:
    found = sorted(path.name for path in (unpacked / "usr/bin").glob("python3.*"))
    if len(found) != 1:
        raise GuestError(f"the packages hold {len(found)} Python interpreters where one is needed")
    return found[0]


def _library(unpacked: Path, python: str, into: Path) -> Path:
    source, target = unpacked / "usr/lib" / python, into / "usr/lib" / python
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source)
        parts = name.with_suffix("").parts
        dropped = any("/".join(parts[: i + 1]) in PYTHON_DROP for i in range(len(parts)))
        if dropped or parts[0].startswith("_sysconfigdata"):
            continue
        if parts[0] == "encodings" and parts[-1] not in ENCODINGS_KEEP:
            continue
        _copy(path, target / name)
    (target / "lib-dynload").mkdir(parents=True, exist_ok=True)
    return target


def _libraries(unpacked: Path, names: Iterable[str], into: Path) -> None:
    """Copy every library that the files need, to the path where the dynamic loader looks."""
    todo = list(names)
    seen: set[str] = set()
    directories = [path for base in ("usr/lib", "lib") for path in sorted((unpacked / base).glob("*-linux-gnu"))]
    while todo:
        links = Elf((unpacked / todo.pop()).read_bytes(), "a program of the guest").links()
        if links is None:
            continue
        if links.interpreter and links.interpreter not in seen:
            seen.add(links.interpreter)
            source = unpacked / links.interpreter.strip("/")
            _copy(Path(_inside(source, unpacked)), into / "usr" / links.interpreter.strip("/"))
        for soname in links.needed:
            if soname in seen or soname in {Path(name).name for name in seen}:
                continue
            seen.add(soname)
            found = next((d / soname for d in directories if os.path.lexists(d / soname)), None)
            if found is None:
                raise GuestError(f"no package of the guest holds the library {soname}")
            real = _inside(found, unpacked)
            target = into / "usr/lib" / found.parent.name / soname
            _copy(real, target)
            todo.append(real.relative_to(unpacked).as_posix())


def _inside(path: Path, root: Path) -> Path:
    """Follow links as if ``root`` were the root directory."""
    for _ in range(16):
        if not path.is_symlink():
            return path
        target = os.readlink(path)
        path = root / target.lstrip("/") if target.startswith("/") else Path(os.path.normpath(path.parent / target))
    raise GuestError(f"{path.name} is a link that leads nowhere")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copymode(source, target)


def _compile(root: Path, directory: Path, level: int) -> None:
    """Compile all code below a directory.

    Arguments:
        level: as in ``python -O``: 2 leaves out texts and assertions, which is for the library alone.
    """
    _guest_python(root, "-X", "no_debug_ranges", "-c", _COMPILE, root, directory, str(level))


def _check_imports(root: Path, sources: Iterable[tuple[str, bytes]]) -> None:
    """See to it that all that the agent imports anywhere is in the image, lest a trimmed library show at run time."""
    names: set[str] = set()
    for name, content in sources:
        for node in ast.walk(ast.parse(content, name)):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    names = {name for name in names if name.split(".")[0] != "casemate"}
    try:
        _guest_python(root, "-c", _IMPORT, root, *sorted(names))
    except GuestError as error:
        raise GuestError(f"the agent needs what the guest's Python does not have: {error}") from None


def _guest_python(root: Path, *arguments: str | Path) -> None:
    """Run the guest's interpreter on the host, through the guest's loader and with the guest's libraries."""
    loader = next(path for path in sorted((root / "usr").glob("lib*/ld-*.so.*")))
    libraries = ":".join(str(path) for path in sorted((root / "usr/lib").glob("*-linux-gnu")))
    run(
        [loader, "--library-path", libraries, root / "usr/bin/python3", "-S", "-B", *arguments],
        "libc6", env={"PYTHONHOME": str(root / "usr"), "PYTHONPATH": ""},
    )


def _plain_modes(root: Path) -> None:
    """Modes that do not depend on who builds: 755 for directories and programs, 644 for the rest."""
    for base, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(base, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.path.isdir(path) or os.stat(path).st_mode & 0o100 else 0o644)
    os.chmod(root, 0o755)

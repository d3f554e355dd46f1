"""Kernel modules: which file is which, and in what order they must be loaded.

A package's ``modules.dep`` is made when the package is installed, and ours never is: what a module depends on is read
from the module itself, from the ``depends=`` string of its ``.modinfo`` section.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path

from casemate.errors import GuestError
from casemate.vm.guest.elf import Elf

_SIGNED = b"~Module signature appended~\n"


def _canonical(name: str) -> str:
    return name.replace("-", "_")


class ModuleTree:
    """The modules of one kernel.

    Arguments:
        directory: the kernel's directory, the one that holds ``modules.builtin``.
    """

    def __init__(self, directory: Path) -> None:
        self.release = directory.name
        """The kernel's release, as in ``uname -r``."""
        self._files: dict[str, Path] = {}
        for path in sorted(directory.rglob("*.ko*")):
            self._files[_canonical(path.name.split(".ko")[0])] = path
        builtin = (directory / "modules.builtin").read_text().split()
        self._builtin = {_canonical(Path(line).name.removesuffix(".ko")) for line in builtin}

    def names(self) -> list[str]:
        """The names of all modules that are files."""
        return sorted(self._files)

    def has(self, name: str) -> bool:
        """Whether the kernel has the module, as a file or built in."""
        return _canonical(name) in self._files or _canonical(name) in self._builtin

    def read(self, name: str) -> bytes:
        """The plain content of a module's file, without its signature."""
        path = self._files[_canonical(name)]
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        elif path.suffix != ".ko":
            raise GuestError(f"kernel module {path.name} is compressed in a way that is not known")
        return unsigned(data)

    def order(self, names: Iterable[str]) -> list[str]:
        """The given modules and all that they need, each after what it needs; what is built in is left out.

        Raises:
            GuestError: a module does not exist, or modules need each other in a circle.
        """
        done: list[str] = []
        for name in names:
            self._visit(_canonical(name), done, ())
        return done

    def tables(self, names: Iterable[str]) -> dict[str, str]:
        """The files by which modprobe(8) finds what to load, by their names, as depmod(8) would make them.

        Arguments:
            names: the modules that are there, all in one directory.
        """
        needs, others = [], []
        for name in names:
            chain = self.order((name,))[-2::-1]  # what a module needs directly comes before what that needs
            needs.append(f"{name}.ko:" + "".join(f" {other}.ko" for other in chain) + "\n")
            others += [f"alias {alias} {name}\n" for alias in sorted(set(aliases(self.read(name), name)))]
        return {"modules.dep": "".join(needs), "modules.alias": "".join(others)}

    def _visit(self, name: str, done: list[str], above: tuple[str, ...]) -> None:
        if name in done or name in self._builtin:
            return
        if name in above:
            raise GuestError(f"kernel modules need each other in a circle: {' '.join((*above, name))}")
        if name not in self._files:
            raise GuestError(f"the kernel has no module {name}")
        for other in depends(self.read(name), name):
            self._visit(_canonical(other), done, (*above, name))
        done.append(name)


def depends(module: bytes, name: str) -> list[str]:
    """The names in a module's ``depends=`` string."""
    return [word for text in _information(module, name, b"depends=") for word in text.split(",") if word]


def aliases(module: bytes, name: str) -> list[str]:
    """Other names under which the kernel may ask for a module, or patterns of them."""
    return [text for text in _information(module, name, b"alias=") if text and " " not in text]


def _information(module: bytes, name: str, key: bytes) -> list[str]:
    info = Elf(module, f"kernel module {name}").section(".modinfo")
    return [line[len(key) :].decode() for line in (info or b"").split(b"\0") if line.startswith(key)]


def unsigned(module: bytes) -> bytes:
    """A module without its signature, if it has one.

    Checking a signature takes an emulated processor 5 ms a module and adds nothing here: the package's checksum was
    verified, and whoever could change the initial root could change the kernel beside it. Source:
    ``struct module_signature`` in include/linux/module_signature.h: 8 bytes and the length of the signature, big
    endian, before the marker.
    """
    if not module.endswith(_SIGNED):
        return module
    end = len(module) - len(_SIGNED)
    length = int.from_bytes(module[end - 4 : end], "big")
    if length + 12 > end:
        raise GuestError("a kernel module is damaged: its signature is longer than itself")
    return module[: end - 12 - length]

"""One file with the compiled code of all modules: finding 300 modules one by one is half of what a start costs.

The file lies where Python keeps compiled code (``__pycache__`` of the package), is as trustworthy as what lies beside
it, and goes stale in the same way: a module whose source has another size or time than when it was compiled is
imported as ever. It is mapped into memory, so modules can also be executed where there are no files any more, as in a
sentry that has shut itself in. Without it everything works, only slower. What this module imports Python has imported
at its own start.

Beside modules it has what :mod:`dataclasses` and :mod:`re` would compile while those are executed, by the text that is
compiled: a third of what an import costs then (:mod:`casemate.texts`).

The file: a line with what it is for, the length of the index and the index, as :mod:`marshal` has it, then the code.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib import ModuleSpec
from types import CodeType, ModuleType

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

_PYTHON = f"{sys.implementation.cache_tag} {sys.flags.optimize} {sys.version}".replace("\n", " ")
_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_HEADER = f"casemate modules 3 {_PYTHON} {_PACKAGE!r}\n".encode()  # a copy of the package has other sources
FILE = os.path.join(_PACKAGE, "__pycache__", f"modules.{sys.implementation.cache_tag}")
ALSO = (
    "argparse", "array", "ast", "bisect", "contextlib", "ctypes", "dataclasses", "enum", "fcntl", "heapq", "json",
    "logging", "logging.handlers", "pathlib", "queue", "re", "selectors", "shutil", "signal", "socket", "struct",
    "subprocess", "tempfile", "textwrap", "threading", "tomllib", "traceback", "typing", "weakref",
)  # fmt: skip
"""Of the standard library, with all that they import."""
Entry = tuple[bool, str, int, int, int, int]
"""Whether it is a package, its source's path, time (ns) and size, where its code begins, and its length."""


class Bundle:
    """A finder and loader (:mod:`importlib`) of the modules in the file.

    Arguments:
        data: the code, mapped.
        directories: casemate's packages, and when (ns) they last got or lost a file.
        index: by module's name.
        calls: which module of the sentry serves which system call, by number: so it need not import all to know.
        hooks: those of its modules that have a function ``before_isolation``.
        texts: where compiled texts are, and their lengths, see :mod:`casemate.texts`.
    """

    def __init__(
        self, data: memoryview, directories: dict[str, int], index: dict[str, Entry], calls: dict[int, str],
        hooks: list[str], texts: dict[bytes, tuple[int, int]],
    ) -> None:  # fmt: skip
        self._data = data
        self._texts = texts
        self._directories = directories
        self._index = index
        self.calls = calls
        self.hooks = hooks
        self.sealed = False
        """There are no files any more to compare with."""
        self.stale = False
        """Something in it is no longer what is in the files."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """For the import system."""
        entry = self._index.get(name)
        if entry is None:
            return None
        if not self.sealed:
            try:
                found = os.stat(entry[1])
            except OSError:
                self.stale = True
                return None
            if found.st_mtime_ns != entry[2] or found.st_size != entry[3]:
                self.stale = True
                return None
        spec = ModuleSpec(name, self, origin=entry[1], is_package=entry[0])  # type: ignore[arg-type]  # it is one by its methods
        spec.has_location = True
        if entry[0]:
            spec.submodule_search_locations = [os.path.dirname(entry[1])]
        return spec

    def fresh(self, names: list[str]) -> bool:
        """Whether these modules are what is in the files, so that they need not be looked at when they are imported."""
        for name in names:
            if not self.stale and self.find_spec(name) is None:
                self.stale = True
        return not self.stale

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """For the import system: an ordinary module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """For the import system."""
        exec(self.get_code(module.__name__), module.__dict__)
        if module.__name__ in ("dataclasses", "re._compiler"):
            from casemate import texts

            texts.give(module, self._text)

    def _text(self, digest: bytes) -> Any:
        place = self._texts.get(digest)
        return None if place is None else marshal.loads(self._data[place[0] : sum(place)])

    def get_code(self, name: str) -> CodeType:
        """For :mod:`runpy`, too."""
        start, length = self._index[name][4:]
        code: CodeType = marshal.loads(self._data[start : start + length])
        return code

    def is_package(self, name: str) -> bool:
        """For :mod:`runpy`."""
        return self._index[name][0]

    def below(self, package: str) -> list[str]:
        """All modules in a package, or none where a module may have come or gone since the file was made."""
        if not self.sealed:
            for directory, time in self._directories.items():
                try:
                    self.stale = self.stale or os.stat(directory).st_mtime_ns != time
                except OSError:
                    self.stale = True
            if self.stale:
                return []
        return [name for name in self._index if name.startswith(f"{package}.")]

    def get_source(self, name: str) -> str | None:
        """For tracebacks, which read the file themselves."""
        return None


def use() -> Bundle | None:
    """Import from the file from now on, where there is one for this Python. Returns what was put in front of the other
    finders."""
    for finder in sys.meta_path:
        if isinstance(finder, Bundle):
            return finder
    try:
        fd = os.open(FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if fd < 3:  # somebody has closed a standard descriptor: nothing of ours may take its place
        os.close(fd)
        return None
    try:
        import mmap

        data = memoryview(mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ))
        start = len(_HEADER) + 8
        if data[: start - 8] != _HEADER:
            return None
        end = start + int.from_bytes(data[start - 8 : start], "little")
        bundle = Bundle(data[end:], *marshal.loads(data[start:end]))
    except (OSError, ValueError, EOFError, TypeError):
        return None
    finally:
        os.close(fd)
    sys.meta_path.insert(0, bundle)
    return bundle


def below(package: str) -> list[str]:
    """The names of all modules in a package and the packages in it, in an order that is always the same."""
    found = use()
    if found is not None and (names := found.below(package)):
        return names
    return sorted(name for name in _ours() if name.startswith(f"{package}."))


def wanted() -> bool:
    """Whether it is worth while to make the file anew, and Python may leave compiled code at all."""
    found = use()
    if sys.dont_write_bytecode or (found is not None and not found.stale):
        return False
    place = os.path.dirname(FILE)
    return os.access(place if os.path.isdir(place) else _PACKAGE, os.W_OK)


def refresh() -> None:
    """Have the file made anew by a process of its own, which nobody waits for, where it is wanted."""
    if wanted():
        import subprocess
        import threading

        argv = [sys.executable, "-P", "-m", "casemate.bundle"]
        null = subprocess.DEVNULL
        more = {"stdin": null, "stdout": null, "stderr": null, "start_new_session": True, "cwd": "/"}
        threading.Thread(target=subprocess.run, args=(argv,), kwargs=more, name="bundle", daemon=True).start()


def write() -> bool:
    """Make the file anew, for all of casemate and for what this process has imported of the standard library.

    Returns whether it is there; it is not where the directory cannot be written.
    """
    from casemate import texts

    noted = texts.note()  # before anything is imported
    import contextlib
    import tempfile
    from importlib.machinery import SourceFileLoader

    sentry = _sentry()  # first: the standard library's share is what was imported
    ours = _ours()
    for package in {os.path.dirname(path) for path in ours.values()}:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.join(package, "__pycache__"), exist_ok=True)  # now: it changes its parent's time
    sources = _standard_library() | ours
    directories = {one: os.stat(one).st_mtime_ns for one in {os.path.dirname(path) for path in ours.values()}}
    index: dict[str, Entry] = {}
    codes: list[bytes] = []
    place = 0
    for name, path in sorted(sources.items()):
        try:
            found = os.stat(path)
            code = SourceFileLoader(name, path).get_code(name)
        except (OSError, SyntaxError, ImportError):
            continue
        assert code is not None
        codes.append(marshal.dumps(code))
        is_package = os.path.basename(path) == "__init__.py"
        index[name] = is_package, path, found.st_mtime_ns, found.st_size, place, len(codes[-1])
        place += len(codes[-1])
    _import_all()
    places: dict[bytes, tuple[int, int]] = {}
    for digest, text in noted.items():
        codes.append(marshal.dumps(text))
        places[digest] = place, len(codes[-1])
        place += len(codes[-1])
    head = marshal.dumps((directories, index, *sentry, places))
    try:
        fd, temporary = tempfile.mkstemp(prefix=".modules.", dir=os.path.dirname(FILE))
    except OSError:
        return False
    try:
        with open(fd, "wb") as file:
            file.write(b"".join((_HEADER, len(head).to_bytes(8, "little"), head, *codes)))
        os.chmod(temporary, 0o644)
        os.replace(temporary, FILE)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return False
    return True


def _sentry() -> tuple[dict[int, str], list[str]]:
    """``calls`` and ``hooks`` of :class:`Bundle`."""
    import contextlib
    import importlib

    with contextlib.suppress(ImportError):
        from casemate.sentry.syscalls import table

        calls = {number: entry.handler.__module__ for number, entry in table.load().items()}
        names = [name for name in below("casemate.sentry") if not name.endswith("__main__")]
        return calls, [name for name in names if hasattr(importlib.import_module(name), "before_isolation")]
    return {}, []  # a part of casemate


def _import_all() -> None:
    """Have everything compiled that modules compile when they are imported."""
    import contextlib
    import importlib

    for name in below("casemate"):
        if not name.endswith("__main__"):
            with contextlib.suppress(Exception):  # whatever it is, who needs the module will come upon it
                importlib.import_module(name)


def _ours() -> dict[str, str]:
    found = {}
    for directory, directories, files in os.walk(_PACKAGE):
        directories[:] = [name for name in directories if name.isidentifier() and name != "__pycache__"]
        package = "casemate" + directory.removeprefix(_PACKAGE).replace(os.sep, ".")
        for file in files:
            if file.endswith(".py"):
                name = package if file == "__init__.py" else f"{package}.{file.removesuffix('.py')}"
                found[name] = os.path.join(directory, file)
    return found


def _standard_library() -> dict[str, str]:
    from casemate import late

    late.now()
    late.now(ALSO)
    found = {}
    place = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        outside = not path.startswith(place) or path.startswith(os.path.join(place, "site-packages"))
        if not outside and path.endswith(".py") and name == getattr(module, "__name__", ""):
            found[name] = path
    return found


if __name__ == "__main__":
    os.nice(10)
    below("casemate")  # so that it is compared with the files
    current = use()
    if current is None or current.stale or any(current.find_spec(name) is None for name in below("casemate")):
        sys.exit(0 if write() else f"casemate: {FILE} cannot be written")

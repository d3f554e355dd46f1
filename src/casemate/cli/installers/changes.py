"""Changes to files that can be shown, made at once, and taken back to the byte."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import jsonfile
from casemate.errors import ConfigError, HostError, StateError

MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file's content before and after; None where there is no file."""

    path: Path
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A symbolic link to be made, or with ``remove`` to be taken away."""

    path: Path
    target: Path
    remove: bool = False


def read(path: Path) -> str | None:
    """A configuration file; None when it is not there.

    Raises:
        ConfigError: it is no ordinary file, too large, or no text.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(f"{path} is a link that leads nowhere", "mend or remove it first") from None
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"{path} is not an ordinary file", "name another with --file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES >> 20} MiB", "this is no configuration of an engine")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is damaged: it is not text in UTF-8", "mend it first") from None


def missing_directories(path: Path) -> list[str]:
    """The directories that :func:`write` has to make for a file, the innermost first."""
    missing: list[str] = []
    directory = Path(os.path.realpath(path)).parent
    while not directory.exists():
        missing.append(str(directory))
        directory = directory.parent
    return missing


def write(path: Path, content: str) -> None:
    """Replace a file's content at once, keeping its mode, owner, access list and label; a link is followed.

    Raises:
        HostError: it cannot be written; the old file is then untouched.
    """
    real = Path(os.path.realpath(path))
    temporary = real.with_name(f".{real.name}.casemate.{os.getpid()}")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        try:
            before: os.stat_result | None = os.stat(real)
        except FileNotFoundError:
            before = None
        mode = stat.S_IMODE(before.st_mode) if before else 0o644
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(content.encode())
                file.flush()
                if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, before.st_uid, before.st_gid)
                os.fchmod(fd, mode)
                if before is not None:
                    _keep_attributes(real, fd)
                os.fsync(fd)
            os.rename(temporary, real)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}", _hint(error)) from None


def _keep_attributes(path: Path, fd: int) -> None:
    """Give an open file the extended attributes of another one (xattr(7)), as far as it can have them."""
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            with contextlib.suppress(OSError):
                os.setxattr(fd, name, os.getxattr(path, name))


def remove(path: Path, directories: list[str]) -> None:
    """Remove a file, and directories made for it that are empty now. Raises HostError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"{path} cannot be removed: {error.strerror}", _hint(error)) from None
    for directory in directories:
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def link(change: LinkChange) -> None:
    """Make or take away a link. Raises HostError."""
    try:
        if change.remove:
            change.path.unlink(missing_ok=True)
            return
        change.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = change.path.with_name(f".{change.path.name}.casemate.{os.getpid()}")
        os.symlink(change.target, temporary)
        try:
            os.rename(temporary, change.path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise HostError(f"{change.path} cannot be changed: {error.strerror}", _hint(error)) from None


def _hint(error: OSError) -> str:
    return "run it as root" if isinstance(error, PermissionError) else ""


def diff(change: FileChange) -> str:
    """A unified diff, as diff(1) prints it; empty when nothing changes."""
    import difflib

    old, new = (change.before or "").splitlines(True), (change.after or "").splitlines(True)
    names = [str(change.path) if text is not None else "/dev/null" for text in (change.before, change.after)]
    lines = difflib.unified_diff(old, new, names[0], names[1])
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Record:
    """What an installation did, so that it can be undone to the byte while nobody has edited the file since."""

    file: str
    before: str | None
    after: str
    """SHA-256 of what was written; empty where the file had all that is needed before."""
    directories: tuple[str, ...] = ()
    links: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return {
            "file": self.file, "before": self.before, "after": self.after,
            "directories": list(self.directories), "links": list(self.links),
        }  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """The record in a file; None when it is not there or of no use, which only makes undoing less exact."""
        try:
            value = jsonfile.read(path)
            file, before, after = value["file"], value["before"], value["after"]
            directories, links = tuple(value["directories"]), tuple(value["links"])
        except (OSError, StateError, KeyError, TypeError):
            return None
        strings = (file, after, *directories, *links, *(() if before is None else (before,)))
        return cls(file, before, after, directories, links) if all(isinstance(s, str) for s in strings) else None

    def save(self, path: Path) -> None:
        """Keep it. Raises HostError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            jsonfile.write(path, self.to_json())
        except OSError as error:
            raise HostError(f"{path} cannot be written: {error.strerror}", _hint(error)) from None


def digest(content: str) -> str:
    """What a record knows a content by."""
    return hashlib.sha256(content.encode()).hexdigest()

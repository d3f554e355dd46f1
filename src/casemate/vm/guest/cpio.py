"""A writer of cpio archives in the "newc" form that the kernel unpacks as its initial root.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Written here and not by cpio(1)
because the bytes must depend on names and contents alone, and because device nodes must not need privileges.
"""

from __future__ import annotations

import stat

_TRAILER = "TRAILER!!!"


class Archive:
    """An archive that grows in memory. Everything belongs to root and dates from the epoch."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory. Parents must have been added before."""
        self._entry(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._entry(path, stat.S_IFCHR | mode, b"", major, minor)

    def finish(self) -> bytes:
        """The whole archive, with its trailer, padded to 512 bytes."""
        self._entry(_TRAILER, 0, b"")
        data = b"".join(self._parts)
        return data + bytes(-len(data) % 512)

    def _entry(self, path: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        name = path.strip("/").encode() + b"\0"
        trailer = path == _TRAILER
        if not trailer:
            self._inode += 1
        fields = (
            0 if trailer else self._inode, mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 0, len(content),
            0, 0, major, minor, len(name), 0,
        )
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._parts += [header, bytes(-len(header) % 4), content, bytes(-len(content) % 4)]

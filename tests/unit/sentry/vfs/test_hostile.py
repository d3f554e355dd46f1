"""Whatever an application passes, calls that are about files answer with a result or an error, never otherwise."""

from __future__ import annotations

import os
import random

import pytest

from casemate.sentry.errno import SysError
from casemate.sentry.syscalls import table
from tests.unit.sentry.vfs.calls import AT_FDCWD, BASE, SCRATCH, Caller, Waits

MODULES = (
    "open", "readwrite", "vectors", "sync", "stat", "dirs", "links", "attrs", "xattr", "descriptors", "locks", "mounts",
    "sendfile", "inotify",
)  # fmt: skip
U64 = (1 << 64) - 1
INTERESTING = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 100, 255, 4095, 4096, 4097, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, 1 << 47, (1 << 62) + 5, (1 << 63) - 1, 1 << 63, U64, U64 - 1, U64 - 99, AT_FDCWD & U64,
    AT_FDCWD & 0xFFFFFFFF, BASE, BASE + 64, BASE + 128, BASE + 192, BASE + 256, SCRATCH, SCRATCH + 1, 0x0010_0000_0000,
    os.O_CREAT | os.O_RDWR, os.O_DIRECTORY, os.O_PATH, 0x1000, 0x100, 0x400, 0x800, 0o100644, 0o010644, 0o020644,
]  # fmt: skip
PATHS = [b"/file", b"/dir", b"/link", b"/dir/fifo", b"", b"/none/x", b"dir/../file", b"loop", b"user.x", b"/dir/sub"]


def calls() -> list[table.Entry]:
    wanted = {f"casemate.sentry.syscalls.{name}" for name in MODULES}
    return [entry for entry in table.load().values() if entry.handler.__module__ in wanted]


def world() -> Caller:
    caller = Caller()
    caller.put(b"/file", b"some data" * 1000)
    caller("mkdir", b"/dir", 0o755)
    caller("symlink", b"file", b"/link")
    caller("symlink", b"loop", b"/loop")
    caller("mknod", b"/dir/fifo", 0o010644)
    for path, flags in ((b"/file", os.O_RDWR), (b"/file", os.O_RDONLY), (b"/dir", os.O_RDONLY), (b"/file", os.O_PATH)):
        assert caller.open(path, flags) >= 0
    assert caller("inotify_init1", 0) >= 0
    assert caller("pipe", SCRATCH) in (0, -38)
    return caller


@pytest.mark.parametrize("seed", range(4))
def test_any_arguments(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.sentry.signals.send.send_signal", lambda task, number: None)
    chosen = random.Random(seed)
    entries = calls()
    assert len(entries) > 100
    caller = world()
    for _ in range(6000):
        entry = chosen.choice(entries)
        for index, path in enumerate(chosen.sample(PATHS, 5)):
            caller.memory.write(BASE + 64 * index, path + b"\0")
        if chosen.random() < 0.3:
            caller.memory.write(SCRATCH, chosen.randbytes(256))
        args = [
            chosen.choice(INTERESTING) if chosen.random() < 0.85 else chosen.getrandbits(64)
            for _ in range(entry.arguments)
        ]
        # Descriptors of which something is there, most of the time.
        if args and chosen.random() < 0.5:
            args[0] = chosen.randrange(9)
        caller.task.fs.cwd = caller.task.fs.root if chosen.random() < 0.5 else caller.task.fs.cwd
        try:
            result = caller.raw(entry.name, *args)
        except Waits:
            caller.task.blocked = {}
            continue
        except Exception as error:
            assert isinstance(error, SysError), f"{entry.name}{tuple(map(hex, args))}: {error!r}"
            caller.task.blocked = {}
            continue
        assert -(1 << 63) <= result < 1 << 64
        if entry.name in ("chroot", "pivot_root", "close_range", "umount2"):
            caller = world()
        if len(caller.task.files) > 200:
            caller = world()

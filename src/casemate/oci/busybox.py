"""The image that is built into casemate: a static busybox and nothing else, made at first use without a network.

The same program gives the same image, digest for digest: names in order, times at the epoch.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

from casemate.errors import HostError
from casemate.oci.manifest import LayerSource, Loaded, digest_of, host_architecture

PROGRAMS = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
_HINT = "install the Debian package busybox-static"
_MAX_PROGRAM = 64 << 20
_APPLET = re.compile(r"(?:usr/)?s?bin/[A-Za-z0-9\[._+-]{1,64}\Z")
_DIRECTORIES = (
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
    ("var/www", 0o755),
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
    "www-data:x:33:33:www-data:/var/www:/bin/false\n"
    "nobody:x:65534:65534:nobody:/home:/bin/false\n",
    "etc/group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nusers:x:100:\nwww-data:x:33:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/os-release": 'ID=busybox\nNAME="busybox, built into casemate"\n',
}


def is_static(program: bytes) -> bool:
    """Whether these bytes are an ELF program that needs no interpreter (ELF specification: no PT_INTERP segment)."""
    if len(program) < 64 or program[:4] != b"\x7fELF" or program[4] not in (1, 2) or program[5] not in (1, 2):
        return False
    order = "little" if program[5] == 1 else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(program[at : at + size], order)  # type: ignore[arg-type]

    wide = program[4] == 2
    table = number(32, 8) if wide else number(28, 4)
    size, count = (number(54, 2), number(56, 2)) if wide else (number(42, 2), number(44, 2))
    if size < 4 or not count or table + size * count > len(program):
        return False
    return all(number(table + i * size, 4) != 3 for i in range(count))


def find(extra: tuple[Path, ...] = ()) -> Path:
    """The first static busybox among :data:`PROGRAMS` and ``extra``.

    Raises:
        HostError: there is none.
    """
    for path in PROGRAMS + extra:
        try:
            if path.stat().st_size <= _MAX_PROGRAM and is_static(path.read_bytes()):
                return path
        except OSError:
            continue
    raise HostError("no statically linked busybox for the built-in image", _HINT)


def applets(program: Path) -> list[str]:
    """Where a busybox's commands belong, such as ``bin/sh``.

    Raises:
        HostError: it does not run or does not say.
    """
    try:
        result = subprocess.run(
            [program, "--list-full"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{program} does not run ({error})", _HINT) from None
    names = {line for line in result.stdout.split() if _APPLET.match(line)}
    if result.returncode or "bin/sh" not in names:
        raise HostError(f"{program} does not list its commands", _HINT)
    return sorted(names - {"bin/busybox"})


def make_layer(program: bytes, names: list[str]) -> bytes:
    """The image's layer, an uncompressed tar: the program, a hard link for each of ``names``, the usual directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode in (("./", 0o755), *_DIRECTORIES):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            tar.addfile(info)
        files = [("bin/busybox", 0o755, program)]
        files += [(name, 0o644, text.encode()) for name, text in sorted(_FILES.items())]
        for name, mode, data in files:
            info = tarfile.TarInfo(name)
            info.mode, info.size = mode, len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in names:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname = tarfile.LNKTYPE, 0o755, "bin/busybox"
            tar.addfile(info)
    return buffer.getvalue()


def load(extra: tuple[Path, ...] = ()) -> Loaded:
    """The built-in image.

    Arguments:
        extra: more places to look for the program, such as the guest bundle's.

    Raises:
        HostError: no static busybox on this host.
    """
    program = find(extra)
    layer = make_layer(program.read_bytes(), applets(program))
    config = {
        "architecture": host_architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Cmd": ["sh"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Labels": {"casemate.embedded": "busybox"},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "casemate"}],
    }
    raw_config = json.dumps(config, sort_keys=True).encode()
    media_type = "application/vnd.oci.image.layer.v1.tar"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(raw_config),
            "size": len(raw_config),
        },
        "layers": [{"mediaType": media_type, "digest": digest_of(layer), "size": len(layer)}],
    }
    source = LayerSource(lambda: io.BytesIO(layer), media_type, digest_of(layer), len(layer))
    return Loaded(json.dumps(manifest, sort_keys=True).encode(), raw_config, (source,))


def bundle_programs(root: Path) -> tuple[Path, ...]:
    """A busybox that a guest bundle below ``root`` keeps as a file of its own."""
    guest = root / "guest"
    return tuple(sorted(guest.glob("*/busybox"))) if os.path.isdir(guest) else ()

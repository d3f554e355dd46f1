"""Images made of Debian packages, for the tests and benchmarks: no registry needed.

``build(cache)`` makes one once, with mmdebstrap, as an OCI image layout below the cache directory; its name there is
made of everything that shapes it. By hand, as root: ``python scripts/debian_image.py CACHE [TAG]`` prints the layout's
path.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zstandard

PACKAGES = (
    "bash", "coreutils", "python3", "python3-venv", "git", "gcc", "libc6-dev", "make", "ca-certificates", "procps",
    "iproute2",
)  # fmt: skip
PROGRAMS = (
    *PACKAGES, "apache2", "bc", "bsdextrautils", "busybox", "bzip2", "default-jdk-headless", "file", "findutils",
    "gawk", "golang-go", "gzip", "libapache2-mod-php", "mariadb-server", "nginx-light",
    "nodejs", "perl", "php-cli", "postgresql", "python3-pip", "redis-server", "sqlite3", "strace", "tar", "wget",
    "xz-utils", f"libpython3.{sys.version_info.minor}-testsuite",
)  # fmt: skip
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
TAG = "debian"
PROGRAMS_TAG = "programs"
IMAGES = {TAG: PACKAGES, PROGRAMS_TAG: PROGRAMS}
"""By tag: a small one, and one with the servers, languages and tools that many use."""
HOOKS = {
    # Installing Java makes links there, and fails without the directory, which LEFT_OUT leaves out.
    PROGRAMS_TAG: ['--essential-hook=mkdir -p "$1/usr/share/man/man1"'],
}
"""Further options of mmdebstrap, by tag."""
RECIPE = 1
"""To be raised when something else below changes what comes out."""


def build(cache: Path, progress: Callable[[str], None] = lambda text: None, tag: str = TAG) -> Path:
    """Make an image unless it is there; several processes may ask at once, one works.

    Arguments:
        cache: where to keep it.
        progress: gets a line for each step.
        tag: which one, of :data:`IMAGES`.

    Returns:
        The image layout; the image's tag in it is ``tag``.

    Raises:
        RuntimeError: mmdebstrap failed; the message ends with its last lines.
    """
    suite = _suite()
    packages = IMAGES[tag]
    hooks = HOOKS.get(tag, [])
    key = hashlib.sha256(json.dumps([RECIPE, suite, packages, LEFT_OUT, *hooks]).encode()).hexdigest()[:16]
    home = cache / "debian-image"
    home.mkdir(parents=True, exist_ok=True)
    layout = home / key
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if layout.exists():
            return layout
        work = home / f"{key}.new"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        progress(f"mmdebstrap {suite}, {len(packages)} packages and what they need")
        _bootstrap(suite, work / "root.tar", packages, hooks)
        progress("packing the layer")
        _pack(work, tag)
        (work / "root.tar").unlink()
        os.rename(work, layout)
    return layout


def _suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.split("=", 1)[1].strip('"')
    raise RuntimeError("/etc/os-release names no VERSION_CODENAME: this is made for Debian")


def _bootstrap(suite: str, tar: Path, packages: Sequence[str], hooks: Sequence[str]) -> None:
    # The host's own package sources, so that whatever mirror the host can reach is used.
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--include=" + ",".join(packages)]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    # Options given to mmdebstrap stay behind in the tree; an image should not have them.
    command.append('--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$1"/etc/apt/apt.conf.d/99mmdebstrap')
    command += [*hooks, suite, str(tar)]
    command += [str(path) for path in sources if path.is_file() and path.suffix in (".list", ".sources")]
    # Of the environment, what reaching the network may need and nothing that would shape the result.
    environment = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": "1700000000", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("mmdebstrap failed: " + "\n".join(done.stderr.splitlines()[-10:]))


def _pack(work: Path, tag: str) -> None:
    """Turn ``root.tar`` into an image layout with one zstd layer."""
    blobs = work / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    whole, packed = hashlib.sha256(), hashlib.sha256()
    layer = blobs / "layer"
    compressor = zstandard.ZstdCompressor(level=3, threads=2).compressobj()
    with open(work / "root.tar", "rb") as source, open(layer, "wb") as target:
        while block := source.read(1 << 20):
            whole.update(block)
            out = compressor.compress(block)
            packed.update(out)
            target.write(out)
        out = compressor.flush()
        packed.update(out)
        target.write(out)
    size = layer.stat().st_size
    layer.rename(blobs / packed.hexdigest())

    def blob(value: dict[str, Any], media_type: str) -> dict[str, Any]:
        data = json.dumps(value, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    config = blob(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{whole.hexdigest()}"]},
        },
        "application/vnd.oci.image.config.v1+json",
    )
    manifest = blob(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                    "digest": f"sha256:{packed.hexdigest()}",
                    "size": size,
                }
            ],
        },
        "application/vnd.oci.image.manifest.v1+json",
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (work / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (work / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), lambda text: print(text, file=sys.stderr), *sys.argv[2:3]))

"""A store of its own for each test, and a registry server on the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from casemate.config import Config
from casemate.oci.store import ImageStore


@pytest.fixture
def as_root() -> None:
    """For tests that make device nodes, owners or attributes of overlayfs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(root=tmp_path / "root", run=tmp_path / "run")


@pytest.fixture
def store(config: Config, as_root: None) -> ImageStore:
    return ImageStore(config)


class Registry:
    """A running registry; ``data`` is its storage."""

    def __init__(self, host: str, data: Path) -> None:
        self.host = host
        self.data = data

    def push(self, source: str, name: str) -> None:
        """Push an image, named as skopeo names sources."""
        subprocess.run(
            [
                "skopeo",
                "copy",
                "--quiet",
                "--preserve-digests",
                "--dest-tls-verify=false",
                source,
                f"docker://{self.host}/{name}",
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def blob(self, digest: str) -> Path:
        """Where the server keeps a blob."""
        algorithm, _, digits = digest.partition(":")
        return self.data / "docker/registry/v2/blobs" / algorithm / digits[:2] / digits / "data"


def _program() -> str:
    cache = Path(os.environ.get("CASEMATE_CACHE", Path(__file__).parents[3] / ".cache"))
    found = shutil.which("docker-registry") or shutil.which("docker-registry", path=str(cache / "tools/bin"))
    if found is None or shutil.which("skopeo") is None:
        pytest.skip("needs docker-registry and skopeo, which 'make setup' installs")
    return found


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The registry server of Debian's docker-registry, without TLS, on a free port."""
    program = _program()
    top = tmp_path_factory.mktemp("registry")
    (top / "data").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (top / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {top}/data}}, cache: {{}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
    )
    process = subprocess.Popen(
        [program, "serve", str(top / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    listening = threading.Event()
    reader = threading.Thread(target=_watch, args=(process.stderr, top / "log", listening))
    reader.start()
    if not listening.wait(30):
        process.kill()
        pytest.fail(f"the registry did not start: {(top / 'log').read_text()}")
    try:
        yield Registry(f"127.0.0.1:{port}", top / "data")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        reader.join(timeout=20)


def _watch(lines: IO[str] | None, path: Path, listening: threading.Event) -> None:
    """Keep the server's log, and say when it listens."""
    assert lines is not None
    with lines, open(path, "w") as log:
        for line in lines:
            log.write(line)
            log.flush()
            if "listening on" in line:
                listening.set()

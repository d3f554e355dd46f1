"""Images for engines, made of the busybox that is built into casemate: no registry needed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from casemate.oci import busybox

BOX = "localhost/box:latest"
"""Busybox; its command is ``sh``."""
PAUSE = "localhost/pause:latest"
"""What holds a pod's sandbox: it waits, reaps children, and ends by SIGTERM."""
PYTHON_VOLUME = "/usr:/host/usr:ro"
"""The volume with which :data:`PYTHON` runs: busybox serves no UDP, and knows no sockets but IP's."""
_LIBRARIES = "/host/usr/lib/x86_64-linux-gnu"
PYTHON = f"PYTHONHOME=/host/usr {_LIBRARIES}/ld-linux-x86-64.so.2 --library-path {_LIBRARIES} /host/usr/bin/python3 -SE"
"""The host's Python in a container, as a shell's words."""
_WAIT = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done"


def archive(path: Path) -> None:
    """Write both images to a file as ``docker save`` does; ``docker``, ``podman`` and ``ctr`` all read that."""
    program = busybox.find()
    layer = busybox.make_layer(program.read_bytes(), busybox.applets(program))
    digest = hashlib.sha256(layer).hexdigest()
    files = {f"{digest}/layer.tar": layer}
    manifest = []
    for name, command in ((BOX, ["sh"]), (PAUSE, ["sh", "-c", _WAIT])):
        config = json.dumps(_config(command, digest), sort_keys=True).encode()
        file = f"{hashlib.sha256(config).hexdigest()}.json"
        files[file] = config
        manifest.append({"Config": file, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]})
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _config(command: list[str], layer: str) -> dict[str, Any]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Cmd": command, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "casemate"}],
    }

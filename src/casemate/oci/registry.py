"""Registries, by way of skopeo: it knows their protocols, credentials and mirrors; nothing that it says is believed.

The manifest is fetched first and by itself. From its digest we know whether there is anything to do, and from its list
which layers the store has: for those skopeo finds a file of the right size in its place and downloads nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import BadImage, CasemateError, HostError, ImageError, ImageNotFound
from casemate.oci import imageconfig, manifest
from casemate.oci.files import Directory, check_space, read
from casemate.oci.importer import Progress, human
from casemate.oci.limits import Limits
from casemate.oci.manifest import Descriptor, LayerSource, Loaded
from casemate.oci.reference import Reference

_STALL = 180.0
"""Seconds without a byte after which a download is given up."""
_TAIL = 64 << 10

_NETWORK = (
    "dial tcp",
    "no such host",
    "connection refused",
    "timeout",
    "unreachable",
    "connection reset",
    "pinging container",
)
_MESSAGE = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Remote:
    """An image as a registry describes it. ``digests``: those of its manifest and of the index that led there."""

    reference: Reference
    manifest: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]
    digests: tuple[str, ...]


def look(reference: Reference, work: Path) -> Remote:
    """Fetch an image's manifest, the one for this host.

    Arguments:
        work: an empty directory for what skopeo writes.

    Raises:
        ImageNotFound: the registry has no such image, or does not show it.
        BadImage: a wrong digest, or a manifest that breaks its specification.
        HostError: no skopeo, or no way to the registry.
    """
    data = _inspect(reference, work)
    digest = reference.digest or manifest.digest_of(data)
    manifest.check_digest(data, digest, "the manifest")
    digests = [digest]
    value = imageconfig.load_json(data, "the manifest", limit=manifest.MAX_MANIFEST)
    if manifest.is_index(value):
        found = manifest.choose(value, f"image {reference.display}")
        data = manifest.check_digest(_inspect(reference.at(found.digest), work), found.digest, "the manifest")
        digests.append(found.digest)
    config, layers = manifest.read_manifest(data)
    return Remote(reference, data, config, layers, tuple(f"{reference.repository}@{each}" for each in digests))


def download(
    remote: Remote,
    work: Path,
    known: Callable[[str], int | None],
    limits: Limits,
    progress: Progress,
) -> Loaded:
    """Fetch configuration and layers.

    Arguments:
        work: as for :func:`look`; the layers are in it until the caller removes it.
        known: the size of a compressed layer that the store has, by its digest.

    Raises:
        BadImage, ImageNotFound, HostError: as :func:`look`.
    """
    blobs = work / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    wanted = 0
    for layer in remote.layers:
        if layer.size > limits.blob_bytes:
            raise BadImage(f"a layer is larger than {limits.blob_bytes} bytes")
        if known(layer.digest) == layer.size and layer.digest.startswith("sha256:"):
            with open(blobs / layer.digest.partition(":")[2], "wb") as file:
                file.truncate(layer.size)
        else:
            wanted += layer.size
    check_space(work, wanted, limits)
    exact = remote.reference.at(remote.digests[-1].rpartition("@")[2])
    command = [
        "copy",
        "--quiet",
        "--retry-times",
        "2",
        "--dest-oci-accept-uncompressed-layers",
        *_tls(exact, "--src-tls-verify"),
        f"docker://{exact.name}",
        f"oci:{work}/layout:image",
    ]
    meter = _Meter(work / "layout", wanted, progress)
    _run(command, work, remote.reference, meter.tick)
    files = Directory(work / "layout")
    try:
        # Out of a manifest of Docker's, skopeo makes one of OCI, and a configuration that goes with it.
        name = "blobs/" + remote.config.digest.replace(":", "/")
        there = files.size(name) >= 0
        raw = read(files, name, imageconfig.MAX_BYTES) if there else _inspect(exact, work, "--config")
    finally:
        files.close()
    manifest.check_digest(raw, remote.config.digest, "the image configuration")
    meter.done()
    return Loaded(remote.manifest, raw, tuple(_source(work / "layout", layer) for layer in remote.layers))


def _source(layout: Path, layer: Descriptor) -> LayerSource:
    path = layout / "blobs" / layer.digest.replace(":", "/")
    return LayerSource(lambda: open(path, "rb", buffering=0), layer.media_type, layer.digest, layer.size)


class _Meter:
    """Reports how a download goes, once a second, and sees when it stands still."""

    def __init__(self, directory: Path, total: int, progress: Progress) -> None:
        self._directory, self._total, self._progress = directory, total, progress
        self._begun = self._moved = time.monotonic()
        self._last = 0

    def _size(self) -> int:
        size = 0
        for path, _, names in os.walk(self._directory):
            for name in names:
                try:
                    size += os.lstat(os.path.join(path, name)).st_blocks * 512  # placeholders take none
                except FileNotFoundError:  # renamed when it was whole
                    continue
        return size

    def tick(self) -> bool:
        """Report; whether there is still movement."""
        now, size = time.monotonic(), self._size()
        if size != self._last:
            self._moved, self._last = now, size
        shown = min(size, self._total)
        rate = human(shown / max(now - self._begun, 0.001))
        self._progress(f"downloaded {human(shown)} of {human(self._total)} ({rate}/s)")
        return now - self._moved < _STALL

    def done(self) -> None:
        took = time.monotonic() - self._begun
        if took >= 1:
            self._progress(f"downloaded {human(self._total)} in {took:.1f} s")


def _inspect(reference: Reference, work: Path, *more: str) -> bytes:
    """A manifest, or with ``--config`` a configuration, byte for byte."""
    command = [
        "inspect",
        *more,
        "--raw",
        "--retry-times",
        "2",
        *_tls(reference, "--tls-verify"),
        f"docker://{reference.name}",
    ]
    deadline = time.monotonic() + _STALL
    return _run(command, work, reference, lambda: time.monotonic() < deadline)


def _tls(reference: Reference, option: str) -> list[str]:
    """A registry on this machine may do without TLS, as for Docker; there is nobody in between."""
    return [f"{option}=false"] if reference.loopback else []


def _run(arguments: list[str], work: Path, reference: Reference, tick: Callable[[], bool]) -> bytes:
    """Run skopeo; what it prints. ``tick`` is called each second and ends it by giving False."""
    program = shutil.which("skopeo")
    if program is None:
        raise HostError("skopeo, which talks to registries, is not installed", "install the Debian package skopeo")
    command = [program, "--tmpdir", str(work), "--override-os", "linux"]
    command += ["--override-arch", manifest.host_architecture(), *arguments]
    setpriv = shutil.which("setpriv")
    if setpriv:  # should we be killed, it goes too
        command = [setpriv, "--pdeathsig", "KILL", "--", *command]
    output, errors = work / "stdout", work / "stderr"
    with open(output, "wb") as out, open(errors, "wb") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            while True:
                try:
                    status = process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    if not tick():
                        where = reference.domain
                        raise HostError(f"registry {where} does not answer any more", "try again later") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if status != 0:
        raise explain(_tail(errors), reference)
    with open(output, "rb") as file:
        data = file.read(manifest.MAX_MANIFEST + 1)
    if len(data) > manifest.MAX_MANIFEST:
        raise BadImage(f"the manifest is larger than {manifest.MAX_MANIFEST} bytes")
    return data


def _tail(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read().decode(errors="replace")


def explain(output: str, reference: Reference) -> CasemateError:
    """The error that skopeo's output means. The text may be the registry's: it is cleaned and cut."""
    messages = _MESSAGE.findall(output)
    text = re.sub(r"\\(.)", r"\1", messages[-1]) if messages else " ".join(output.split()) or "skopeo failed"
    text = "".join(char if char.isprintable() else " " for char in text)
    text = text if len(text) <= 300 else text[:140] + " ... " + text[-150:]
    lower, name, host = text.lower(), reference.display, reference.domain
    if "manifest unknown" in lower or "name unknown" in lower or "not found" in lower:
        return ImageNotFound(f"registry {host} has no image {name}", "check its name and tag")
    if "unauthorized" in lower or "denied" in lower or "authentication required" in lower:
        return ImageNotFound(
            f"registry {host} has no image {name}, or does not show it", f"check its name, or run 'skopeo login {host}'"
        )
    if "no space left" in lower or "disk quota" in lower:
        return HostError(f"no space left for image {name}", "free some, or remove images with 'casemate rmi'")
    if "toomanyrequests" in lower or "too many requests" in lower:
        return HostError(f"registry {host} wants fewer requests", f"wait, or run 'skopeo login {host}'")
    if "policy" in lower and ("policy.json" in lower or "rejected" in lower):
        return HostError(f"the signature policy forbids {name}: {text}", "see policy.json below /etc/containers")
    if any(word in lower for word in ("x509", "certificate", "http response to https")):
        return HostError(f"no trusted connection to registry {host}: {text}", "check its certificate")
    if any(word in lower for word in _NETWORK):
        return HostError(f"cannot reach registry {host}: {text}", "check the network and the name")
    if "digest" in lower and ("match" in lower or "verif" in lower):
        return BadImage(f"registry {host} served a wrong digest for {name}: {text}", "pull it again")
    return ImageError(f"cannot pull {name}: {text}")

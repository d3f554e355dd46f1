"""From a distribution's bzImage to the ELF kernel inside it.

An ELF kernel is entered by PVH at its 32-bit entry point: no real mode, no decompression in the guest, which under an
emulating accelerator is the larger part of the start. Source: Documentation/x86/boot.rst of the kernel, fields
``setup_sects`` (0x1f1), ``header`` (0x202), ``version`` (0x206), ``payload_offset`` (0x248) and ``payload_length``
(0x24c).
"""

from __future__ import annotations

import struct
import subprocess

from casemate.errors import GuestError
from casemate.vm.guest.tools import require

_LIMIT = 512 << 20


def extract(image: bytes) -> bytes | None:
    """The ELF kernel in a bzImage.

    Arguments:
        image: the whole bzImage.

    Returns:
        The ELF file, or None when the payload's compression is not one that is known here: such a kernel is started
        by the boot protocol instead.

    Raises:
        GuestError: not a bzImage, or a payload that is cut off or damaged.
        HostError: the program that decompresses it is not installed.
    """
    if len(image) < 0x260 or image[0x202:0x206] != b"HdrS":
        raise GuestError("the kernel package does not hold a bzImage")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x0208:  # the payload fields came with protocol 2.08
        return None
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if len(payload) != length or length < 16:
        raise GuestError("the kernel is damaged: its payload is cut off")
    kernel = _decompress(payload)
    if kernel is None:
        return None
    if kernel[:4] != b"\x7fELF":
        raise GuestError("the kernel is damaged: its payload is not an ELF file")
    return kernel


def _decompress(payload: bytes) -> bytes | None:
    # The kernel's build appends the size of the plain kernel to the compressed stream, little endian, except to gzip,
    # whose format ends with the size anyway.
    (size,) = struct.unpack("<I", payload[-4:])
    if payload[:4] == b"\x7fELF":
        return payload
    if payload[:2] == b"\x1f\x8b":
        return _run(["gzip", "-dc"], "gzip", payload, size)
    if payload[:6] == b"\xfd7zXZ\0":
        return _run(["xz", "-dc"], "xz-utils", payload[:-4], size)
    if payload[:4] == b"\x02\x21\x4c\x18":
        return _run(["lz4", "-dc"], "lz4", payload[:-4], size)
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        return _run(["zstd", "-dc"], "zstd", payload[:-4], size)
    return None


def _run(command: list[str], package: str, data: bytes, size: int) -> bytes:
    if size > _LIMIT:
        raise GuestError(f"the kernel is damaged: it claims to be {size} bytes long")
    require(command[0], package)
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise GuestError(f"the kernel is damaged: {command[0]} says {reason or 'nothing'}")
    if len(done.stdout) != size:
        raise GuestError(f"the kernel is damaged: {len(done.stdout)} bytes where {size} were promised")
    return done.stdout

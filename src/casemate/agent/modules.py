"""Kernel modules of the root image, loaded by the agent where it knows that they will be needed.

What containers ask the kernel for by themselves (a file system, a kind of link, a packet filter's rule) the kernel
loads, by the program that ``kernel.modprobe`` names.
"""

from __future__ import annotations

import errno
import os

from casemate.agent.system import log, read_whole, syscall

MAX_TABLE = 1 << 20
MAX_MODULE = 1 << 26


def load(name: str, directory: str = "") -> bool:
    """Load a module and what it needs.

    Arguments:
        name: of the module, spelt with ``_``.
        directory: where the modules are, with ``modules.dep`` as depmod(8) makes it; this kernel's when empty.

    Returns:
        whether it is there now; False when the image has no such module.
    """
    if os.path.exists(f"/sys/module/{name}"):
        return True
    directory = directory or f"/usr/lib/modules/{os.uname().release}"
    for line in read_whole(f"{directory}/modules.dep", MAX_TABLE).splitlines():
        file, _, needs = line.partition(":")
        if file == f"{name}.ko":
            return all([_insert(f"{directory}/{word}") for word in (*reversed(needs.split()), file)])
    return False


def _insert(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            image = os.read(fd, MAX_MODULE)
        finally:
            os.close(fd)
        syscall("init_module", image, len(image), b"")
    except OSError as error:
        if error.errno != errno.EEXIST:  # it is there, or somebody was faster
            log(f"{path} cannot be loaded: {error.strerror}")
            return False
    return True

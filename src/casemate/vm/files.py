"""The file server of a sandbox: virtiofsd, which shows one directory to one guest."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from casemate.config import Config
from casemate.errors import HostError
from casemate.wall.confinement import Confinement
from casemate.wall.launch import Process, spawn

TAG = "casemate"
VOLUMES_TAG = "casemate-volumes"
ROOT_KEEP = 1
"""Only the guest changes its root filesystem, but for ``casemate cp``, after which it is told to look again."""
MAX_FILES = 262_144
"""Open files of one file server, where the host allows as many: it keeps one for every file that the guest knows."""
CAPABILITIES = frozenset((0, 1, 3, 4, 6, 7, 8, 18, 21, 27, 31))
"""CHOWN DAC_OVERRIDE FOWNER FSETID SETUID SETGID, to act as any user of the container; MKNOD SETFCAP for what it makes;
SETPCAP SYS_CHROOT SYS_ADMIN for virtiofsd to shut itself in, after which it drops these too."""


def start(
    config: Config, share: Path, keep: int, run_path: Path, messages: int, procs: tuple[Path, ...]
) -> tuple[Process, int]:
    """Start a file server for the tree ``share`` of this mount namespace.

    Arguments:
        keep: seconds for which the guest may take names and attributes to be as they were: each look-up that it does
            not have to ask for is ten times as fast. 0 where the host changes files too.
        run_path: where its socket may be for the moment that connecting takes.
        messages: the descriptor for its messages; not closed.
        procs: the control group to join.

    Returns:
        The process, and a connected descriptor for the VMM.

    Raises:
        HostError: virtiofsd is missing or does not start.
    """
    if not os.path.exists(config.virtiofsd):
        raise HostError(f"{config.virtiofsd} is missing", "install the package qemu-system-common")
    path = run_path / "fs.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(path))
        listener.listen(1)
        client.connect(str(path))
        argv = [
            config.virtiofsd,
            f"--fd={listener.fileno()}",
            "-f",
            "-o", f"source={share}",
            "-o", f"cache=auto,timeout={keep},xattr,no_posix_lock,no_flock,sandbox=namespace,announce_submounts",
            "-o", "log_level=err",
            "--rlimit-nofile=0",
            "--thread-pool-size=0",
        ]  # fmt: skip
        jail = Confinement(uid=0, gid=0, cgroup_procs=procs, capabilities=CAPABILITIES, max_files=MAX_FILES)
        process = spawn(argv, jail, pass_fds=(listener.fileno(),), stderr=messages)
    except OSError as error:
        client.close()
        raise HostError(f"cannot start the file server: {error.strerror}") from None
    except BaseException:
        client.close()
        raise
    finally:
        listener.close()
        path.unlink(missing_ok=True)
    return process, client.detach()

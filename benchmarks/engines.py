"""casemate, runc and runsc behind engines: Docker, containerd, and Kubernetes' interface to it.

The engines are those that the tests use, in a host of their own: private sockets, data and namespaces.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measures import Plan, Result, Say, median
from tests.engines import engines
from tests.engines.cri import Cri
from tests.engines.engines import RUNC, Docker
from tests.engines.host import TOOLS, Host, host
from tests.engines.images import BOX
from tests.engines.terminal import eventually

RUNSC = TOOLS / "bin" / "runsc"
NAME = "bench-idle"


@contextlib.contextmanager
def running() -> Iterator[Host]:
    """A host with containerd and dockerd that know all three runtimes and have the image; gone afterwards."""
    with host() as made:
        runsc = made.base / "runsc"
        # Debian's runsc takes any network for the machine's own on newer kernels, and refuses it.
        runsc.write_text(f'#!/bin/sh\nexec {RUNSC} --network=none "$@"\n')
        runsc.chmod(0o755)
        sentry = made.base / "sentry"
        sentry.write_text(f'#!/bin/sh\nexec {made.bin}/casemate-runtime --wall sentry "$@"\n')
        sentry.chmod(0o755)
        engines.start_containerd(made)
        paths = {"casemate": made.bin / "casemate-runtime", "runsc": runsc, "sentry": sentry}
        engines.start_dockerd(made, runtimes={name: {"path": str(path)} for name, path in paths.items()})
        archive = engines.images(made)
        Docker(made, "runc").out("load", "-q", "-i", archive)
        for namespace in ("default", "k8s.io"):
            made.out(*_ctr(made, namespace), "images", "import", archive)
        yield made


def docker(made: Host, runtime: str, plan: Plan, say: Say) -> Result:
    """``docker run`` and ``docker exec`` of ``true``, in milliseconds."""
    client = Docker(made, runtime)
    say("docker run of true")
    result = {"docker_run": median(plan.cold_runs, say, _timed(lambda: client.out("run", "--rm", BOX, "true")))}
    with client.container(BOX, "sleep", "86400") as id:
        say("docker exec of true")
        result["docker_exec"] = median(plan.execs, say, _timed(lambda: client.out("exec", id, "true")))
    return {key: value * 1000 for key, value in result.items()}


def pods(made: Host, runtime: str, plan: Plan, say: Say) -> Result:
    """A pod by the CRI, from the first call until its container's first line is in the log; in milliseconds."""
    if runtime == "runsc":
        raise RuntimeError("containers of a pod need runsc's own shim, which is not in Debian")
    client = Cri(made, runtime)
    eventually(client.ready, "it is ready")

    def once() -> float:
        begun = time.monotonic()
        with client.pod(f"bench-{runtime}") as pod:
            id = pod.start("first", "sh", "-c", "echo ready; exec sleep 86400")
            log = Path(pod.config["log_directory"]) / "first.log"
            deadline = begun + 120
            while b"ready" not in (log.read_bytes() if log.exists() else b""):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{runtime}: no output of {id} after 120 s")
                time.sleep(0.005)  # a growing file has no event that all runtimes' readers share
            return time.monotonic() - begun

    say("a pod's first output")
    return {"pod": 1000 * median(plan.cold_runs, say, once)}


def memory(made: Host, runtime: str) -> dict[str, float]:
    """Proportional set size of what ``ctr run`` of one idle container starts on the host, in MiB by process."""
    kind = "io.containerd.casemate.v2" if runtime == "casemate" else "io.containerd.runc.v2"
    binary: list[Path | str] = (
        [] if runtime == "casemate" else ["--runc-binary", RUNC if runtime == "runc" else made.base / runtime]
    )
    ctr = _ctr(made, "default")
    before = set(_processes(made))
    made.out(*ctr, "run", "-d", "--null-io", "--runtime", kind, *binary, BOX, NAME, "sleep", "86400")
    try:
        result: dict[str, float] = {}
        for pid in set(_processes(made)) - before:
            with contextlib.suppress(OSError):  # it ended meanwhile
                label, size = _label(pid), _size(pid)
                result[label] = result.get(label, 0.0) + size
        return result
    finally:
        made(*ctr, "task", "kill", "-s", "SIGKILL", NAME)
        made(*ctr, "task", "delete", "--force", NAME)
        made(*ctr, "container", "delete", NAME)


def _ctr(made: Host, namespace: str) -> list[str | os.PathLike[str]]:
    return [TOOLS / "bin" / "ctr", "-a", made.base / "c.sock", "-n", namespace]


def _timed(action: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        begun = time.monotonic()
        action()
        return time.monotonic() - begun

    return once


def _processes(made: Host) -> list[int]:
    """Pids, as this process sees them, of the host's first process and all below it."""
    parents: dict[int, int] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(directory.name)] = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
    found = {made.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def _size(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _label(pid: int) -> str:
    program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    if program.startswith("python"):
        kinds = {"casemate.pod": "keeper", "shim": "shim"}
        return next((kind for part, kind in kinds.items() if part in words), "stand-in")
    if program.startswith("containerd-shim"):
        return "shim"
    if program == "runsc":
        return "runsc-gofer" if "gofer" in words else "runsc-sandbox"
    return {"qemu-system-x86_64": "QEMU with the guest", "busybox": "the container's process"}.get(program, program)

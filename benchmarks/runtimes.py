"""The runtimes that are measured, behind one interface: casemate itself, and runc and runsc by OCI bundles.

All three run the very same files: the bundles' root filesystems are overlays of the layers that casemate unpacked.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from tests.vm.pool_lab import Lab
from tests.vm.support import CACHE, CONSOLE_SCRIPT, Casemate, processes

TIMEOUT = 600.0
"""Seconds that any one command may take."""


class Runtime(ABC):
    """Makes containers of an image, with one volume at ``/volume``."""

    name: str

    @abstractmethod
    def command(self, image: str, arguments: Sequence[str], network: bool = False) -> list[str]:
        """The command line that runs a container to its end and leaves nothing."""

    @abstractmethod
    def start(self, name: str, image: str) -> None:
        """Start an idle container."""

    @abstractmethod
    def exec_command(self, name: str, arguments: Sequence[str]) -> list[str]:
        """The command line that runs something in that container."""

    @abstractmethod
    def stop(self, name: str) -> None:
        """Remove it."""

    @abstractmethod
    def process_ids(self, name: str) -> list[int]:
        """All processes on the host that exist for it, the container's own among them where they are the host's."""

    @property
    def environment(self) -> dict[str, str]:
        """For its command lines."""
        return dict(os.environ)

    def prepare(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Do what is to be done before each command that is measured, and is not."""

    def exec(self, name: str, arguments: Sequence[str], input: bytes = b"") -> bytes:
        """Run something in a container that :meth:`start` made; its standard output.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        return run(self.exec_command(name, arguments), self.environment, input)


def run(command: Sequence[str], environment: dict[str, str], input: bytes = b"") -> bytes:
    """Run a command that must succeed; its standard output."""
    done = subprocess.run(command, input=input, capture_output=True, env=environment, timeout=TIMEOUT)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {said}")
    return done.stdout


class CasemateRuntime(Runtime):
    """casemate in an environment of its own."""

    name = "casemate"

    def __init__(self, cm: Casemate, volume: Path) -> None:
        self.cm = cm
        self.volume = volume

    @property
    def environment(self) -> dict[str, str]:
        return self.cm.env.variables

    def command(self, image: str, arguments: Sequence[str], network: bool = False) -> list[str]:
        kind = "nat" if network else "none"
        return [str(CONSOLE_SCRIPT), "run", "--rm", "--network", kind, image, *arguments]

    def start(self, name: str, image: str) -> None:
        options = ["--network", "none", "-v", f"{self.volume}:/volume"]
        self.cm("run", "-d", "--name", name, *options, image, "sleep", "86400", check=True, timeout=TIMEOUT)

    def exec_command(self, name: str, arguments: Sequence[str]) -> list[str]:
        return [str(CONSOLE_SCRIPT), "exec", "-i", name, *arguments]

    def stop(self, name: str) -> None:
        self.cm("rm", "-f", name, check=True)

    def process_ids(self, name: str) -> list[int]:
        return sorted(processes(self.cm.env))

    def layers(self, name: str) -> list[Path]:
        """The directories that a container's root filesystem is made of, the lowest first."""
        directory = self.cm.env.root / "containers" / self.cm.inspect(name)["Id"]
        config = json.loads((directory / "config.json").read_text())
        return [Path(layer) for layer in config["layers"]]


class PoolRuntime(CasemateRuntime):
    """casemate with a pool that is full before each measurement."""

    name = "casemate, pool"

    def __init__(self, cm: Casemate, volume: Path, lab: Lab, size: int) -> None:
        super().__init__(cm, volume)
        self.lab = lab
        self.size = size

    def prepare(self) -> None:
        self.lab.ready(self.size)


class BundleRuntime(Runtime):
    """A runtime with runc's command line.

    Arguments:
        name: the program.
        layers: for each image, the directories of its layers, the lowest first.
        work: a directory for bundles and state.
        volume: what is mounted at /volume.
        options: more words, for all commands.
        program: where it is; None for one that set-up has installed for tests.
    """

    def __init__(
        self,
        name: str,
        layers: dict[str, list[Path]],
        work: Path,
        volume: Path,
        options: Sequence[str] = (),
        program: Path | None = None,
    ) -> None:
        self.name = name
        self.program = program or (CACHE / "tools" / "bin" / name).resolve()
        if not self.program.exists():
            raise RuntimeError(f"{name} is missing: run scripts/setup --tests")
        self.layers = layers
        self.work = work / name
        self.volume = volume
        self.base = [str(self.program), "--root", str(self.work / "state"), *options]
        self.count = 0
        self.mounted: list[Path] = []

    def command(self, image: str, arguments: Sequence[str], network: bool = False) -> list[str]:
        if network:
            raise NotImplementedError("an engine makes the network for this runtime")
        self.count += 1
        return [*self.base, "run", "--bundle", str(self._bundle(image, arguments)), f"bench-{self.count}"]

    def start(self, name: str, image: str) -> None:
        bundle = self._bundle(image, ["sleep", "86400"])
        # Its output must not be a pipe of ours: the container would keep that open.
        command = [*self.base, "run", "--detach", "--bundle", str(bundle), name]
        with open(self.work / f"{name}.log", "w+b") as log:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=TIMEOUT)
            if done.returncode != 0:
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)}: {log.read().decode(errors='replace').strip()}")

    def exec_command(self, name: str, arguments: Sequence[str]) -> list[str]:
        return [*self.base, "exec", name, *arguments]

    def stop(self, name: str) -> None:
        subprocess.run([*self.base, "delete", "--force", name], capture_output=True, timeout=TIMEOUT, check=False)

    def process_ids(self, name: str) -> list[int]:
        """The container's process and, for a runtime with helpers, all that name its state directory, with children."""
        state = json.loads(run([*self.base, "state", name], self.environment))
        found = {int(state["pid"])}
        parents: dict[int, int] = {}
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit():
                with contextlib.suppress(OSError):
                    pid = int(directory.name)
                    parents[pid] = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
                    if os.fsencode(self.work) in (directory / "cmdline").read_bytes():
                        found.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def close(self) -> None:
        """Take down what is mounted."""
        for path in reversed(self.mounted):
            subprocess.run(["umount", path], check=False)
        shutil.rmtree(self.work, ignore_errors=True)

    def _bundle(self, image: str, arguments: Sequence[str]) -> Path:
        """A bundle for an image; its root filesystem is mounted once and used again."""
        bundle = self.work / image.replace(":", "-")  # a colon would part the overlay's directories
        if not bundle.exists():
            for directory in ("rootfs", "upper", "overlay"):
                (bundle / directory).mkdir(parents=True)
            lower = ":".join(str(layer) for layer in reversed(self.layers[image]))
            options = f"lowerdir={lower},upperdir={bundle / 'upper'},workdir={bundle / 'overlay'}"
            subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", bundle / "rootfs"], check=True)
            self.mounted.append(bundle / "rootfs")
            runc = (CACHE / "tools" / "bin" / "runc").resolve()
            subprocess.run([runc, "spec"], cwd=bundle, check=True)
        spec = json.loads((bundle / "config.json").read_text())
        spec["root"] = {"path": "rootfs", "readonly": False}
        spec["process"] |= {"terminal": False, "args": list(arguments)}
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != "/volume"]
        spec["mounts"].append(
            {"destination": "/volume", "type": "bind", "source": str(self.volume), "options": ["rbind", "rw"]}
        )
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle


def seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    """How long a command takes that must succeed."""
    begun = time.monotonic()
    run(command, environment)
    return time.monotonic() - begun

"""kill -9 of anybody at any moment of the OCI command line: what there is can be removed, and nothing is left."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest

from tests import kills
from tests.kills import Kills, Process
from tests.vm import support
from tests.vm.oci import Runtime, left

STEPS = ("create", "start", "exec", "kill", "delete")


class CommandLine(kills.Arena):
    """The OCI command line, as an engine would use it that has no processes of its own."""

    name = "the OCI command line"
    pairs = (
        *((victim, step) for victim in ("client", "stand-in", "keeper", "machine", "file server") for step in STEPS),
        *(("agent", step) for step in STEPS),
        ("exec stand-in", "exec"),
    )

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime.directory / "said", runtime.env.variables)
        self.runtime = runtime
        self._ids: list[str] = []

    def scene(self) -> list[Process]:
        """Everybody, but of commands and keepers only those with this root."""
        root = str(self.runtime.root)
        others = re.compile("casemate-runtime |casemate.pod ")
        return [one for one in kills.processes() if root in one.words or not others.search(one.words)]

    def records(self) -> list[dict[str, Any]]:
        """What is below its root."""
        return kills.records(self.runtime.root)

    def prepare(self, victim: str, step: str, name: str) -> None:
        """The kernel that is to crash while a container is made has one already."""
        id = self._id(name)
        self._ids = [id]
        bundle = self.runtime.bundle("sh", "-c", kills.crash_script() if victim == "agent" else self._plain())
        bundle.spec["linux"]["cgroupsPath"] = f"/{id}"
        bundle.spec["linux"]["readonlyPaths"] = []
        if victim == "agent" and step in ("create", "start"):
            first = f"{id}-first"
            self._ids.append(first)
            self._annotate(bundle.spec, first, "container")
            other = self.runtime.bundle("sh", "-c", kills.crash_script())
            other.spec["linux"] |= {"cgroupsPath": f"/{first}", "readonlyPaths": []}
            self._annotate(other.spec, first, "sandbox")
            self._run("create", "--bundle", str(other.write()), first)
            self._run("start", first)
        self._bundle = bundle.write()
        for earlier in STEPS[: STEPS.index(step)]:
            if earlier in ("create", "start") or (earlier == "kill" and step == "delete"):
                self._run(*self._words(earlier, id))

    def begin(self, step: str, name: str) -> subprocess.Popen[bytes]:
        """One command."""
        return self.command(self.runtime.words(*self._words(step, self._id(name))))

    def remove(self, name: str) -> list[str]:
        """As an engine removes what there may be."""
        problems = []
        for id in self._ids:
            removed = self.runtime("delete", "--force", id, timeout=200)
            if removed.returncode != 0:
                problems.append(f"delete --force: {removed.stderr.decode()}")
            elif self.runtime("state", id).returncode != 1:
                problems.append("delete --force leaves it")
        return problems

    def snapshot(self) -> set[str]:
        """What the environment has of any container's."""
        env, run = self.runtime.env, self.runtime.env.run
        known = {f"process {one.pid}: {one.words}" for one in kills.processes() if str(self.runtime.root) in one.words}
        known |= {f"process {pid}: {words}" for pid, words in support.processes(env).items()}
        known |= kills.mounts(os.getpid(), str(env.base)) | {f"left {what}" for what in left(self.runtime)}
        keep = r"run/(boots(/.*)?|nursery(/.*)?|uids|uids/owners|[^/]*\.lock|probe-.*\.json|[^/]*/\.pods)|.*/\.[^/]*"
        return known | kills.files(run, keep=keep)

    def _plain(self) -> str:
        return f"trap 'exit 1' TERM; {kills.PLAIN}"

    def _id(self, name: str) -> str:
        return f"{self.runtime.mark}-{name}"

    def _words(self, step: str, id: str) -> list[str]:
        return {
            "create": ["create", "--bundle", str(self._bundle), id], "start": ["start", id],
            "exec": ["exec", id, "sh", "-c", "sleep 0.3"], "kill": ["kill", id, "KILL"], "delete": ["delete", "-f", id],
        }[step]  # fmt: skip

    def _run(self, *words: str) -> None:
        done = self.command(self.runtime.words(*words))
        assert done.wait(kills.STEP_SECONDS) == 0, (words, self.said())

    @staticmethod
    def _annotate(spec: dict[str, Any], sandbox: str, kind: str) -> None:
        spec.setdefault("annotations", {}).update(
            {"io.kubernetes.cri.sandbox-id": sandbox, "io.kubernetes.cri.container-type": kind}
        )


def test_anybody_at_any_moment(ours: Runtime) -> None:
    Kills(CommandLine(ours)).run(5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_anybody_at_70_moments(ours: Runtime) -> None:
    Kills(CommandLine(ours)).run(70)

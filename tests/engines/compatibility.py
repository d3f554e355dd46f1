"""What works with which engine, and what does not and why: the table behind ``docs/compatibility.md``.

Each row is a feature that tests name by ``@pytest.mark.feature``; each of its engines is one that such a test ran with.
``scripts/compatibility`` holds the table against the results of the last test run and writes the document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ENGINES = {"docker": "Docker", "podman": "Podman", "ctr": "containerd", "cri": "Kubernetes (CRI)"}
"""The engines' names in results, and in the document."""


@dataclass(frozen=True)
class Verdict:
    """``works`` as with runc, ``differs``, or ``cannot`` be given; ``why`` is empty only for the first."""

    word: str
    why: str = ""


@dataclass(frozen=True)
class Feature:
    """One row. ``verdicts`` has an entry for each engine that the feature is tested with."""

    name: str
    verdicts: dict[str, Verdict] = field(default_factory=dict)


WORKS = Verdict("works")


def differs(why: str) -> Verdict:
    """It works, but not as with runc in every respect."""
    return Verdict("differs", why)


def cannot(why: str) -> Verdict:
    """It is refused with an error that says why, or has no effect."""
    return Verdict("cannot", why)


def _with(*engines: str, but: dict[str, Verdict] | None = None, all_: Verdict = WORKS) -> dict[str, Verdict]:
    return {engine: all_ for engine in engines} | (but or {})


_BOTH = ("docker", "podman")
_DOCKER = ("docker",)
_PODMAN = ("podman",)
_CTR = ("ctr",)
_CRI = ("cri",)

SECTIONS: dict[str, tuple[Feature, ...]] = {
    "Running": (
        Feature("exit status", _with(*_BOTH)),
        Feature("standard input", _with(*_BOTH)),
        Feature("run -it", _with(*_BOTH)),
        Feature("many at once", _with(*_BOTH)),
        Feature("environment, working directory, host name", _with(*_BOTH)),
        Feature("--user, --cap-drop, no-new-privileges", _with(*_BOTH)),
        Feature("--privileged", _with(*_BOTH, all_=differs(
            "all capabilities of the sandbox's own kernel; the host's devices are not in it"))),
        Feature("--init", _with(*_BOTH)),
        Feature("--preserve-fds", _with(*_PODMAN, all_=differs(
            "pipes, connected stream sockets and `/dev/null` are carried; files and sockets that listen are refused"))),
        Feature("--ulimit", _with(*_BOTH)),
        Feature("--sysctl", _with(*_BOTH)),
        Feature("--oom-score-adj", _with(*_BOTH)),
    ),
    "While it runs": (
        Feature("exec", _with(*_BOTH)),
        Feature("exec -it", _with(*_BOTH)),
        Feature("attach", _with(*_BOTH)),
        Feature("logs", _with(*_BOTH, *_CRI)),
        Feature("top", _with(*_BOTH, all_=differs(
            "engines read the host's processes: one line for each program they have started, none for its children"))),
        Feature("stats", _with(*_CRI, but={
            "docker": differs("what the sandbox takes on the host, machine included"),
            "podman": differs("what the sandbox takes on the host, machine included")})),
        Feature("pause", _with(*_BOTH)),
        Feature("update", _with(*_BOTH)),
        Feature("cp", _with(*_BOTH)),
        Feature("diff, commit", _with(*_BOTH)),
        Feature("kill", _with(*_BOTH)),
        Feature("stop", _with(*_BOTH)),
        Feature("restart", _with(*_BOTH)),
        Feature("rm -f", _with(*_BOTH)),
        Feature("events", _with(*_DOCKER)),
    ),
    "What the engine does by itself": (
        Feature("--restart", _with(*_BOTH)),
        Feature("--health-cmd", _with(*_BOTH)),
        Feature("restart of the daemon", _with(*_DOCKER)),
        Feature("build", _with(*_BOTH)),
    ),
    "Networks": (
        Feature("containers by name on a user-defined network", _with(*_BOTH)),
        Feature("published ports", _with(*_BOTH)),
        Feature("the way out of a network", _with(*_BOTH)),
        Feature("IPv6 networks", _with(*_BOTH)),
        Feature("network connect and disconnect while it runs", _with(*_BOTH)),
        Feature("--ip, --mac-address, MTU", _with(*_BOTH)),
        Feature("--network none", _with(*_BOTH)),
        Feature("--network container:NAME", _with(*_BOTH)),
        Feature("--network host", _with(*_BOTH, all_=cannot("a machine has interfaces of its own, never the host's"))),
    ),
    "Storage": (
        Feature("-v of directories, files and named volumes", _with(*_BOTH)),
        Feature("-v and mount propagation", _with(*_BOTH, all_=differs(
            "with rslave the container sees what the host mounts later; off it goes by `umount --lazy` only"))),
        Feature("-v of a UNIX socket", _with(*_BOTH, all_=cannot(
            "the two ends of a socket are in two kernels; use a port"))),
        Feature("--volumes-from, images' files in new volumes", _with(*_BOTH)),
        Feature("--read-only, --tmpfs, --shm-size", _with(*_BOTH)),
        Feature("--device", _with(*_BOTH, all_=differs(
            "block devices, and /dev/null and its like, tun and fuse; no other device of the host's"))),
        Feature("storage drivers", _with(*_DOCKER)),
    ),
    "Resources": (
        Feature("--memory", _with(*_BOTH)),
        Feature("--memory, when there is not enough", _with(*_BOTH)),
        Feature("--cpus", _with(*_BOTH)),
        Feature("--cpuset-cpus", _with(*_BOTH)),
        Feature("--pids-limit", _with(*_BOTH)),
        Feature("control groups by systemd", _with(*_DOCKER)),
        Feature("--blkio-weight", _with(*_BOTH, all_=differs(
            "these engines leave it out, with any runtime, where the kernel has only the newer scheduler's weights"))),
    ),
    "Shared namespaces": (
        Feature("--pid container:NAME, --ipc container:NAME", _with(*_BOTH, all_=differs(
            "together with --network container:NAME: what is shared is shared in one machine"))),
        Feature("--pid host, --ipc host, --uts host", _with(*_BOTH, all_=cannot(
            "the host's processes and names are another kernel's"))),
    ),
    "Pods": (
        Feature("podman pods", _with(*_PODMAN)),
        Feature("podman play kube, generate", _with(*_PODMAN)),
        Feature("pods", _with(*_CTR, *_CRI)),
        Feature("many pods at once", _with(*_CRI)),
        Feature("pods that share processes", _with(*_CRI)),
        Feature("containers of a pod that end and come again", _with(*_CRI)),
        Feature("pods of the host's network", _with(*_CRI, all_=cannot(
            "a machine has interfaces of its own, never the host's"))),
        Feature("ExecSync, Exec", _with(*_CRI)),
        Feature("Attach", _with(*_CRI)),
        Feature("PortForward", _with(*_CRI)),
        Feature("UpdateContainerResources", _with(*_CRI)),
        Feature("restart of containerd", _with(*_CTR, *_CRI)),
    ),
    "containerd": (
        Feature("ctr run", _with(*_CTR)),
        Feature("ctr run --cni", _with(*_CTR)),
        Feature("ctr exec", _with(*_CTR)),
        Feature("ctr task", _with(*_CTR)),
        Feature("restarts by labels", _with(*_CTR)),
        Feature("faults", _with(*_CTR)),
    ),
}  # fmt: skip

NOT_TESTED: tuple[tuple[str, str, str], ...] = (
    ("Docker", "--runtime io.containerd.casemate.v2", "works from Docker 23 on; older ones want an OCI runtime's path"),
    ("Docker", "build with BuildKit", "cannot: dockerd's BuildKit runs `runc`, whatever the default runtime is"),
    ("containerd", "Sandbox API", "from containerd 2 on; the shim's part is tested without an engine"),
    ("all", "checkpoint, restore", "cannot yet: a machine's state is not saved"),
    ("all", "AppArmor and SELinux profiles", "cannot: the sandbox's kernel has neither; the sandbox is the barrier"),
)
"""What is known but not tested with the engines of Debian 12: engine, feature, verdict."""


def features() -> dict[str, Feature]:
    """Every feature by its name."""
    return {feature.name: feature for section in SECTIONS.values() for feature in section}


def document() -> str:
    """The text of ``docs/compatibility.md``."""
    lines = [
        "# Compatibility",
        "",
        "What works when Docker, Podman, containerd or Kubernetes runs its containers on casemate. Each cell is what",
        "tests with the real engine have shown, each of them with runc as the control. Engines are those of Debian 12:",
        "Docker 20.10, Podman 4.3, containerd 1.6. `scripts/compatibility` writes this file, from the table in",
        "`tests/engines/compatibility.py` and the results of the tests; do not edit it.",
        "",
        "**works** means as with runc, **differs** that it works but not in every respect as there, **cannot** that it",
        "is refused with an error that says why. An empty cell: the engine has nothing of the kind, or no test.",
    ]
    for title, rows in SECTIONS.items():
        used = [engine for engine in ENGINES if any(engine in row.verdicts for row in rows)]
        lines += ["", f"## {title}", ""]
        lines.append("| feature | " + " | ".join(ENGINES[engine] for engine in used) + " | why |")
        lines.append("|---" * (len(used) + 2) + "|")
        for row in rows:
            words = [row.verdicts[engine].word if engine in row.verdicts else "" for engine in used]
            lines.append(f"| {_code(row.name)} | " + " | ".join(words) + f" | {_why(row)} |")
    lines += ["", "## Known, but not tested with these engines", "", "| engine | feature | |", "|---|---|---|"]
    lines += [f"| {engine} | {_code(name)} | {verdict} |" for engine, name, verdict in NOT_TESTED]
    return "\n".join(lines) + "\n"


def _code(name: str) -> str:
    """A feature's name with options, and the words that belong to them, in code font."""
    return re.sub(r"(?<!\S)--?[a-z][a-z-]*( (host|none|container:NAME|io\.\S+))?", r"`\g<0>`", name)


def _why(row: Feature) -> str:
    reasons: dict[str, list[str]] = {}
    for engine, verdict in row.verdicts.items():
        if verdict.why:
            reasons.setdefault(verdict.why, []).append(ENGINES[engine])
    different = len(reasons) > 1 or any(not verdict.why for verdict in row.verdicts.values())
    return "; ".join(f"{', '.join(names)}: {why}" if different else why for why, names in reasons.items())


def unproven(results: list[dict[str, object]]) -> list[str]:
    """Cells of the table that the results do not bear out, and results that the table does not know; one line each.

    Arguments:
        results: what ``tests/engines/conftest.py`` wrote, in order; of a test that ran twice the last counts.
    """
    last = {str(result["test"]): result for result in results}
    passed: dict[tuple[str, str, str], bool] = {}
    for result in last.values():
        engine, _, runtime = str(result["client"]).partition("-")
        for name in result["features"]:  # type: ignore[attr-defined]
            key = (name, engine, runtime)
            passed[key] = passed.get(key, True) and result["outcome"] == "passed"
    problems = []
    for name, feature in features().items():
        for engine in feature.verdicts:
            for runtime in ("control", "casemate"):
                if not passed.get((name, engine, runtime)):
                    word = "failed" if (name, engine, runtime) in passed else "not run"
                    problems.append(f"{name}: {engine}, {runtime}: {word}")
    for name, engine, _ in sorted(passed):
        if name not in features() or engine not in features()[name].verdicts:
            problems.append(f"{name}: {engine}: not in the table")
    return list(dict.fromkeys(problems))

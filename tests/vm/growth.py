"""What may grow while containers come and go, and whether it does.

A leak of something small shows only after many rounds, and only against what is used for other reasons: caches that
fill, memory that was freed and is not given back yet. So a :class:`Watch` looks several times, and what counts is how
much more there is at the end than at a third of the way, for each round since.

Processes of an environment are looked at one by one: those that were there all the time must be as they were. What the
kernel has for all of them together (control groups, namespaces, memory of its own) can only be read for the whole
host, where others are at work too; there a small allowance for each round tells growth from noise.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from tests.vm.support import Environment, links, mounts, processes, tables

FACTOR = 3
"""The first sample that counts is after one part in so many of the rounds."""
MEMORY_SLACK_KIB = 512
MEMORY_ROUND_KIB = 1.0
"""Private memory of a process that stays: how much more there may be, and how much of that for each round."""
OURS_SLACK = 2
HOST_PER_ROUND = {"control groups": 0.3, "pid": 0.3, "net_namespace": 0.3, "mnt_cache": 0.3}
"""How much more of what the kernel has there may be for each round; a leak is one at least."""
HOST_SLACK = 150
"""What others on the host, and what the kernel frees later, may come to beside that."""
KERNEL_ROUND_KIB = 24.0
KERNEL_SLACK_KIB = 16 << 10


@dataclass(frozen=True)
class Size:
    """One process."""

    command: str
    descriptors: int
    threads: int
    private_kib: int
    pss_kib: int
    children_ended: int
    """Children that it has not waited for."""


@dataclass(frozen=True)
class Sample:
    """How much there is of everything."""

    rounds: int
    kept: dict[str, int]
    host: dict[str, int]
    processes: dict[int, Size]

    def lines(self) -> list[str]:
        """As a log has it."""
        found = [f"after {self.rounds}: " + ", ".join(f"{key} {value}" for key, value in self.kept.items())]
        found.append("  host: " + ", ".join(f"{key} {value}" for key, value in self.host.items()))
        found += [
            f"  {pid}: {one.descriptors} descriptors, {one.threads} threads, {one.private_kib} KiB private,"
            f" {one.pss_kib} KiB PSS, {one.children_ended} zombies: {one.command[:70]}"
            for pid, one in sorted(self.processes.items())
        ]
        return found


class Watch:
    """Looks at an environment now and then, and compares.

    Arguments:
        env: what is looked at.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self.samples: list[Sample] = []

    def look(self, rounds: int) -> Sample:
        """Take a sample; where ``CASEMATE_SOAK_LOG`` names a file, add it there."""
        sample = Sample(rounds, kept(self._env), host(), sizes(self._env))
        self.samples.append(sample)
        if log := os.environ.get("CASEMATE_SOAK_LOG"):
            with open(log, "a") as file:
                file.write("\n".join(sample.lines()) + "\n")
        return sample

    def growth(self, *, comes_and_goes: bool = False) -> list[str]:
        """What has grown, a line each.

        Arguments:
            comes_and_goes: some processes are others each time, though not more of them.
        """
        last = self.samples[-1]
        first = next(one for one in self.samples if one.rounds * FACTOR >= last.rounds)
        rounds = last.rounds - first.rounds
        found = []
        for key, count in last.kept.items():
            if count > first.kept[key] + (OURS_SLACK if comes_and_goes else 0):
                found.append(f"{key}: {first.kept[key]} became {count}")
        for key, each in HOST_PER_ROUND.items():
            if key in last.host and last.host[key] - first.host[key] > HOST_SLACK + each * rounds:
                found.append(f"the host's {key}: {first.host[key]} became {last.host[key]} in {rounds} rounds")
        kernel = last.host["kernel KiB"] - first.host["kernel KiB"]
        if kernel > KERNEL_SLACK_KIB + KERNEL_ROUND_KIB * rounds:
            found.append(f"the kernel's memory: {kernel} KiB more in {rounds} rounds")
        if not comes_and_goes and last.processes.keys() != first.processes.keys():
            found.append(f"other processes than before: {first.processes} became {last.processes}")
        if len(last.processes) > len(first.processes) + OURS_SLACK:
            found.append(f"more processes: {first.processes} became {last.processes}")
        for pid in last.processes.keys() & first.processes.keys():
            found += _grown(pid, first.processes[pid], last.processes[pid], rounds)
        return found


def _grown(pid: int, before: Size, after: Size, rounds: int) -> list[str]:
    found = []
    for what, most in (("descriptors", OURS_SLACK), ("threads", OURS_SLACK), ("children_ended", 1)):
        if getattr(after, what) > getattr(before, what) + most:
            found.append(f"{what} of process {pid}: {before} became {after}")
    if after.private_kib - before.private_kib > MEMORY_SLACK_KIB + MEMORY_ROUND_KIB * rounds:
        found.append(f"memory of process {pid}: {before} became {after}")
    return found


def kept(env: Environment) -> dict[str, int]:
    """How much there is of what sandboxes have while they live, by kind."""
    found = {"mounts": len(mounts(env)), "links": len(links(env)), "packet filter": len(tables(env))}
    for place in (env.root, env.run):
        found[f"files in {place.name}"] = sum(len(names) + len(files) for _, names, files in os.walk(place))
    return found


def host() -> dict[str, int]:
    """What the kernel has, for everybody."""
    found = {}
    with contextlib.suppress(OSError), open("/proc/slabinfo") as file:
        for line in file:
            words = line.split()
            if words[0] in HOST_PER_ROUND:
                found[words[0]] = int(words[1])
    with open("/proc/cgroups") as file:
        found["control groups"] = max(int(line.split()[2]) for line in file if not line.startswith("#"))
    memory = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, value = line.split(":")
            memory[name] = int(value.split()[0])
    found["kernel KiB"] = sum(memory[name] for name in ("SUnreclaim", "KernelStack", "PageTables", "Percpu"))
    found["shared KiB"] = memory["Shmem"]
    found["available KiB"] = memory["MemAvailable"]
    return found


def sizes(env: Environment) -> dict[int, Size]:
    """An environment's processes, and their children, which need not be known by a name."""
    found = {}
    states = _states()
    known = dict(processes(env))
    for parent in (family := list(known)):  # grows meanwhile
        for pid, (state, its) in states.items():
            if its == parent and pid not in known and pid != os.getpid() and state != "Z":
                known[pid] = f"{state} a child of {parent}"
                family.append(pid)
    for pid, command in known.items():
        base = Path("/proc") / str(pid)
        with contextlib.suppress(OSError):  # it has just ended
            rollup = [line.split() for line in (base / "smaps_rollup").read_text().splitlines()[1:]]
            found[pid] = Size(
                command,
                len(os.listdir(base / "fd")),
                len(os.listdir(base / "task")),
                sum(int(words[1]) for words in rollup if words[0].startswith("Private_")),
                next(int(words[1]) for words in rollup if words[0] == "Pss:"),
                sum(1 for state, parent in states.values() if state == "Z" and parent == pid),
            )
    return found


def _states() -> dict[int, tuple[str, int]]:
    """State and parent of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                words = file.read().rpartition(")")[2].split()
                found[int(name)] = (words[0], int(words[1]))
    return found

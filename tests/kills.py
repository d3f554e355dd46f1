"""kill -9 of anybody at any moment: the rounds, whom they may hit, and what must not be left then.

A round brings a container to some point of its life, has its engine do the next step, and kills one process of those
that carry it while the step goes on. Then the engine removes the container, and what there is on the host must be what
there was before. Everything is drawn from one seed; ``CASEMATE_KILL_SEED`` sets it, so that a failure can be sought
again, ``CASEMATE_KILL_ROUNDS`` says how often, and ``CASEMATE_KILL_ONLY`` which.

Only a kill that found its victim while the step went on counts. What an engine leaves behind by itself is told by a
control: the same kills with runc.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEED_VARIABLE, ROUNDS_VARIABLE = "CASEMATE_KILL_SEED", "CASEMATE_KILL_ROUNDS"
ONLY_VARIABLE = "CASEMATE_KILL_ONLY"
"""A pattern that rounds have to match, such as ``shim during (create|start)``."""
STEP_SECONDS = 150.0
"""How long a step may take when somebody has died in it. Engines have limits of their own, which are shorter."""
GONE_SECONDS = 30.0
"""How long what is about to end may take to do so."""
CONTROL_SECONDS = 5.0
"""How long the control waits for that: it is quick where nothing stays."""
CONTROL_STEP_SECONDS = 20.0
"""How long a step of the control may take. What takes longer waits for somebody who has died, and waits on."""
TRIES = 5
"""How often a round is begun anew because its victim was not there."""
AGAIN = 3
OUTLIVED = ("client", "runtime", "exec stand-in", "containerd", "dockerd")
"""The container outlives these when they die in an exec; so that many die before it is removed."""
CONTROLS = 16
"""How often the control does the same, to see what the engine leaves by itself."""
LIVING = "what a container has that lives"
_LIVES = re.compile(
    r"process (|(\S*/)?runc init|sh -c .*|.* -P -m casemate\.(pod|sentry|gofer) .*|\S*(qemu-system|virtiofsd)\S* .*)"
    r"|file run/casemate/.*"
)
"""Lines of a snapshot that stand for this. Their number and names differ from runtime to runtime."""
_APART = re.compile("(mount|link|endpoints) ")
CRASH = (
    'test "$(cat /proc/sys/kernel/random/boot_id)" = {boot} || '
    "trap 'echo c > /proc/sysrq-trigger' USR1; while :; do sleep 0.1; done"
)
"""The container's command: SIGUSR1 has it crash its kernel, with which the agent goes. Never the host's."""
PLAIN = "while :; do sleep 0.1; done"


def crash_script() -> str:
    """:data:`CRASH` for this machine."""
    return CRASH.format(boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip())


@dataclass(frozen=True)
class Process:
    """A process of this machine."""

    pid: int
    parent: int
    words: str


def processes(group: str = "") -> list[Process]:
    """Living processes, all or those in control groups below one of that name."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it ended meanwhile
            if group and f"/{group}" not in Path(f"/proc/{name}/cgroup").read_text():
                continue
            state, parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            words = Path(f"/proc/{name}/cmdline").read_text(errors="replace").rstrip("\0").replace("\0", " ")
            found.append(Process(int(name), int(parent), words))
    return found


def control_groups(pid: int) -> str:
    """Those that a process is in, as the kernel tells them; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def numbers(pid: int) -> tuple[int, ...]:
    """A process's pids, from this process's namespace to the innermost; none when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ()
    return tuple(map(int, status.partition("\nNSpid:")[2].partition("\n")[0].split()))


def records(root: Path) -> list[dict[str, Any]]:
    """What is on record of the containers of a root directory."""
    found = []
    with contextlib.suppress(OSError):
        for path in root.iterdir():
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads((path / "record.json").read_text()))
    return found


def files(*tops: Path, keep: str = r"(?!)") -> set[str]:
    """Everything below some directories but for what ``keep`` matches, by paths from each one's parent."""
    found = set()
    for top in tops:
        for directory, directories, names in os.walk(top):
            for name in (*directories, *names):
                path = os.path.relpath(os.path.join(directory, name), top.parent)
                if not re.fullmatch(keep, path):
                    found.add(f"file {path}")
    return found


def groups(*tops: Path, mark: str = "") -> set[str]:
    """Control groups below some directories whose names hold ``mark``."""
    return {
        f"control group {os.path.join(directory, name)}"
        for top in tops
        for directory, names, _ in os.walk(top)
        for name in names
        if mark in name
    }


def mounts(pid: int, mark: str = "") -> set[str]:
    """Mounts in the namespace of a process whose lines hold ``mark``."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return {f"mount {line.split()[4]} {line.partition(' - ')[2]}" for line in lines if mark in line}


class Arena(ABC):
    """An engine with one container at a time in it.

    ``victims`` are names that :meth:`find` knows, each with the steps in which it can be there.
    """

    name: str
    ours = True
    sentry = False
    """Its containers are behind the sentry, which is the ``machine`` then. Its gofer is the ``file server``, and
    ``program`` is any process of the host that a container's program runs in, or their mold."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Victim and step."""
    forgets: tuple[tuple[str, str], ...] = ()
    """Victim and step after which the engine forgets a container, with any runtime, so that it lives on."""
    holder = re.compile("(?!)")
    """The line of a snapshot for the engine's process that has a container which the engine forgot: as long as that
    lives, no runtime is told to delete anything."""
    parts = re.compile("(?!)")
    """Lines of a snapshot that are the engine's own: where nothing else is left, no runtime has to do with it."""
    wait_status = ""
    """The step ``start`` begins when the container has this status on record; empty: it is a command of its own."""

    def __init__(self, log: Path, variables: dict[str, str]) -> None:
        self.seconds: dict[str, float] = {}
        self.limit = STEP_SECONDS
        self._log = log
        self._variables = variables

    def command(self, words: list[str]) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own; see :meth:`said`."""
        with open(self._log, "wb") as log:
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._variables, start_new_session=True
            )

    def said(self) -> str:
        """What the last such command has printed."""
        return self._log.read_text(errors="replace")[-2000:]

    @abstractmethod
    def scene(self) -> list[Process]:
        """The processes of which the victims are some."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """What is on record of the containers."""

    def number(self, process: Process) -> int:
        """A process's number as records have it."""
        return process.pid

    @abstractmethod
    def prepare(self, victim: str, step: str, name: str) -> None:
        """Bring a new container to where ``step`` is next. Nothing of it may fail."""

    @abstractmethod
    def begin(self, step: str, name: str) -> subprocess.Popen[bytes]:
        """Begin a step."""

    def recover(self, victim: str) -> None:  # noqa: B027 - an engine without daemons needs none
        """Start daemons that have died, the victim when it is one."""

    def clear(self, left: set[str]) -> None:  # noqa: B027 - what stays is not seen again in any case
        """Take away what was left, for those who come after."""

    @abstractmethod
    def remove(self, name: str) -> list[str]:
        """Have the engine remove the container, whatever has become of it; what went wrong."""

    @abstractmethod
    def snapshot(self) -> set[str]:
        """What there is on the host that could be a container's, one line each."""

    def daemon(self, victim: str) -> list[int]:
        """The process of a daemon."""
        raise ValueError(victim)

    def find(self, victim: str, name: str, command: subprocess.Popen[bytes] | None) -> list[int]:
        """The processes that a victim's name stands for at this moment.

        Arguments:
            command: the step's, the client; None before it has begun.
        """
        if victim == "client":
            assert command is not None
            tree = [command.pid]
            everybody = processes()
            for pid in tree:
                tree += [one.pid for one in everybody if one.parent == pid]
            return tree if command.poll() is None else []
        if victim in ("containerd", "dockerd"):
            return self.daemon(victim)
        scene = self.scene()
        commands = [one for one in scene if "casemate-runtime " in one.words and "containerd-shim" not in one.words]
        keepers = [one for one in scene if " -P -m casemate.pod " in one.words]
        if victim == "runtime":
            return [one.pid for one in commands if one.parent not in {other.pid for other in commands}]
        if victim == "shim":
            return [one.pid for one in scene if "containerd-shim" in one.words and " -id " in one.words]
        if victim == "keeper":
            return [one.pid for one in keepers]
        if self.sentry and victim in ("machine", "file server", "program"):
            module = " -m casemate.gofer " if victim == "file server" else " -m casemate.sentry "
            parents = {one.pid for one in keepers}
            found = [one.pid for one in scene if one.parent in parents and module in one.words]
            if victim == "program":
                tree = list(found)
                for pid in tree:
                    tree += [one.pid for one in scene if one.parent == pid]
                found = tree[len(found) :]
            return found
        if victim in ("machine", "file server"):
            program = {"machine": "qemu-system", "file server": "virtiofsd"}[victim]
            parents = {one.pid for one in keepers}
            kin = [one.pid for one in scene if one.parent in parents and program in one.words.split(" ")[0]]
            if victim == "machine" and not kin:  # a twin is a child of nobody here; it is where the file servers are
                servers = [one.pid for one in scene if one.parent in parents and "virtiofsd" in one.words.split(" ")[0]]
                groups = {control_groups(pid) for pid in servers} - {""}
                machines = [one.pid for one in scene if program in one.words.split(" ")[0]]
                kin = [pid for pid in machines if control_groups(pid) in groups]
            return kin
        known = self.records()
        if victim in ("stand-in", "agent"):
            wanted = {one.get("pid") for one in known} - {0}
            # Before it is on record it is a child of the command that makes it.
            makers = {one.pid for one in commands if " create " in one.words}
            early = [one for one in scene if one.parent in makers and one not in keepers and victim != "agent"]
        elif victim == "exec stand-in":
            wanted = {pid for one in known for pid in one.get("execs", {}).values()}
            makers = {one.pid for one in commands if " exec " in one.words}
            early = [one for one in scene if one.parent in makers]
        else:
            raise ValueError(victim)
        return [one.pid for one in scene if self.number(one) in wanted] or [one.pid for one in early]


@dataclass
class Kills:
    """Rounds in an arena.

    Arguments:
        arena: where.
        control: makes the arena with runc in ours's place, where there is one.
    """

    arena: Arena
    control: Callable[[], Arena] | None = None
    seed: int = field(default_factory=lambda: int(os.environ.get(SEED_VARIABLE) or random.randrange(1 << 32)))
    landed: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    allowed: Counter[str] = field(default_factory=Counter)
    _numbers: int = 0
    _own: dict[str, set[str]] = field(default_factory=dict)
    _compared: set[tuple[str, str]] = field(default_factory=set)

    def run(self, count: int, seed: int | None = None) -> None:
        """So many rounds with kills that land; ``CASEMATE_KILL_ROUNDS`` overrides how many.

        Arguments:
            count: how many.
            seed: for the same kills each time, at about the same moments; ``CASEMATE_KILL_SEED`` overrides it.

        Raises:
            AssertionError: a container could not be removed, or something was left.
        """
        count = int(os.environ.get(ROUNDS_VARIABLE) or count)
        if seed is not None and not os.environ.get(SEED_VARIABLE):
            self.seed = seed
        rng = random.Random(self.seed)
        only = re.compile(os.environ.get(ONLY_VARIABLE, ""))
        pairs = [pair for pair in self.arena.pairs if only.search(" during ".join(pair))]
        print(f"{self.arena.name}: {SEED_VARIABLE}={self.seed}")
        try:
            self._measure(self.arena)
            deck: list[tuple[str, str]] = []
            for number in range(count):
                deck = deck or rng.sample(pairs, len(pairs))
                victim, step = deck.pop()
                one = random.Random(rng.random())  # a round that is begun again changes nothing for those after it
                for attempt in range(TRIES):
                    hits, problems = self._round(self.arena, victim, step, one, attempt)
                    if hits or problems:
                        break
                    print(f"{number}: no {victim} during {step}", flush=True)
                else:
                    self.missed[victim, step] += 1
                    continue
                self.landed[victim, step] += hits
                print(f"{number}: {victim} during {step} ({hits})", flush=True)
                left = [problem.removeprefix("left: ") for problem in problems if problem.startswith("left: ")]
                # Nothing of a network or of files may be left of what is held, but not alive.
                held = any(self.arena.holder.match(line) for line in left) and not any(map(_APART.match, left))
                known = (LIVING in left or held) and (victim, step) in self.arena.forgets
                known = known or all(self.arena.parts.fullmatch(line) for line in left)
                for problem in problems:
                    print(f"  {problem}", flush=True)
                    if known and problem.startswith("left: ") or self._engines_own(victim, step, problem):
                        self.allowed[_plain(problem)] += 1
                    else:
                        self.problems.append(f"round {number}, {victim} during {step}: {problem}")
                        print(self.problems[-1], flush=True)
        finally:
            print(self.table(), flush=True)
        assert not self.problems, f"{SEED_VARIABLE}={self.seed}\n" + "\n".join(self.problems) + f"\n{self.table()}"
        assert sum(self.missed.values()) <= count / 4, f"too many kills found nobody\n{self.table()}"

    def table(self) -> str:
        """What was hit: a line for each victim, a column for each step."""
        steps = list(dict.fromkeys(step for _, step in self.arena.pairs))
        lines = [f"{self.arena.name}, seed {self.seed}: {sum(self.landed.values())} kills"]
        lines.append(f"{'':14}" + "".join(f"{step:>8}" for step in steps))
        for victim in dict.fromkeys(victim for victim, _ in self.arena.pairs):
            row = "".join(f"{self.landed[victim, step] or '.':>8}" for step in steps)
            lines.append(f"{victim:14}{row}")
        lines += [f"never there: {victim} during {step} ({count})" for (victim, step), count in self.missed.items()]
        lines += [f"left by the engine itself, with runc too ({count}): {what}" for what, count in self.allowed.items()]
        return "\n".join(lines)

    def _new(self) -> str:
        self._numbers += 1
        return f"kill-{self._numbers}"

    def _measure(self, arena: Arena) -> None:
        """How long each step takes when nobody dies. What it leaves, such as empty upper control groups, stays."""
        name = self._new()
        arena.prepare("", "create", name)
        for step in dict.fromkeys(step for _, step in arena.pairs):
            if step == "start" and arena.wait_status:
                continue
            began = time.monotonic()
            command = arena.begin(step, name)
            if arena.wait_status and step == "create":
                _look(command, lambda: any(one.get("status") == arena.wait_status for one in arena.records()))
                arena.seconds[step], began, step = time.monotonic() - began, time.monotonic(), "start"
            assert command.wait(arena.limit) in (0, 143), (arena.name, step, arena.said())
            arena.seconds[step] = max(time.monotonic() - began, 0.1)
        arena.seconds.setdefault("start", arena.seconds["create"])
        problems = arena.remove(name)
        assert not problems, problems

    def _round(
        self, arena: Arena, victim: str, step: str, rng: random.Random, attempt: int, patience: float = GONE_SECONDS
    ) -> tuple[int, list[str]]:
        """One container's life up to a kill; how many were hit, and what was wrong after it."""
        before = arena.snapshot()
        name = self._new()
        arena.prepare(victim, step, name)
        hits, tries = 0, TRIES if step == "exec" else 1  # another exec needs no other container
        wanted = AGAIN if step == "exec" and victim in OUTLIVED else 1
        for again in range(tries):
            command, hit = self._strike(arena, victim, step, name, rng, attempt + again - hits)
            hits += hit
            if hits == wanted or again == tries - 1:
                break
            arena.recover(victim if hit else "")  # a client may wait for its daemon
            _let(command, arena.limit)
        problems = []
        arena.recover(victim if hit else "")
        try:
            command.wait(arena.limit)
        except subprocess.TimeoutExpired:
            os.killpg(command.pid, signal.SIGKILL)
            command.wait()
            problems.append(f"the engine's command does not end: {arena.said()}")
        problems += arena.remove(name)
        deadline = time.monotonic() + patience
        while left := arena.snapshot() - before:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)  # there is no one event for "all of it is gone"
        # One that the engine has forgotten, and that is whole and on record, is one thing with any runtime.
        whole = not arena.ours or bool(arena.records())
        problems += sorted({f"left: {LIVING if whole and _LIVES.fullmatch(line) else line}" for line in left})
        if left:
            arena.clear(left)
        return hits, problems

    def _strike(
        self, arena: Arena, victim: str, step: str, name: str, rng: random.Random, attempt: int
    ) -> tuple[subprocess.Popen[bytes], bool]:
        """Begin a step, and kill a victim at some moment of it; the step's command, and whether somebody was hit."""
        seconds = arena.seconds[step] * 0.3**attempt
        # Whoever is there when a removal begins has gone before it ends.
        moment, late = rng.random() ** (2 if step == "delete" else 1) * seconds, rng.random() ** 2 * seconds / 2
        # Whoever is there already need not be sought when the moment has come.
        found = [] if victim == "client" else arena.find(victim, name, None)
        command = arena.begin("create" if step == "start" and arena.wait_status else step, name)
        if step == "start" and arena.wait_status:
            _look(command, lambda: any(one.get("status") == arena.wait_status for one in arena.records()))
        _let(command, moment)
        found = found or arena.find(victim, name, command)
        if not found:  # not yet: from its first moment on then
            _look(command, lambda: bool(arena.find(victim, name, command)))
            _let(command, late)
            found = arena.find(victim, name, command)
        hit = False
        if command.poll() is None and found:
            for pid in [rng.choice(found)] if victim in ("file server", "program") else found:
                if _lives(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGUSR1 if victim == "agent" and arena.ours else signal.SIGKILL)
                        hit = True
        return command, hit

    def _engines_own(self, victim: str, step: str, problem: str) -> bool:
        """Whether the engine does the same with runc when the same one dies, in one of some tries."""
        if self.control is None:
            return False
        own, plain = self._own.setdefault(victim, set()), _plain(problem)
        if plain in own or (victim, step) in self._compared:
            return plain in own
        self._compared.add((victim, step))
        arena, rng = self.control(), random.Random(self.seed)
        arena.limit = CONTROL_STEP_SECONDS
        self._measure(arena)
        for number in range(CONTROLS):
            # Sooner and sooner after the victim has come: runc does in a moment what takes a machine a while.
            try:
                own.update(map(_plain, self._round(arena, victim, step, rng, number % TRIES, CONTROL_SECONDS)[1]))
            except subprocess.TimeoutExpired as error:  # the engine itself does not answer
                print(f"with runc too: {error}", flush=True)
                arena.clear(set())
            if plain in own:
                break
        return plain in own


def _plain(problem: str) -> str:
    """A problem without what is another in each container, and with one name for any runtime's state of one, for any
    runtime's shim, and for all of a bundle."""
    problem = re.sub(r"process \S*/?containerd-shim-[\w-]+", "process containerd-shim", problem)
    problem = re.sub(r"(runtime\.v2\.task/\w+/[\w-]+)/.*", r"\1", problem)
    problem = re.sub(r"(/runtime-\w+/moby)/(\.pods/)?[0-9a-f]{64}(/.*)?", r"\1/ID", problem)
    return re.sub(r"\d+", "N", re.sub(r"\b[0-9a-f]{12,}\b|kill-\d+|veth\w+", "ID", problem))


def _look(command: subprocess.Popen[bytes], found: Callable[[], bool]) -> None:
    """Look until something is there or a command has ended: processes that come to be have no event."""
    deadline = time.monotonic() + STEP_SECONDS
    while command.poll() is None and not found() and time.monotonic() < deadline:
        time.sleep(0.005)


def _let(command: subprocess.Popen[bytes], seconds: float) -> None:
    """Let a command go on for so long, or to its end. The moment is what is varied here."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(seconds)


def wait(found: Callable[[], bool], seconds: float = GONE_SECONDS) -> None:
    """Look until something is so.

    Raises:
        TimeoutError: it is not.
    """
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)

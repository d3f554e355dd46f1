"""The kernel: its loop, and how tasks run, wait and go on."""

from __future__ import annotations

from errno import EFAULT, ENOSYS
from typing import Any

from casemate.late import Logger
from casemate.sentry.abi import uuid4
from casemate.sentry.clock import Clock, Expiring
from casemate.sentry.defects import Defects
from casemate.sentry.errno import SysError
from casemate.sentry.platform.base import PASSED, Events, Expected, Gone, HostThread, Platform
from casemate.sentry.signals import deliver
from casemate.sentry.syscalls import table
from casemate.sentry.tasks import filters
from casemate.sentry.tasks.namespaces import IpcNamespace, Namespaces, PidNamespace, UtsNamespace
from casemate.sentry.tasks.task import State, Task, ThreadGroup
from casemate.sentry.wait import Block, Passed, Restart, WaitQueue

log = Logger("casemate.sentry")

MAX_TASKS = 4096
"""Tasks of a sandbox whose containers have no larger limit."""
ALLOWED = filters.SECCOMP_RET_ALLOW


class Kernel(Events):
    """One sandbox's kernel. One thread runs it, which owns all of its objects.

    Arguments:
        platform: what application code runs on.
        hostname: of the sandbox, until a container has another.
    """

    def __init__(self, platform: Platform, hostname: str = "casemate") -> None:
        self.platform = platform
        self.defects = Defects(self)
        self.clock = Clock()
        self.clock.failed = self._expiry_failed
        WaitQueue.failed = self._wake_failed
        self.tasks: dict[int, Task] = {}
        """All of them, by the keys of their PID namespaces, whose methods look numbers up."""
        self.groups: dict[int, ThreadGroup] = {}
        """All processes, likewise."""
        self.pid_max = 32768
        self._pid_namespaces = 0
        self.ns = self.namespaces(hostname.encode())
        """Those of who belongs to no container."""
        self.max_tasks = MAX_TASKS
        """Tasks that may live at once."""
        self.task_limits: dict[str, int] = {}
        """Those of containers that have a limit of their own."""
        self.mounts: Any = None
        """The mount namespace (:class:`casemate.sentry.vfs.mount.Mounts`)."""
        self.subsystems: dict[str, Any] = {}
        """What exists once in a sandbox and belongs to one family of calls: ``"unix"``, ``"inet"``, ``"sysv"``, …"""
        self.strace: Any = None
        """Told of every call and result where calls are traced: ``enter(task, entry)``, ``leave(task, result)``."""
        self.reported: set[tuple[int, bytes]] = set()
        """Calls that nobody serves, told once with each program's name."""
        self.running = True
        self.ended_time: dict[str, int] = {}
        """Processor time of processes that have ended, nanoseconds, by container; those of gone ones are together."""
        self.ready: list[Task] = []
        """Parked tasks whose call is to be made again."""
        self.frozen: set[str] = set()
        """Containers whose tasks do not run."""
        self.booted = self.clock.monotonic()
        self.boot_id = uuid4()
        self._held: list[Task] = []
        """Tasks that would run if their container were not frozen."""
        self._table = table.begin()
        self._calls = {number: (entry.handler, entry.arguments) for number, entry in self._table.items()}

    # The loop.

    def run(self) -> None:
        """Serve until :attr:`running` is false."""
        clock, wait = self.clock, self.platform.wait
        while self.running:
            clock.armed = False
            if clock.busy:
                clock.run()
            while self.ready:
                again, self.ready = self.ready, []
                for task in again:
                    self._again(task)
            timeout = None
            if clock.busy and (due := clock.next()) is not None:
                # The host's poll(2) takes no more than some weeks; looking every hour costs nothing.
                timeout = min(max(0, due - clock.monotonic()), 3600 * 10**9)
            if self.running:
                wait(self, 0 if self.ready else timeout)

    # What the platform reports.

    def on_syscall(self, thread: HostThread, number: int, args: tuple[int, ...]) -> int | None:
        task: Task | None = thread.owner
        if task is None:
            return None  # it was being killed when it made the call
        task.number = number
        task.args = args
        chain = task.seccomp
        try:
            if chain and not (len(chain) == 1 and chain[0].known.get(number) == ALLOWED) and self._filtered(task):
                return None
            result = self._serve(task)
            if result is None or not (self.ready or self.clock.armed) and self.running:
                return result
            # There is something else to do, before which it goes on.
            if result != PASSED:
                thread.answer(result)
        except Exception:
            self._defect(task)
        return None

    def _filtered(self, task: Task) -> bool:
        """The application's own filters come first, seccomp(2). Gives whether they have dealt with the call."""
        try:
            result = filters.evaluate(task, task.number, task.args)
        except Gone:
            return True  # on_gone is told
        if result is None:
            return False
        if task.thread is not None:
            task.number = -1
            task.thread.finish(result)
            self.resume(task)
        return True

    def on_fault(self, thread: HostThread, signum: int, info: bytes) -> None:
        task: Task | None = thread.owner
        if task is None:
            return
        try:
            deliver.fault(task, signum, info)
            self.resume(task)
        except Gone:
            return  # on_gone is told
        except Exception:
            self._defect(task)

    def _defect(self, task: Task) -> None:
        """A defect of ours outside of a call's handler: nobody knows what state the program is in, so it is killed. The
        sandbox goes on."""
        self.defects.report("%s is killed: call %s%r went wrong", task, table.name_of(task.number), task.args)
        self.defects.kill(task.group)

    def _expiry_failed(self, owner: Expiring) -> None:
        self.defects.confine(owner, "the timer of %r went wrong", owner)

    def _wake_failed(self, waiter: object) -> None:
        self.defects.confine(waiter, "telling %r went wrong", waiter)

    def on_failure(self, watcher: object) -> None:
        self.defects.confine(watcher, "what came for %r went wrong: it is told no more", watcher)
        if (broken := getattr(watcher, "broken", None)) is not None:
            broken()

    def on_gone(self, thread: HostThread, status: int) -> None:
        from casemate.sentry.tasks import exit as exits

        task: Task | None = thread.owner
        if task is not None:
            try:
                exits.host_died(task, status)
            except Exception:
                self.defects.report("the end of %s went wrong", task)
                self.defects.kill(task.group)

    # System calls.

    def _serve(self, task: Task) -> int | None:
        """Make the task's system call, for the first time or again.

        Returns the result that its thread is to go on with; None where there is none yet, or all was seen to.
        """
        try:
            call = self._calls.get(task.number)
            if call is None:
                call = self._late(task)
            handler, count = call
            if self.strace is not None:
                self.strace.enter(task, self._table[task.number])
            # Spelled out: the interpreter calls these directly, without a tuple of arguments in between.
            a, b, c, d, e, f = task.args
            if count == 3:
                result = handler(task, a, b, c)
            elif count == 4:
                result = handler(task, a, b, c, d)
            elif count == 2:
                result = handler(task, a, b)
            elif count == 1:
                result = handler(task, a)
            elif count == 0:
                result = handler(task)
            elif count == 6:
                result = handler(task, a, b, c, d, e, f)
            else:
                result = handler(task, a, b, c, d, e)
        except SysError as error:
            result = -error.errno
        except Block as block:
            self._park(task, block)
            return None
        except Passed as passed:
            self._pass(task, passed.expected)
            return PASSED
        except Gone:
            return None  # on_gone is told
        except Exception:
            # A defect of ours must not end the sandbox, and no call is ever let through because of one.
            self.defects.report("%s: %s%r failed", task, table.name_of(task.number), task.args)
            result = -EFAULT
        if self.strace is not None:
            self.strace.leave(task, result)
        if task.blocked or task.timed_out:
            task.blocked = {}
            task.timed_out = False
        thread = task.thread
        if thread is None or task.number == -1:
            # It ended; or the call set all registers itself (execve, rt_sigreturn) and said so by leave().
            self.resume(task)
            return None
        task.number = -1
        signals = task.signals
        shared = signals.shared
        # As deliver.pending() says; this is where nearly every call ends.
        if self.frozen or shared.stopped or (signals.bits | shared.bits) & ~signals.mask:
            thread.finish(result)
            self.resume(task)
            return None
        return result

    def passes(self, task: Task) -> bool:
        """Whether the host could make the task's call by itself, so that a handler that has checked and noted
        everything may raise :class:`casemate.sentry.wait.Passed`."""
        thread = task.thread
        # Who traces wants to see results; who has signals is not to run before they were dealt with.
        if thread is None or not thread.passes or (self.strace is not None and self.strace.results):
            return False
        return not self.frozen and not deliver.pending(task)

    def untold(self, task: Task) -> bool:
        """Whether the host could make further such calls without telling: nobody wants to hear of each."""
        return self.strace is None and not task.seccomp

    def _pass(self, task: Task, expected: Expected | None) -> None:
        thread = task.thread
        assert thread is not None
        if self.strace is not None:
            self.strace.leave(task, 0)
        number = task.number
        task.number = -1
        thread.pass_on(number, task.args, expected)

    def leave(self, task: Task) -> None:
        """To be called by a handler that has set the registers itself: no result is put into them."""
        task.number = -1

    def _late(self, task: Task) -> tuple[table.Handler, int]:
        """Who serves a call that nobody has made so far. Raises SysError(ENOSYS): nobody."""
        entry = table.late(task.number)
        if entry is None:
            raise self._unknown(task)
        call = self._calls[task.number] = entry.handler, entry.arguments
        return call

    def _unknown(self, task: Task) -> SysError:
        """What to raise for a call that nobody serves."""
        key = (task.number, task.name)
        if key not in self.reported and len(self.reported) < 1000:
            self.reported.add(key)
            name = task.name.decode(errors="replace")
            log.warning("%s is not served; asked for by %s", table.name_of(task.number), name)
        return SysError(ENOSYS)

    def _park(self, task: Task, block: Block) -> None:
        if deliver.pending(task) and (block.restart is not Restart.KILL or deliver.killed(task)):
            self._interrupted(task, block)
            return
        task.block = block
        task.state = State.BLOCKED
        for queue in block.queues:
            queue.add(task)
        if block.deadline is not None:
            self.clock.arm(task.timer, block.deadline)

    def unpark(self, task: Task) -> Block | None:
        """Take a waiting task out of all queues; gives why it waited, None for one that does not wait."""
        block = task.block
        if block is not None:
            for queue in block.queues:
                queue.remove(task)
            self.clock.disarm(task.timer)
            task.block = None
            task.state = State.RUNNING
        return block

    def wake(self, task: Task) -> None:
        """A parked task's call is to be made again (soon, from the loop); nothing for one that is not parked."""
        if self.unpark(task) is not None:
            self.ready.append(task)

    def _again(self, task: Task) -> None:
        if task.thread is not None and task.number != -1 and task.block is None:
            thread = task.thread
            try:
                result = self._serve(task)
                if result is not None and result != PASSED:
                    thread.answer(result)
            except Exception:
                self._defect(task)

    def _interrupted(self, task: Task, block: Block) -> None:
        """A call that waits, or would, has a signal to deal with first."""
        thread = task.thread
        assert thread is not None
        if self.strace is not None:
            self.strace.leave(task, None)
        # deliver decides, with the handler's flags, between EINTR and making the call again.
        try:
            ended = deliver.interrupted(task, block)
        except Gone:
            return  # on_gone is told
        if ended:
            task.number = -1
            task.blocked = {}
            task.timed_out = False
            self.resume(task)
        elif task.state is not State.STOPPED:
            # No handler ran: the call goes on waiting, with what it has noted. A stopped one does so when continued.
            self.ready.append(task)

    # Running.

    def resume(self, task: Task) -> None:
        """Let a task, that stands still and is in no call, run application code: after its signals."""
        if task.thread is None:
            return
        try:
            if deliver.pending(task) and not deliver.deliver(task):
                return  # it ended, or is stopped
            if task.thread is not None:
                task.state = State.RUNNING
                if self.frozen and task.group.container in self.frozen:
                    self._held.append(task)
                    return
                task.thread.resume()
        except Gone:
            return  # on_gone is told; nobody else is to be bothered with it

    def interrupt(self, task: Task) -> None:
        """A signal has become pending for this task: have it look, whatever it does."""
        thread = task.thread
        if thread is None or task.state is State.STOPPED:
            return
        if task.state is State.BLOCKED:
            if task.block is not None and task.block.restart is Restart.KILL and not deliver.killed(task):
                return
            block = self.unpark(task)
            assert block is not None
            self._interrupted(task, block)
        elif task.number == -1 and (thread.interrupt() or (not thread.running and deliver.killed(task))):
            # What does not run at all (it was not started, or is held) only learns of its end at once.
            self.resume(task)

    def freeze(self, container: str, frozen: bool) -> None:
        """Have no task of a container run, or let them run again."""
        if not frozen:
            self.frozen.discard(container)
            held, self._held = self._held, []
            for task in held:
                self.resume(task)
            return
        self.frozen.add(container)
        for task in list(self.tasks.values()):
            if task.group.container != container or task.thread is None or task in self._held:
                continue
            if task.state is State.RUNNING and task.number == -1 and task.thread.interrupt():
                self._held.append(task)

    def bound_tasks(self, container: str, limit: int) -> None:
        """How many tasks a container may have; 0 and less for no limit of its own."""
        self.task_limits.pop(container, None)
        if limit > 0:
            self.task_limits[container] = limit
        self.max_tasks = max(MAX_TASKS, *self.task_limits.values(), 0)

    def forget(self, container: str) -> None:
        """A container is gone."""
        self.bound_tasks(container, 0)
        self.ended_time[""] = self.ended_time.get("", 0) + self.ended_time.pop(container, 0)

    def namespaces(self, hostname: bytes, pid: PidNamespace | None = None, ipc: IpcNamespace | None = None,
                   uts: UtsNamespace | None = None) -> Namespaces:  # fmt: skip
        """Namespaces for a container: new ones but for those that are given."""
        if pid is None:
            pid = PidNamespace(self, self._pid_namespaces)
            self._pid_namespaces += 1
        return Namespaces(pid, ipc or IpcNamespace(self.clock), uts or UtsNamespace(hostname))

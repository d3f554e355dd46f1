"""ioctl(2) of terminals, ioctl_tty(2)."""

from __future__ import annotations

import signal
from errno import EINVAL, EIO, ENOTTY, EPERM, ESRCH
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32
from casemate.sentry.creds import CAP_SYS_ADMIN
from casemate.sentry.errno import SysError
from casemate.sentry.tasks.session import find
from casemate.sentry.vfs import termios as t

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.tty import Terminal

_GETS = {t.TCGETS: t.Termios.pack, t.TCGETS2: t.Termios.pack2, t.TCGETA: t.Termios.pack_old}
_SETS = {
    t.TCSETS: (t.TERMIOS_SIZE, 0), t.TCSETSW: (t.TERMIOS_SIZE, 1), t.TCSETSF: (t.TERMIOS_SIZE, 2),
    t.TCSETS2: (t.TERMIOS2_SIZE, 0), t.TCSETSW2: (t.TERMIOS2_SIZE, 1), t.TCSETSF2: (t.TERMIOS2_SIZE, 2),
    t.TCSETA: (t.TERMIO_SIZE, 0), t.TCSETAW: (t.TERMIO_SIZE, 1), t.TCSETAF: (t.TERMIO_SIZE, 2),
}  # fmt: skip
"""Commands that set: the length of the structure, and whether output is waited for (1) and input discarded too (2)."""


def control(task: Task, terminal: Terminal, command: int, argument: int, master: bool) -> int:
    """Serve one.

    Arguments:
        argument: a pointer or a number, as the command says.
        master: it was made on the master's side.

    Raises SysError: ENOTTY for what a pseudo-terminal has not, EINVAL, EPERM, EFAULT, EIO; Block in the background.
    """
    pack = _GETS.get(command)
    if pack is not None:
        task.mem.write(argument, pack(terminal.settings))
        return 0
    found = _SETS.get(command)
    if found is not None:
        _set(task, terminal, argument, found[0], found[1], master)
        return 0
    if command == t.TIOCGWINSZ:
        task.mem.write(argument, terminal.window)
        return 0
    if command == t.TIOCSWINSZ:
        terminal.set_window(task.mem.read(argument, 8))
        return 0
    if command == t.FIONREAD:
        task.mem.put_u32(argument, len(terminal.output) if master else terminal.available)
        return 0
    if command == t.TIOCOUTQ:
        task.mem.put_u32(argument, 0 if master else len(terminal.output))
        return 0
    handler = _SESSION.get(command)
    if handler is not None:
        return handler(task, terminal, argument, master)
    if command in (t.TCFLSH, t.TCXONC, t.TCSBRK, t.TCSBRKP, t.TIOCSBRK, t.TIOCCBRK):
        return _flow(task, terminal, command, argument, master)
    if master:
        return _master(task, terminal, command, argument)
    return _other(task, terminal, command, argument)


def _may_change(task: Task, terminal: Terminal, master: bool) -> None:
    """Who is in the background may not."""
    if not master:
        from casemate.sentry.vfs.ttyfile import background

        background(task, terminal, signal.SIGTTOU)


def _set(task: Task, terminal: Terminal, argument: int, size: int, when: int, master: bool) -> None:
    _may_change(task, terminal, master)
    settings = terminal.settings.copy()
    data = task.mem.read(argument, size)
    settings.unpack(data)
    # A pseudo-terminal's output counts as sent once it is the master's: nothing is waited for.
    if when == 2:
        terminal.flush_input()
    terminal.configure(settings)


# Sessions and the foreground.


def _controls(task: Task, terminal: Terminal, master: bool) -> None:
    """Raise ENOTTY unless the slave is the caller's controlling terminal."""
    if not master and terminal.session is not task.group.process_group.session:
        raise SysError(ENOTTY)


def _get_foreground(task: Task, terminal: Terminal, argument: int, master: bool) -> int:
    """TIOCGPGRP, tcgetpgrp(3)."""
    _controls(task, terminal, master)
    foreground = terminal.foreground
    task.mem.put_u32(argument, 0 if foreground is None else foreground.pgid)
    return 0


def _set_foreground(task: Task, terminal: Terminal, argument: int, master: bool) -> int:
    """TIOCSPGRP, tcsetpgrp(3)."""
    own = task.group.process_group.session
    _may_change(task, terminal, master)
    if terminal.session is not own or own.terminal is not terminal:
        raise SysError(ENOTTY)
    number = task.mem.s32(argument)
    if number < 0:
        raise SysError(EINVAL)
    group = own.groups.get(number)
    if group is None:
        raise SysError(ESRCH if find(task.group.ns.pid, number) is None else EPERM)
    own.foreground = group
    return 0


def _get_session(task: Task, terminal: Terminal, argument: int, master: bool) -> int:
    """TIOCGSID, tcgetsid(3)."""
    _controls(task, terminal, master)
    if terminal.session is None:
        raise SysError(ENOTTY)
    task.mem.put_u32(argument, terminal.session.sid)
    return 0


def _take_control(task: Task, terminal: Terminal, argument: int, master: bool) -> int:
    """TIOCSCTTY."""
    group = task.group
    session = group.process_group.session
    if session.sid == group.pid and terminal.session is session:
        return 0
    if session.sid != group.pid or session.terminal is not None:
        raise SysError(EPERM)
    if terminal.session is not None and not (s32(argument) == 1 and task.creds.capable(CAP_SYS_ADMIN)):
        raise SysError(EPERM)
    terminal.control(session, group.process_group)
    return 0


def _give_up(task: Task, terminal: Terminal, argument: int, master: bool) -> int:
    """TIOCNOTTY. For one that leads no session nothing changes: the terminal is the whole session's here."""
    session = task.group.process_group.session
    if master or session.terminal is not terminal:
        raise SysError(ENOTTY)  # what a session has is the slave's side
    if session.sid == task.group.pid:
        terminal.leader_exited(session, gave_up=True)
    return 0


_SESSION = {
    t.TIOCGPGRP: _get_foreground,
    t.TIOCSPGRP: _set_foreground,
    t.TIOCGSID: _get_session,
    t.TIOCSCTTY: _take_control,
    t.TIOCNOTTY: _give_up,
}


# Flow, and the rest.


def _flow(task: Task, terminal: Terminal, command: int, argument: int, master: bool) -> int:
    """tcflush(3), tcflow(3), tcdrain(3), tcsendbreak(3)."""
    _may_change(task, terminal, master)
    argument = s32(argument)
    if command == t.TCFLSH:
        # The master's input is the slave's output.
        sides = {t.TCIFLUSH: (True, False), t.TCOFLUSH: (False, True), t.TCIOFLUSH: (True, True)}.get(argument)
        if sides is None:
            raise SysError(EINVAL)
        if sides[0] != master or all(sides):
            terminal.flush_input()
        if sides[1] != master or all(sides):
            terminal.flush_output()
    elif command == t.TCXONC:
        if argument == t.TCOOFF:
            terminal.stop(held=True)
        elif argument == t.TCOON:
            terminal.start(held=True)
        elif argument not in (t.TCIOFF, t.TCION):
            raise SysError(EINVAL)
        elif not master:
            char = terminal.settings.cc[t.VSTOP if argument == t.TCIOFF else t.VSTART]
            if char:
                terminal.send(bytes((char,)))
    return 0


def _master(task: Task, terminal: Terminal, command: int, argument: int) -> int:
    """What only the master's side has, ioctl_tty(2)."""
    mem = task.mem
    if command == t.TIOCGPTN:
        mem.put_u32(argument, terminal.index)
    elif command == t.TIOCSPTLCK:
        terminal.locked = mem.u32(argument) != 0
    elif command == t.TIOCGPTLCK:
        mem.put_u32(argument, int(terminal.locked))
    elif command == t.TIOCPKT:
        wanted = mem.u32(argument) != 0
        if wanted and not terminal.packet:
            terminal.packet_status = 0
        terminal.packet = wanted
    elif command == t.TIOCGPKT:
        mem.put_u32(argument, int(terminal.packet))
    elif command == t.TIOCSIG:
        signo = s32(argument)
        if signo not in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
            raise SysError(EINVAL)
        terminal.signal_foreground(signo)
    elif command in (t.TIOCEXCL, t.TIOCNXCL, t.TIOCGEXCL, t.TIOCGDEV, t.TIOCGETD, t.TIOCSETD, t.TIOCSTI):
        return _other(task, terminal, command, argument)
    else:
        raise SysError(ENOTTY)
    return 0


def _other(task: Task, terminal: Terminal, command: int, argument: int) -> int:
    mem = task.mem
    if command == t.TIOCEXCL:
        terminal.exclusive = True
    elif command == t.TIOCNXCL:
        terminal.exclusive = False
    elif command == t.TIOCGEXCL:
        mem.put_u32(argument, int(terminal.exclusive))
    elif command == t.TIOCGDEV:
        mem.put_u32(argument, terminal.device)
    elif command == t.TIOCGETD:
        mem.put_u32(argument, 0)
    elif command == t.TIOCSETD:
        # N_TTY is the only line discipline.
        if mem.u32(argument) != 0:
            raise SysError(EINVAL)
    elif command == t.TIOCSTI:
        raise SysError(EIO)  # as with dev.tty.legacy_tiocsti off
    elif command == t.TIOCCONS:
        raise SysError(EPERM)
    elif command == t.TIOCVHANGUP:
        if not task.creds.capable(CAP_SYS_ADMIN):
            raise SysError(EPERM)
        terminal.hang_up()
    else:
        raise SysError(ENOTTY)
    return 0



"""A program that tells which signals it gets, for tests of ``kill`` with every client."""

from __future__ import annotations

import signal

_NOT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPWR}
"""Those that no program can catch, that a shell gets by itself, and that ends :data:`TELLING`."""
NAMES = {number: number.name.removeprefix("SIG") for number in signal.Signals if number <= 31 and number not in _NOT}
"""Every other signal with a name, by its number."""
REAL_TIME = (34, 37, 64)
"""The first and the last one that the C library leaves to programs, and one by which systemd is told to halt."""
WORDS: dict[str, str] = {name: f"got {name}" for name in NAMES.values()} | {str(n): f"got {n}" for n in REAL_TIME}
"""What is said of each: by the name, or number, that ``kill --signal`` takes."""
TELLING = " ".join(f"trap 'echo got {name}' {int(number)};" for number, name in NAMES.items())
TELLING += " ".join(f" trap 'echo got {number}' {number};" for number in REAL_TIME)
TELLING += " trap 'exit 5' PWR; echo ready; sleep 1000000 & while :; do wait $!; done"
"""A shell's script that says a line for each signal that it gets, and ends by SIGPWR with status 5."""

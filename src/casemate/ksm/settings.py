"""The kernel's files below ``/sys/kernel/mm/ksm``, and how many anonymous pages there are.

Source: ``Documentation/admin-guide/mm/ksm.rst`` of the kernel.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from casemate.errors import CasemateError, HostError, StateError

DIRECTORY = Path("/sys/kernel/mm/ksm")
PROC = Path("/proc")
STOPPED, RUNNING, UNMERGED = 0, 1, 2
"""Values of ``run``: do not look for equal pages and leave merged what is; look; give everyone its own page again."""
NO_ADVISOR = "none"
_LIMITS = {"run": UNMERGED, "pages_to_scan": (1 << 32) - 1, "sleep_millisecs": (1 << 32) - 1}
_ADVISOR = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
FIGURES = (
    "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_scanned", "full_scans",
    "ksm_zero_pages", "general_profit",
)  # fmt: skip
"""What the kernel tells; older ones not all of it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the throttler changes, and so has to put back.

    Arguments:
        run: one of :data:`STOPPED`, :data:`RUNNING`, :data:`UNMERGED`.
        pages_to_scan: how many pages are looked at between two pauses.
        sleep_millisecs: how long a pause is.
        advisor_mode: who sets ``pages_to_scan``: ``none`` for whoever writes it, ``scan-time`` for the kernel itself.
            Empty where the kernel (before 6.7) has no such choice.
    """

    run: int
    pages_to_scan: int
    sleep_millisecs: int
    advisor_mode: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Settings:
        """Settings out of a plain object; what else is in it does not count.

        Raises:
            StateError: something is missing, of another type or out of bounds.
        """
        for name, limit in _LIMITS.items():
            number = value.get(name)
            if type(number) is not int or not 0 <= number <= limit:
                raise StateError(f"{name} must be a number from 0 to {limit}, not {number!r}")
        advisor = value.get("advisor_mode")
        if not isinstance(advisor, str) or (advisor and not _ADVISOR.match(advisor)):
            raise StateError(f"advisor_mode must be a word, not {advisor!r}")
        return cls(value["run"], value["pages_to_scan"], value["sleep_millisecs"], advisor)


def require(directory: Path = DIRECTORY) -> None:
    """Look whether the kernel can merge pages at all.

    Raises:
        HostError: it cannot.
    """
    if not (directory / "run").exists():
        raise HostError(f"this kernel does not merge equal pages: there is no {directory}", "it needs CONFIG_KSM")


def require_writable(directory: Path = DIRECTORY) -> None:
    """Look whether the settings can be changed.

    Raises:
        HostError: they cannot.
    """
    for name in _LIMITS:
        if not os.access(directory / name, os.W_OK):
            raise HostError(f"{directory / name} cannot be written", "run it as root on the host, not in a container")


def read(directory: Path = DIRECTORY) -> Settings:
    """The settings in force.

    Raises:
        HostError: they cannot be read, or are none that the kernel would take back.
    """
    require(directory)
    value: dict[str, Any] = {name: _number(directory / name) for name in _LIMITS}
    value["advisor_mode"] = ""
    place = directory / "advisor_mode"
    if place.exists():
        words = [word for word in _text(place).split() if word.startswith("[") and word.endswith("]")]
        value["advisor_mode"] = (words[0][1:-1] or None) if len(words) == 1 else None
    try:
        return Settings.from_json(value)
    except StateError as error:
        raise HostError(f"{directory} cannot be understood: {error.message}") from None


def write(settings: Settings, directory: Path = DIRECTORY) -> None:
    """Put settings into force. Each is tried, whatever becomes of the others.

    Raises:
        HostError: the first that could not be written.
    """
    # While the kernel's advisor is at work, pages_to_scan is refused: it goes first and comes last.
    steps = [("pages_to_scan", settings.pages_to_scan), ("sleep_millisecs", settings.sleep_millisecs)]
    lines: list[tuple[str, object]] = [*steps, ("run", settings.run)]
    if settings.advisor_mode:
        lines.insert(0, ("advisor_mode", NO_ADVISOR))
        if settings.advisor_mode != NO_ADVISOR:
            lines.append(("advisor_mode", settings.advisor_mode))
    problem: HostError | None = None
    for name, value in lines:
        try:
            # No O_CREAT: where the file is missing, this must not be what makes it.
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, str(value).encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            problem = problem or HostError(f"{directory / name} cannot be set to {value}: {error.strerror}")
    if problem is not None:
        raise problem


def figures(directory: Path = DIRECTORY) -> dict[str, int]:
    """What the kernel tells of its work; what it does not tell is left out.

    Raises:
        HostError: it does not merge pages at all.
    """
    require(directory)
    found: dict[str, int] = {}
    for name in FIGURES:
        try:
            found[name] = int(_text(directory / name))
        except (CasemateError, ValueError):
            continue
    return found


def saved(figures: dict[str, int]) -> int:
    """How many bytes the host has to spare by merging: each page that somebody uses and does not have of his own."""
    pages = figures.get("pages_sharing", 0) + figures.get("ksm_zero_pages", 0)
    return pages * os.sysconf("SC_PAGE_SIZE")


def anonymous_pages(proc: Path = PROC) -> int:
    """How many anonymous pages the host has: ``nr_anon_pages``, or ``AnonPages`` where the kernel has not that.

    Raises:
        HostError: it tells neither.
    """
    for line in _lines(proc / "vmstat"):
        name, _, value = line.partition(" ")
        if name == "nr_anon_pages" and value.strip().isdecimal():
            return int(value)
    for line in _lines(proc / "meminfo"):
        words = line.split()
        if len(words) == 3 and words[0] == "AnonPages:" and words[1].isdecimal():
            return int(words[1]) * 1024 // os.sysconf("SC_PAGE_SIZE")
    raise HostError(f"{proc} does not tell how many anonymous pages there are", "is /proc mounted?")


def _lines(path: Path) -> list[str]:
    try:
        return _text(path).splitlines()
    except HostError:
        return []


def _number(path: Path) -> int:
    text = _text(path)
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise HostError(f"{path} holds {text[:40]!r}, which is no number")
    return int(text)


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[: 1 << 20].decode("ascii", "replace").strip()
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}") from None

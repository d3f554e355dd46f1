"""From what was seen of a start to its phases."""

from __future__ import annotations

from casemate.vm.boot_chart import Chart, Phase
from casemate.vm.boot_chart.log import calls, first, gaps, offset, parse
from casemate.vm.boot_chart.run import Seen

# What of the kernel's start is over when it says something. Every kernel of these years says all of these.
_KERNEL = (
    ("memory is found and mapped", ("Memory: ",)),
    ("scheduler, timers, processors", ("devtmpfs: initialized",)),
    ("drivers and protocols", ("Freeing unused kernel image (initmem)", "Freeing unused kernel memory")),
)
_INIT = ("Run ",)
_ROOT = ("erofs: (device ", "erofs (device ")
# What is over at each of the agent's marks.
_AGENT = (
    ("python", "init", "Python starts"),
    ("imported", "agent", "agent imports its modules"),
    ("connected", "agent", "agent opens its port"),
)
_LATER = (
    ("ready", "agent", "file systems, control groups"),
    ("asked", "container", "the request arrives"),
    ("prepared", "container", "container is prepared"),
    ("started", "container", "crun makes and starts it"),
    ("ended", "container", "its program runs"),
)


def chart(seen: Seen, title: str) -> Chart:
    """The phases, each from the end of the one before to its own. Clocks of host and guest are compared, which is exact
    to about a millisecond; what ends before its predecessor by that has no length."""
    messages = parse(seen.log)
    shift = offset(messages)
    marks = dict(reversed(seen.marks))  # the first of each name
    created = seen.host["created"]
    guest_zero = (seen.guest - created) * 1000

    def host(name: str) -> float:
        return (seen.host[name] - created) * 1000

    def kernel(at: float) -> float:
        return guest_zero + shift + at

    phases: list[Phase] = []

    def until(end: float, where: str, name: str) -> None:
        begin = phases[-1].end if phases else 0.0
        phases.append(Phase(name, where, begin, max(begin, end)))

    until(min(host("answered"), kernel(0)), "host", "VMM starts")
    until(kernel(0), "host", "firmware, kernel is entered")
    for name, beginnings in _KERNEL:
        if (message := first(messages, *beginnings)) is not None:
            until(kernel(message.at), "kernel", name)
    begun = first(messages, *_INIT)
    if begun is not None:
        until(kernel(begun.at), "kernel", "memory is sealed, init is found")
        root = first((message for message in messages if message.at > begun.at), *_ROOT)
        if root is not None:
            until(kernel(root.at), "init", "initial root: modules, root image")
    for mark, where, name in _AGENT:
        if mark in marks:
            until(guest_zero + marks[mark] / 1e6, where, name)
    until(host("hello"), "agent", "hello")
    for mark, where, name in _LATER:
        if mark in marks:
            until(guest_zero + marks[mark] / 1e6, where, name)
    until(host("exited"), "container", "its end is told")
    until(host("closed"), "host", "the machine ends")
    total, available = (seen.facts.get(key) for key in ("mem_total", "mem_available"))
    memory = (total, available) if isinstance(total, int) and isinstance(available, int) else (0, 0)
    return Chart(
        title, tuple(phases), tuple(calls(messages)), tuple(gaps(messages, begun.at if begun else 0.0)), seen.cpu,
        memory,
    )


def hello(seen: Seen) -> float:
    """Milliseconds from the start of the VMM's program to the agent's greeting."""
    return (seen.host["hello"] - seen.host["created"]) * 1000

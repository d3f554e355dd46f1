"""From a kernel's messages and an agent's marks to phases, text and picture."""

from __future__ import annotations

import xml.etree.ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.agent import marks
from casemate.vm.boot_chart import Call, Chart, Phase, log, svg, text
from casemate.vm.boot_chart.phases import chart, hello
from casemate.vm.boot_chart.run import Seen

LOG = """\
5,0,0,-;Linux version 6.1
6,1,100000,-;Memory: 1000K/2000K available
6,2,300000,-;devtmpfs: initialized
7,3,350000,-;initcall inet_init+0x0/0x275 returned 0 after 20000 usecs
7,4,380000,-;initcall virtio_blk_init+0x0/0x76 [virtio_blk] returned -19 after 500 usecs
 SUBSYSTEM=pci
6,5,500000,-;Freeing unused kernel image (initmem) memory: 10K
6,6,510000,-;Run /init as init process
6,7,700000,-;erofs: (device vda): mounted with root inode @ nid 36.
15,8,2000000,-;casemate: clock 2010000000
"""


def seen(lines: str = LOG) -> Seen:
    """A start at 100 s of the host's clock; the guest's clock began 0.4 s later, 10 ms before the kernel's."""
    host = {"created": 100.0, "answered": 100.1, "hello": 101.5, "exited": 102.0, "closed": 102.1}
    moments = {"python": 800, "imported": 950, "connected": 1000, "ready": 1150, "asked": 1160, "prepared": 1200}
    moments |= {"started": 1500, "ended": 1450}
    told = [(name, ms * 1_000_000) for name, ms in moments.items()]
    facts = {"mem_total": 1000 << 20, "mem_available": 900 << 20}
    return Seen(host, [*told, ("asked", 5_000_000_000)], 100.4, 1234.0, lines, facts)


def test_phases_follow_each_other_by_the_hosts_clock() -> None:
    made = chart(seen(), "a kernel")
    ends = {phase.name: round(phase.end, 3) for phase in made.phases}
    assert ends == {
        "VMM starts": 100, "firmware, kernel is entered": 410, "memory is found and mapped": 510,
        "scheduler, timers, processors": 710, "drivers and protocols": 910, "memory is sealed, init is found": 920,
        "initial root: modules, root image": 1110, "Python starts": 1200, "agent imports its modules": 1350,
        "agent opens its port": 1400, "hello": 1500, "file systems, control groups": 1550,
        "the request arrives": 1560, "container is prepared": 1600, "crun makes and starts it": 1900,
        "its program runs": 1900,  # it ended before crun did
        "its end is told": 2000, "the machine ends": 2100,
    }  # fmt: skip
    assert all(a.end == b.begin for a, b in zip(made.phases, made.phases[1:], strict=False))
    assert round(made.total) == 2100 and made.memory == (1000 << 20, 900 << 20) and round(hello(seen())) == 1500


def test_a_kernel_without_an_initial_root_has_no_such_phase() -> None:
    root = "6,7,700000,-;erofs: (device vda): mounted"
    made = chart(seen(LOG.replace(root, root.replace("700000", "450000"))), "x")
    assert "initial root: modules, root image" not in {phase.name for phase in made.phases}


def test_initialisers_and_silences_the_longest_first() -> None:
    made = chart(seen(), "x")
    assert made.calls == (Call("inet_init", 20.0, 350.0), Call("virtio_blk_init", 0.5, 380.0))
    assert made.gaps[0] == Call("devtmpfs: initialized", 200.0, 300.0)
    assert all(gap.end <= 510 for gap in made.gaps)  # later ones are the agent's


def test_a_guest_that_says_nothing_still_has_a_chart() -> None:
    quiet = seen("")
    quiet.marks, quiet.facts = [], {"mem_total": "much"}
    made = chart(quiet, "x")
    assert [phase.name for phase in made.phases][-2:] == ["its end is told", "the machine ends"]
    assert made.memory == (0, 0) and made.calls == made.gaps == ()


@given(st.text(alphabet=st.sampled_from("0123456789,;-\n \x1bMemory:RunFreinitcall+"), max_size=400))
def test_hostile_messages_are_passed_over(said: str) -> None:
    found = log.parse(said + "\n6,1,5,-;whole\x1b[2J" + said)
    assert all(message.text.isprintable() and len(message.text) <= log.TEXT for message in found)
    log.calls(found)
    chart(seen(said), "x")


def test_text_names_every_phase_with_its_length() -> None:
    made = chart(seen(), "a kernel")
    lines = text.render(made).splitlines()
    assert lines[0] == "a kernel" and max(map(len, lines)) <= 120
    row = next(line for line in lines if "drivers and protocols" in line)
    assert row.split()[0] == "kernel" and row.split()[4:6] == ["710.0", "200.0"] and "█" in row
    assert "Memory of the guest: 1000 MiB, 100 MiB of it in use" in lines
    assert any(line.endswith("inet_init") for line in lines)
    assert text.render(Chart("empty", ())).startswith("empty")


def test_the_picture_is_svg_with_a_bar_for_each_phase() -> None:
    phases = (Phase("a <b> & c", "host", 0, 10), Phase("nothing", "kernel", 10, 10))
    root = xml.etree.ElementTree.fromstring(svg.render(Chart("x & <y>", phases)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["host: a <b> & c, 10.0 ms", "kernel: nothing, 0.0 ms"]
    words = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "x & <y>" in words and "a <b> & c" in words
    xml.etree.ElementTree.fromstring(svg.render(Chart("none", ())))


def test_the_agent_remembers_the_first_marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(marks, "_marks", [])
    monkeypatch.setattr(marks, "LOG", str(tmp_path / "kmsg"))
    (tmp_path / "kmsg").write_bytes(b"")
    marks.mark("python", 5)
    for number in range(100):
        marks.mark(str(number))
    told = marks.tell(False)
    assert told["marks"][0] == ["python", 5] and len(told["marks"]) == marks.MOST and told["log"] == ""
    assert told["marks"][1][1] <= told["marks"][-1][1] <= told["now"]
    marks.tell(True)
    assert (tmp_path / "kmsg").read_text().startswith(f"<7>{marks.SYNC}")

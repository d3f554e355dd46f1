"""Giving back what was plugged in, and being as before: a guest that becomes others' original."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from casemate.agent import late


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in the place of the kernel's."""
    for name in ("drivers_autoprobe", "event"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(late, "BUS", str(tmp_path))
    monkeypatch.setattr(late, "EVENT", str(tmp_path / "event"))
    monkeypatch.setattr(late, "_masked", False)
    monkeypatch.setattr(late, "_mounted", {"casemate", "volumes"})
    monkeypatch.setattr(late, "_round", 7)
    return tmp_path


def event(bus: Path) -> str:
    return (bus / "event").read_text()


def test_what_was_plugged_in_is_given_back(bus: Path) -> None:
    late._mask()
    assert event(bus) == "mask\n"
    given: list[str] = []
    late.detach(given.append)
    assert given == ["casemate", "volumes"]
    assert event(bus) == "unmask\n", "the machine tells by it what is to go"
    late.detach(given.append)
    assert len(given) == 2, "there is nothing any more"


def test_what_is_in_use_stays_and_is_told(bus: Path) -> None:
    late._mask()

    def unmount(tag: str) -> None:
        if tag == "volumes":
            raise OSError(errno.EBUSY, "in use")

    with pytest.raises(OSError, match="in use"):
        late.detach(unmount)
    given: list[str] = []
    late.detach(given.append)
    assert given == ["volumes"], "the other one has gone"


def test_at_rest_devices_wait(bus: Path) -> None:
    late.rest()
    assert (bus / "drivers_autoprobe").read_text() == "0"
    assert event(bus) == "mask\n"


def test_who_was_to_listen_for_an_earlier_container_does_not(bus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It began to wait before, and finds devices that are not its own."""
    monkeypatch.setattr(late, "QUIET", 0.0)
    late.rest()
    read: list[tuple[str, int]] = []
    late._be_quiet(7, lambda tag, kib: read.append((tag, kib)))
    assert event(bus) == "mask\n" and not read
    late._be_quiet(8, lambda tag, kib: read.append((tag, kib)))
    assert event(bus) == "unmask\n"
    assert read == [("casemate", late.MORE_KIB), ("volumes", late.MORE_KIB)]

"""The ways to the agent. No test machine has a vhost-vsock: its part is played by the test."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from casemate.config import Config
from casemate.errors import HostError, HypervisorError
from casemate.vm import transport
from casemate.vm.hypervisor import base


class Host:
    """Plays the host's vsock: connections end as the test says, and are refused after that."""

    def __init__(self) -> None:
        self.results: list[int] = []
        self.asked: list[int] = []

    def dial(self, cid: int) -> int:
        self.asked.append(cid)
        if number := self.results.pop(0) if self.results else errno.ECONNRESET:
            raise OSError(number, os.strerror(number))
        return 99


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr(transport, "_dial", made.dial)
    return made


@pytest.fixture
def vsock(tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> transport.Vsock:
    device = tmp_path / "vhost-vsock"
    device.touch()
    monkeypatch.setattr(transport, "VHOST_VSOCK", str(device))
    return transport.Vsock()


def test_serial_is_connected_from_the_start() -> None:
    way = transport.choose(Config())
    assert isinstance(way, transport.Serial)
    fd = way.connect(1, threading.Event())
    theirs = base.device_fd(way.device)
    assert theirs is not None
    os.write(theirs, b"hello")
    assert os.read(fd, 10) == b"hello"
    os.close(fd)
    os.close(theirs)


def test_what_is_chosen(vsock: transport.Vsock) -> None:
    def chosen(name: str) -> Any:
        return type(transport.choose(Config(transport=name)))

    assert chosen("vsock") is chosen("auto") is transport.Vsock
    os.unlink(transport.VHOST_VSOCK)
    assert chosen("auto") is transport.Serial
    with pytest.raises(HostError, match="vhost_vsock"):
        chosen("vsock")


def test_vsock_device_and_kernel_argument(vsock: transport.Vsock) -> None:
    assert isinstance(vsock.device, base.Vsock)
    assert vsock.device.cid == vsock.cid >= 3
    assert vsock.cmdline == ("casemate.transport=vsock",)


def test_vsock_asks_until_the_agent_listens(vsock: transport.Vsock, host: Host) -> None:
    host.results = [errno.ENODEV, errno.ETIMEDOUT, errno.ECONNRESET, 0]
    assert vsock.connect(30, threading.Event()) == 99
    assert host.asked == [vsock.cid] * 4


def test_vsock_gives_up(vsock: transport.Vsock, host: Host) -> None:
    gone = threading.Event()
    with pytest.raises(HypervisorError, match="does not listen"):
        vsock.connect(0.0, gone)
    gone.set()
    with pytest.raises(HypervisorError, match="does not listen"):
        vsock.connect(3600, gone)
    host.results = [errno.EACCES]
    with pytest.raises(HypervisorError, match="denied"):
        vsock.connect(3600, threading.Event())

"""The choice of an accelerator: what is probed, kept and said. Real probes are in tests/vm."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from casemate import jsonfile
from casemate.config import Config
from casemate.errors import HypervisorError
from casemate.vm.hypervisor import probe
from casemate.vm.hypervisor.base import Accelerator


class Host:
    """A host whose probe guest says ``problem``, with a count of the probes."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.problem = ""
        self.probes = 0
        self.node = tmp_path / "kvm"
        self.node.touch()
        self.qemu = tmp_path / "qemu"
        self.qemu.write_text("one")
        self.qemu.chmod(0o755)
        self.config = Config(run=tmp_path / "run", qemu=str(self.qemu))
        real_open = os.open

        def fake_open(path: object, *args: int) -> int:
            return real_open(self.node if path == "/dev/kvm" else path, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", fake_open)
        monkeypatch.setattr(probe, "run_probe", self.run)
        monkeypatch.setattr(probe, "kvm_group", lambda: None)
        monkeypatch.setattr(probe, "machine", lambda: "x86_64")

    def run(self, config: Config, accelerator: Accelerator) -> str:
        self.probes += 1
        return self.problem


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_guest_that_runs_chooses_kvm_and_is_remembered(host: Host) -> None:
    for _ in range(3):
        choice = probe.choose(host.config)
        assert choice.accelerator is Accelerator.KVM
    assert host.probes == 1


def test_no_progress_chooses_tcg_and_says_why(host: Host) -> None:
    host.problem = "a guest made no progress in 2 s"
    for _ in range(2):
        choice = probe.choose(host.config)
        assert choice.accelerator is Accelerator.TCG
        assert choice.reason == "KVM cannot be used: /dev/kvm opens, but a guest made no progress in 2 s"
    assert host.probes == 1


def test_another_qemu_is_probed_anew(host: Host) -> None:
    probe.choose(host.config)
    host.qemu.write_text("another one")
    probe.choose(host.config)
    assert host.probes == 2
    assert len(list(host.config.run.glob("probe-*.json"))) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"usable": 1, "reason": "x"}', '{"usable": true}'])
def test_a_damaged_result_is_probed_anew(host: Host, content: str) -> None:
    probe.choose(host.config)
    next(iter(host.config.run.glob("probe-*.json"))).write_text(content)
    assert probe.choose(host.config).accelerator is Accelerator.KVM
    assert host.probes == 2


def test_forced(host: Host) -> None:
    host.problem = "a guest made no progress in 2 s"
    assert probe.choose(replace(host.config, accelerator="tcg")).reason == "set in the configuration"
    assert host.probes == 0
    with pytest.raises(HypervisorError, match="no progress in 2 s: set accelerator to auto or tcg"):
        probe.choose(replace(host.config, accelerator="kvm"))


def test_no_device_needs_no_probe(host: Host) -> None:
    host.node.unlink()
    assert probe.choose(host.config) == probe.Choice(Accelerator.TCG, "KVM cannot be used: there is no /dev/kvm")
    assert host.probes == 0


def test_a_device_for_root_only_is_not_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise HypervisorError("only root may open /dev/kvm", "run: chmod")

    monkeypatch.setattr(probe, "kvm_group", refuse)
    choice = probe.choose(host.config)
    assert choice.accelerator is Accelerator.TCG and "only root" in choice.reason


def test_the_image_starts_where_a_processor_does() -> None:
    image = probe.firmware(0x01020304)
    assert len(image) == 0x10000
    assert image[0xFFF0:0xFFF5] == b"\xea\x00\xe0\x00\xf0"  # jmp f000:e000
    assert image[0xE000:0xE001] == b"\xfa"
    assert b"\xb9\x04\x03\x02\x01\x49\x75\xfd" in image


def test_a_result_that_cannot_be_kept_is_still_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jsonfile, "write", full)
    assert probe.choose(host.config).accelerator is Accelerator.KVM

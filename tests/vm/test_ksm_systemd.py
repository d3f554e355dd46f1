"""The throttler's unit, under a real systemd with files that look like the kernel's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.unit.ksm.kernel import FOUND
from tests.vm.oci import until
from tests.vm.support import CHECKOUT, CONSOLE_SCRIPT
from tests.vm.test_pod_systemd import host

__all__ = ["host"]
BEFORE = f"{FOUND.run} {FOUND.pages_to_scan} {FOUND.sleep_millisecs}"


class Host:
    """Runs commands beside that systemd."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __call__(self, script: str, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-i", "-u", "-C", "--", "bash", "-c", script],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, (script, done.stdout, done.stderr)
        return (done.stdout + done.stderr).strip()

    def settings(self) -> str:
        """What is in force."""
        return self("cd /sys/kernel/mm/ksm && echo $(<run) $(<pages_to_scan) $(<sleep_millisecs)")

    def active(self) -> str:
        """The unit's state."""
        return self("systemctl is-active casemate-ksm", check=False)

    def due(self) -> float:
        """When the throttler will change its pace."""
        return float(json.loads(self("cat /run/casemate/ksm/state.json"))["until"])

    def kick(self) -> str:
        """Do what a keeper does when its machine starts."""
        script = "import sys, pathlib; from casemate.ksm.kick import kick; kick(pathlib.Path('/run/casemate'))"
        return self(f'PYTHONPATH={CHECKOUT}/src {sys.executable} -c "{script}"')

    def main(self) -> int:
        """The throttler's process id, as its own namespace has it."""
        return int(self("systemctl show -P MainPID casemate-ksm"))


@pytest.fixture
def machine(host: int) -> Iterator[Host]:
    made = Host(host)
    run, pages, pause = BEFORE.split()
    made(
        "mkdir -p /tmp/ksm /etc/systemd/system/casemate-ksm.service.d && mount --bind /tmp/ksm /sys/kernel/mm/ksm && "
        f"cd /tmp/ksm && echo {run} >run && echo {pages} >pages_to_scan && echo {pause} >sleep_millisecs && "
        # This systemd has none of the units that others depend on by default.
        "printf '[Unit]\\nDefaultDependencies=no\\n' >/etc/systemd/system/casemate-ksm.service.d/test.conf && "
        f"{CONSOLE_SCRIPT} install ksm --links /run/bin && systemctl daemon-reload"
    )
    yield made
    made("systemctl kill -s KILL casemate-ksm; systemctl stop casemate-ksm; systemctl reset-failed", check=False)
    made("umount /sys/kernel/mm/ksm")


def test_the_units_life(machine: Host) -> None:
    # systemd waits for the throttler's word, so all is set up when the command returns.
    machine("systemctl start casemate-ksm")
    assert machine.active() == "active" and machine.settings().startswith("1 ")
    assert f"process {machine.main()}, mode auto" in machine("/run/bin/casemate ksm --status")
    # What the unit is confined by does not keep starts from it.
    first = machine.due()
    assert machine.kick() == "" and until(lambda: machine.due() > first, "a start that was heard of")
    machine("systemctl stop casemate-ksm")
    assert machine.settings() == BEFORE and machine.active() == "inactive"

    # Killed alone, the guard restores; systemd waits for it, and starts the throttler anew.
    machine("systemctl start casemate-ksm")
    first = machine.main()
    machine(f"kill -9 {first}")
    until(lambda: machine.active() == "active" and machine.main() not in (0, first), "another throttler")
    machine("systemctl stop casemate-ksm")
    assert machine.settings() == BEFORE

    # Killed with its guard, the unit's last command restores.
    machine("printf '[Service]\\nRestart=no\\n' >>/etc/systemd/system/casemate-ksm.service.d/test.conf")
    machine("systemctl daemon-reload && systemctl start casemate-ksm")
    machine("systemctl kill -s KILL casemate-ksm")
    until(lambda: machine.active() == "failed", "the end of the unit")
    assert machine.settings() == BEFORE

    # A second one beside the unit's is refused, and taking the unit back leaves nothing.
    machine("systemctl start casemate-ksm && systemctl enable casemate-ksm")
    assert "runs already" in machine("/run/bin/casemate ksm", check=False)
    assert "removed" in machine(f"{CONSOLE_SCRIPT} install ksm --undo --links /run/bin")
    machine("systemctl disable --now casemate-ksm && systemctl daemon-reload")
    assert machine.settings() == BEFORE
    left = machine("ls /etc/systemd/system /etc/systemd/system/multi-user.target.wants /run/bin", check=False)
    assert "casemate-ksm.service\n" not in left + "\n" and "casemate\n" not in left + "\n"


def test_a_host_without_merging_leaves_the_unit_out(machine: Host) -> None:
    machine("rm /tmp/ksm/run; systemctl start casemate-ksm")
    assert machine.active() == "inactive"
    assert machine("systemctl show -P ConditionResult casemate-ksm") == "no"

"""Engines' containers in machines that are copies of one that stands still, on a host with namespaces of its own."""

from __future__ import annotations

import pytest

from casemate.vm.hypervisor import twin
from tests.engines.engines import Client
from tests.engines.images import BOX
from tests.engines.terminal import eventually

pytestmark = [
    pytest.mark.parametrize("cli", ["docker-casemate"], indirect=True, scope="module"),
    pytest.mark.skipif(not twin.available(), reason="no machine is copied"),
]

VMMS = """
for file in $(find /sys/fs/cgroup/ -path "*$1*" -name cgroup.procs); do cat "$file"; done | sort -u | while read pid; do
    case $(readlink "/proc/$pid/exe") in
    *qemu-system*) readlink "/proc/$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status")/exe" ;;
    esac
done
"""
"""The programs of the parents of a container's VMMs: that of a copy is what it was copied from."""


def parents(cli: Client, id: str) -> list[str]:
    return cli.host.out("sh", "-c", VMMS, "sh", id).splitlines()


def test_containers_are_in_copies_of_an_original(cli: Client) -> None:
    cli.host.end_twins()  # of other kinds, which other tests have had begun
    cli.out("run", "--rm", BOX, "true")

    def ready() -> bool:
        said = cli.host("casemate", "template", "list", check=True)
        assert not said.stderr, said.stderr
        return any(row.endswith(" MiB") for row in said.stdout.decode().splitlines()[1:])

    eventually(ready, "an original has come up", 180, 0.5)
    (pid,) = cli.host.originals()
    group = cli.host.out("cat", f"/proc/{pid}/cgroup")
    assert "docker" not in group, "it does not end with the container whose start has begun it"
    with cli.container("--hostname", "copied", BOX, "sleep", "86400") as id:
        (parent,) = parents(cli, id)
        assert "qemu-system" in parent
        assert cli.sh(id, "hostname") == "copied"
        assert cli.sh(id, "echo written >/file; cat /file; exit 0") == "written"
        cli.host.end_twins()
        eventually(lambda: not cli.host.originals(), "its end")
        assert cli.sh(id, "cat /file") == "written"

"""Docker with its simplest storage driver: root filesystems that are plain copies, on no overlay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.engines import RUNTIMES, Docker, images, start_containerd, start_dockerd
from tests.engines.host import Host, host
from tests.engines.images import BOX


@pytest.fixture(scope="module")
def plain() -> Iterator[Host]:
    """A host with a dockerd on vfs and without networks: that takes away the bridge of any other in its host."""
    with host() as made:
        start_containerd(made)
        start_dockerd(made, "--bridge=none", "--iptables=false", driver="vfs", bip=None)
        Docker(made, "runc").out("load", "-q", "-i", images(made))
        yield made


@pytest.mark.feature("storage drivers")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_vfs(plain: Host, runtime: str) -> None:
    cli = Docker(plain, runtime)
    assert cli.out("info", "--format", "{{.Driver}}") == "vfs"
    with cli.container("--network", "none", BOX, "sleep", "86400") as id:
        cli.sh(id, "echo words >/written; rm /etc/os-release; ln -s written /link; sync")
        changes = set(cli.out("diff", id).splitlines())
        assert {"A /written", "A /link", "D /etc/os-release"} <= changes
        assert cli("cp", f"{id}:/written", "-", check=True).stdout.count(b"words\n") == 1
        cli.out("restart", "-t", "0", id)
        assert cli.sh(id, "cat /link; test -e /etc/os-release || echo gone").split() == ["words", "gone"]

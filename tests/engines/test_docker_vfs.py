"""Docker with its simplest storage driver: root filesystems that are plain copies, on no overlay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.engines import RUNTIMES, Docker, images, start_dockerd
from tests.engines.host import Host, Service
from tests.engines.images import BOX


@pytest.fixture(scope="module")
def plain(engine_host: Host, containerd: Service) -> Iterator[Service]:
    """A second dockerd, without networks."""
    service = start_dockerd(engine_host, "plain", "--bridge=none", "--iptables=false", driver="vfs", bip=None)
    Docker(engine_host, "runc", "plain").out("load", "-q", "-i", images(engine_host))
    yield service
    service.end()


@pytest.mark.feature("storage drivers")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_vfs(engine_host: Host, plain: Service, runtime: str) -> None:
    cli = Docker(engine_host, runtime, "plain")
    assert cli.out("info", "--format", "{{.Driver}}") == "vfs"
    with cli.container("--network", "none", BOX, "sleep", "86400") as id:
        cli.sh(id, "echo words >/written; rm /etc/os-release; ln -s written /link; sync")
        changes = set(cli.out("diff", id).splitlines())
        assert {"A /written", "A /link", "D /etc/os-release"} <= changes
        assert cli("cp", f"{id}:/written", "-", check=True).stdout.count(b"words\n") == 1
        cli.out("restart", "-t", "0", id)
        assert cli.sh(id, "cat /link; test -e /etc/os-release || echo gone").split() == ["words", "gone"]

"""Images built by files of instructions: each RUN is a container."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import engines
from tests.engines.engines import Client, on
from tests.engines.host import Service
from tests.engines.images import BOX
from tests.engines.terminal import eventually

pytestmark = on("docker", "podman")

FILE = f"""\
FROM {BOX} AS first
ARG WORD=none
ARG BY
RUN echo "$WORD" >/word && uname -v >/kernel && hostname >/host
FROM {BOX}
ENV PLACE=/place
COPY --from=first /word /kernel ./
COPY given /given/
WORKDIR /place
USER 33:33
RUN id -u >/tmp/user; pwd >/tmp/place; test -w /given || echo not ours >/tmp/given
CMD ["cat", "/word", "/tmp/user", "/tmp/place", "/tmp/given", "/given/deep/file"]
"""


@pytest.fixture(scope="module", autouse=True)
def default_runtime(cli: Client, request: pytest.FixtureRequest) -> Iterator[None]:
    """A build knows no runtime but the daemon's default."""
    if cli.engine == "podman":
        yield
        return
    dockerd: Service = request.getfixturevalue("dockerd")

    def choose(runtime: str) -> None:
        engines.settings(cli.host, default_runtime=runtime)
        dockerd.send(signal.SIGHUP)
        eventually(lambda: cli.out("info", "--format", "{{.DefaultRuntime}}") == runtime, "it is read")

    choose(cli.runtime)
    yield
    choose("runc")


@pytest.mark.feature("build")
def test_build(cli: Client, tmp_path: Path) -> None:
    (tmp_path / "given" / "deep").mkdir(parents=True)
    (tmp_path / "given" / "deep" / "file").write_text("given\n")
    (tmp_path / "Dockerfile").write_text(FILE)
    given = ["--build-arg", "WORD=said", "--build-arg", f"BY={cli.runtime}"]  # no runtime is to use the other's layers
    cli.out("build", "-t", "localhost/built:1", *given, tmp_path, timeout=280)
    try:
        said = cli.out("run", "--rm", "localhost/built:1").split("\n")
        assert said == ["said", "33", "/place", "not ours", "given"]
        with cli.container("localhost/built:1", "sleep", "1000") as id:
            kernel = cli.sh(id, "cat /kernel")
            assert (kernel == os.uname().version) == (not cli.ours)
    finally:
        cli("rmi", "-f", "localhost/built:1")


@pytest.mark.feature("build")
def test_failing_step(cli: Client, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BOX}\nRUN echo before; exit 5\nRUN echo after\n")
    done = cli("build", "--force-rm", tmp_path)
    assert done.returncode != 0
    said = (done.stdout + done.stderr).decode()
    assert "before" in said and "exit status 5" in said.replace("non-zero code: 5", "exit status 5")
    assert not [line for line in said.splitlines() if line == "after"]

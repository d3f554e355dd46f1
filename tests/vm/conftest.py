"""Fixtures for tests with real virtual machines; what they are made of is in ``support.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.debian_image import TAG, build
from tests.vm import oci, support
from tests.vm.support import CACHE, Casemate, Container, Environment, detached, environment


@pytest.fixture(scope="session")
def env() -> Iterator[Environment]:
    """This test process's own directories and addresses. At its end nothing of any container may be left."""
    if os.geteuid() != 0:
        pytest.skip("tests with real virtual machines need root")
    if not support.CONSOLE_SCRIPT.exists():
        pytest.fail(f"{support.CONSOLE_SCRIPT} is missing: run make setup")
    with environment(copies=True) as made:
        yield made
        left = support.leaks(made)
        if left:
            support.clear(made)
            pytest.fail("left behind when all tests had ended:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def cm(env: Environment) -> Casemate:
    """Runs the real ``casemate``: ``cm("run", "--rm", "busybox", "true").returncode``."""
    return Casemate(env)


@pytest.fixture(scope="module")
def container(cm: Casemate, request: pytest.FixtureRequest) -> Iterator[Container]:
    """A busybox container that runs while this module's tests do."""
    with detached(cm, "shared-" + request.module.__name__.rpartition(".")[2].replace("_", "-")) as made:
        yield made


@pytest.fixture(params=["casemate", "runc"])
def either(request: pytest.FixtureRequest, env: Environment, tmp_path: Path) -> Iterator[oci.Runtime]:
    """Both OCI runtimes in turn: what holds for runc has to hold for ours."""
    with oci.runtime(request.param, env, tmp_path) as made:
        yield made


@pytest.fixture
def ours(env: Environment, tmp_path: Path) -> Iterator[oci.Runtime]:
    """Our OCI runtime, for what runc does in another way or not at all."""
    with oci.runtime("casemate", env, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def debian_layout() -> Path:
    """An OCI image layout of Debian packages (bash, python3 with venv, git, gcc, make); its tag is ``debian``."""
    return build(CACHE)


@pytest.fixture(scope="session")
def debian_image(cm: Casemate, debian_layout: Path) -> str:
    """The name under which ``run`` finds that image."""
    return pull_layout(cm, debian_layout, TAG)


def pull_layout(cm: Casemate, layout: Path, tag: str) -> str:
    """Pull from an image layout and give the image's id."""
    source = f"oci:{layout}:{tag}"
    return cm.out("pull", "-q", source, timeout=280).splitlines()[-1]


@pytest.fixture(scope="session")
def tool() -> ToolPath:
    """Finds a program that ``scripts/setup --tests`` unpacked: ``tool("docker-registry")``."""
    return ToolPath()


class ToolPath:
    """The tools below the cache directory."""

    def __call__(self, name: str) -> Path:
        """The path of one; the test fails when it is missing."""
        path = CACHE / "tools" / "bin" / name
        if not path.exists():
            pytest.fail(f"{path} is missing: run scripts/setup --tests")
        return path.resolve()

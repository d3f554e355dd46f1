"""Fixtures for the sentry by the doors: those of tests/vm, with a configuration that names this wall."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.debian_image import PROGRAMS_TAG, TAG, build
from tests.vm import support
from tests.vm.conftest import pull_layout
from tests.vm.support import CACHE, Casemate, Container, Environment, detached, environment

SETTINGS = 'wall = "sentry"\n'


@pytest.fixture(scope="session")
def env() -> Iterator[Environment]:
    """This test process's own directories. At its end nothing of any container may be left."""
    if os.geteuid() != 0:
        pytest.skip("the sentry needs root to shut itself in")
    if not support.CONSOLE_SCRIPT.exists():
        pytest.fail(f"{support.CONSOLE_SCRIPT} is missing: run make setup")
    with environment(SETTINGS) as made:
        yield made
        left = support.leaks(made)
        if left:
            support.clear(made)
            pytest.fail("left behind when all tests had ended:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def cm(env: Environment) -> Casemate:
    """Runs the real ``casemate``; containers are behind the sentry."""
    return Casemate(env)


@pytest.fixture(scope="module")
def container(cm: Casemate, request: pytest.FixtureRequest) -> Iterator[Container]:
    """A busybox container that runs while this module's tests do."""
    with detached(cm, "shared-" + request.module.__name__.rpartition(".")[2].replace("_", "-")) as made:
        yield made


@pytest.fixture(scope="session")
def debian_layout() -> Path:
    """An OCI image layout of Debian packages; its tag is ``debian``."""
    return build(CACHE)


@pytest.fixture(scope="session")
def debian_image(cm: Casemate, debian_layout: Path) -> str:
    """The name under which ``run`` finds that image."""
    return pull_layout(cm, debian_layout, TAG)


@pytest.fixture(scope="session")
def programs(cm: Casemate) -> str:
    """The image with servers, languages and tools that many use (:data:`scripts.debian_image.PROGRAMS`)."""
    return pull_layout(cm, build(CACHE, tag=PROGRAMS_TAG), PROGRAMS_TAG)

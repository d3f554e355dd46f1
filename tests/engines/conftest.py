"""Fixtures of the tests with engines: a host of its own for each test process, and in it what a test asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engines
from tests.engines.engines import Client, Docker, Podman
from tests.engines.exceptions import BEHIND_THE_SENTRY, PODMAN_BEHIND_THE_SENTRY, SOAK_BEHIND_THE_SENTRY
from tests.engines.host import Host, Service, host
from tests.vm.support import CACHE

RESULTS = CACHE / "engines" / "results.jsonl"
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def engine_host() -> Iterator[Host]:
    """This test process's host for engines. When they have ended, nothing of any container may be left there."""
    if os.geteuid() != 0:
        pytest.skip("engines need root")
    with host(copies=True) as made:
        yield made
        for service in reversed(made.services):
            service.end()
        left = made.leaks()
        if left:
            pytest.fail("left behind when all engines had ended:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def containerd(engine_host: Host) -> Service:
    """containerd, running."""
    return engines.start_containerd(engine_host)


@pytest.fixture(scope="session")
def dockerd(engine_host: Host, containerd: Service) -> Service:
    """dockerd on that, running, with the images."""
    service = engines.start_dockerd(engine_host)
    Docker(engine_host, "runc").out("load", "-q", "-i", engines.images(engine_host))
    return service


@pytest.fixture(scope="session")
def podman(engine_host: Host) -> None:
    """Podman's configuration and images."""
    engines.prepare_podman(engine_host)
    Podman(engine_host, "runc").out("load", "-q", "-i", engines.images(engine_host))


@pytest.fixture(scope="module")
def cli(request: pytest.FixtureRequest, engine_host: Host) -> Iterator[Client]:
    """A command line, by engine and runtime such as ``docker-casemate``. No container may outlive a module's tests."""
    engine, _, runtime = request.param.partition("-")
    made: Client
    if engine == "docker":
        request.getfixturevalue("dockerd")
        made = Docker(engine_host, runtime)
    else:
        request.getfixturevalue("podman")
        made = Podman(engine_host, runtime)
    yield made
    left = made.out("ps", "-a", "--format", "{{.Names}} {{.Status}}")
    made.remove(*made.out("ps", "-aq").split())
    assert not left, f"containers that no test has removed: {left}"


def client(item: pytest.Item) -> str:
    """The engine and runtime that a test runs with, such as ``docker-casemate``; runc is the ``control``."""
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    for name, engine in (("cli", ""), ("cri", "cri-"), ("ctr", "ctr-"), ("runtime", "docker-")):
        if name in parameters:
            return f"{engine}{parameters[name]}".replace("-runc", "-control")
    return ""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """One worker for each file and client, so that what tests share is made once."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engines)
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{client(item)}"))
            name = item.originalname if isinstance(item, pytest.Function) else ""
            why = BEHIND_THE_SENTRY.get(name) or BEHIND_THE_SENTRY.get(f"{item.path.stem}.{name}")
            if client(item) == "podman-sentry" and item.path.stem not in PODMAN_BEHIND_THE_SENTRY:
                item.add_marker(pytest.mark.soak)
            if client(item).endswith("-sentry") and f"{item.path.stem}.{name}" in SOAK_BEHIND_THE_SENTRY:
                item.add_marker(pytest.mark.soak)
            if why is not None and client(item).endswith("-sentry"):
                item.add_marker(pytest.mark.skip(reason=f"behind the sentry: {why}"))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Note what each test of a feature has shown; ``scripts/compatibility`` makes a table of it."""
    report = yield
    # docs/compatibility.md is about the vm wall; docs/sentry.md is about the other one.
    behind = client(item).endswith("-sentry")
    if (report.when == "call" or report.failed) and HERE in item.path.parents and not behind:
        line = {
            "test": item.nodeid.partition("@")[0],  # xdist adds the group
            "features": [name for mark in item.iter_markers("feature") for name in mark.args],
            "client": client(item),
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with open(RESULTS, "a") as file:
            file.write(json.dumps(line) + "\n")
    return report

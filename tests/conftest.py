"""What holds for every test: markers by place, and which tests share a worker."""

from __future__ import annotations

import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

VM_TESTS = Path(__file__).parent / "vm"


def pytest_configure() -> None:
    """Take signals as usual, whoever started the tests; let made-up values take their time on a busy machine.

    A shell without job control starts what it puts in the background with SIGINT and SIGQUIT ignored, a disposition
    that programs inherit and casemate rightly leaves alone; the tests send those signals and wait for what they do.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("patient", suppress_health_check=slow, deadline=None)
    hypothesis.settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark everything below ``tests/vm`` as ``vm``, and keep each of its files on one worker.

    A file's tests share a running container, so a second worker would only boot a second one. A test or file with an
    ``xdist_group`` of its own keeps that. This has to come before xdist reads the groups, hence a wrapper.
    """
    for item in items:
        if VM_TESTS in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group(item.path.stem))
    return (yield)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test after its argument, not after long or binary values of it.

    Such values are often compressed or random, so that each worker would collect tests of other names, which xdist
    refuses; and no one can read them. Pytest numbers names that are the same.
    """
    if isinstance(val, bytes) or (isinstance(val, str) and len(val) > 60):
        return argname
    return None

"""What holds for every test: markers by place, and which tests share a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from tests.sentry import tally

VM_TESTS = Path(__file__).parent / "vm"
SENTRY_TESTS = Path(__file__).parent / "sentry"


MISSING = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Take signals as usual, whoever started the tests; let made-up values take their time on a busy machine.

    They are the same ones each time, so that a change is judged by itself; with ``CASEMATE_FUZZ=1``, as in ``make
    soak``, others.

    A shell without job control starts what it puts in the background with SIGINT and SIGQUIT ignored, a disposition
    that programs inherit and casemate rightly leaves alone; the tests send those signals and wait for what they do.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    slow = [hypothesis.HealthCheck.too_slow]
    same = not os.environ.get("CASEMATE_FUZZ")
    hypothesis.settings.register_profile("patient", suppress_health_check=slow, deadline=None, derandomize=same)
    hypothesis.settings.load_profile("patient")
    if not hasattr(config, "workerinput"):
        tally.begin()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say whether all cases of the sentry's calls are among what is run."""
    config = session.config
    part = any(config.getoption(option, False) for option in ("keyword", "lf", "collectonly"))
    if not part and not any("::" in argument for argument in config.args):
        tally.collected({item.path for item in session.items})


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """When all cases of the sentry's calls have run, fail unless each call was seen succeeding and failing."""
    if hasattr(session.config, "workerinput"):
        return
    missing = session.config.stash[MISSING] = tally.end(exitstatus == 0)
    if missing:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show which calls of the sentry have no case."""
    missing = config.stash.get(MISSING, [])
    if missing:
        terminalreporter.section("calls of the sentry that no case shows (tests/sentry/tally.py)", red=True)
        for line in missing:
            terminalreporter.line(line)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark everything below ``tests/vm`` as ``vm``, and keep each file there and below ``tests/sentry`` on one worker.

    A file's tests share a running container, so a second worker would only boot a second one. A test or file with an
    ``xdist_group`` of its own keeps that. This has to come before xdist reads the groups, hence a wrapper.
    """
    for item in items:
        if VM_TESTS in item.path.parents:
            item.add_marker(pytest.mark.vm)
        grouped = VM_TESTS in item.path.parents or SENTRY_TESTS in item.path.parents
        if grouped and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}-{item.path.stem}"))
    return (yield)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test after its argument, not after long or binary values of it.

    Such values are often compressed or random, so that each worker would collect tests of other names, which xdist
    refuses; and no one can read them. Pytest numbers names that are the same.
    """
    if isinstance(val, bytes) or (isinstance(val, str) and len(val) > 60):
        return argname
    return None

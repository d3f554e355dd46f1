"""What the sentry's measurements are made of."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks import sentry, sentry_python


def test_the_kernels_compute_what_they_should() -> None:
    assert sentry_python.digits() == "1830119491"  # of pi, behind the 490th
    assert sentry_python.sorting() == (True, True)
    for kernel in (sentry_python.nbody, sentry_python.documents, sentry_python.patterns, sentry_python.words):
        assert kernel() == kernel()


def test_the_program_tells_of_each_kernel() -> None:
    done = subprocess.run([sys.executable, "-I", sentry.PYTHON, "1"], capture_output=True, check=True, timeout=120)
    told = json.loads(done.stdout)
    assert set(told) == {kernel.__name__ for kernel in sentry_python.KERNELS}
    assert all(milliseconds > 0 for milliseconds in told.values())


def test_each_way_is_the_first_of_a_round() -> None:
    seen: list[str] = []

    def once(before: list[str]) -> str:
        seen.append(before[0])
        return before[0]

    found = sentry._rounds({"one": ["a"], "two": ["b"], "three": ["c"]}, 3, once)
    assert found == {"one": ["a"] * 3, "two": ["b"] * 3, "three": ["c"] * 3}
    assert "".join(seen) == "abcbcacab"


def test_the_least_of_each_kernel_counts() -> None:
    assert sentry._least([{"x": 3.0, "y": 5.0}, {"x": 4.0, "y": 1.0}]) == 4.0

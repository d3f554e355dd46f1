"""Tests that share a container must share a worker; a new pytest or xdist may break that without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]


def test_a_file_of_vm_tests_stays_on_one_worker(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    shutil.copy(TOP / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    vm: here for the copied conftest\n")
    for name in ("one", "two"):
        tests = "".join(f"def test_{number}(): pass\n" for number in range(4))
        (tmp_path / "vm" / f"test_{name}.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-n", "2", "--dist", "loadgroup"]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}  # the conftest imports what counts system calls
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    workers: dict[str, set[str]] = {"one": set(), "two": set()}
    for line in done.stdout.splitlines():
        if "PASSED" in line:
            for name in workers:
                if f"test_{name}.py" in line:
                    workers[name].add(line.split("]")[0])
    assert [len(found) for found in workers.values()] == [1, 1]

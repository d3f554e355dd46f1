"""The files that set-up and CI stand on."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[3]
LOCKS = ("requirements.lock", "requirements-dev.lock")
SHELL_SCRIPTS = ("scripts/setup", "scripts/lock", "scripts/lint", "scripts/test", "scripts/demo", ".ci/run")


def pins(lock: str) -> dict[str, str]:
    """What a lock pins, and all that it says about it."""
    text = (TOP / lock).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            name, _, rest = line.partition("==")
            found[name.strip()] = rest
    return found


def project() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ ;\[]", requirement)[0] for requirement in requirements}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_version_and_hashes(lock: str) -> None:
    assert pins(lock)
    for name, rest in pins(lock).items():
        assert re.match(r"\d[\w.]* ", rest), name
        assert "--hash=sha256:" in rest, name


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_server(lock: str) -> None:
    assert "://" not in (TOP / lock).read_text()


def test_locks_hold_what_the_project_asks_for() -> None:
    table = project()["project"]
    assert names(table["dependencies"]) <= set(pins("requirements.lock"))
    assert names(table["dependencies"] + table["optional-dependencies"]["dev"]) <= set(pins("requirements-dev.lock"))


def test_both_locks_agree() -> None:
    everything = pins("requirements-dev.lock")
    for name, rest in pins("requirements.lock").items():
        assert everything[name] == rest


@pytest.mark.parametrize("script", SHELL_SCRIPTS)
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(TOP / script, os.X_OK)
    subprocess.run(["bash", "-n", TOP / script], check=True)


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--tests", "extra"]])
def test_setup_refuses_unknown_arguments(arguments: list[str]) -> None:
    done = subprocess.run([TOP / "scripts/setup", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown argument" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("arguments", [["--kernel"], ["--kernel", "newest"], ["--kernel", "minimal", "--kernel", ""]])
def test_setup_knows_two_kernels(arguments: list[str]) -> None:
    done = subprocess.run([TOP / "scripts/setup", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no kernel is called" in done.stderr and done.stdout == ""


def test_help_lists_every_target() -> None:
    makefile = (TOP / "Makefile").read_text()
    phony = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    command = ["make", "-C", str(TOP), "--no-print-directory", "help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines()} == set(phony)

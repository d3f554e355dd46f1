"""Running the host's programs that a guest build needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from casemate.errors import GuestError, HostError

# Reproducible output and messages that can be read by a program.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "SOURCE_DATE_EPOCH": "0", "DEBIAN_FRONTEND": "noninteractive"}


def require(program: str, package: str) -> str:
    """The path of a program.

    Raises:
        HostError: it is not installed; the message names the Debian package that has it.
    """
    # mkfs.* live where an ordinary user's PATH does not look.
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path is None:
        raise HostError(f"building a guest needs the program {program}", f"apt-get install {package}")
    return path


def environment() -> dict[str, str]:
    """The environment for such a program."""
    return {**os.environ, **_ENVIRONMENT}


def run(
    command: Sequence[str | Path], package: str, *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    """Run a program and give back its standard output.

    Arguments:
        command: the program and its arguments.
        package: the Debian package that has the program.
        cwd: working directory.
        env: more environment.

    Raises:
        HostError: the program is missing.
        GuestError: it failed; the message holds its last line.
    """
    words = [str(word) for word in command]
    words[0] = require(words[0], package)
    done = subprocess.run(
        words, cwd=cwd, env={**environment(), **(env or {})}, stdin=subprocess.DEVNULL,
        capture_output=True, check=False,
    )
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("E: ")] or lines[-1:]
        reason = errors[0].removeprefix("E: ") if errors else f"exit status {done.returncode}"
        raise GuestError(f"{Path(words[0]).name} failed: {reason}")
    return done.stdout.decode(errors="replace")

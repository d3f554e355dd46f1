"""Run programs natively and behind the sentry, and compare."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from tests.sentry import tally

C = Path(__file__).parent / "c"
BUILD_SECONDS = 120
RUN_SECONDS = 240
"""A guard against hanging, no bound on speed."""


@lru_cache(maxsize=1)
def _build_directory() -> Path:
    cache = os.environ.get("CASEMATE_CACHE")
    if cache:
        path = Path(cache) / "sentry-c"
        path.mkdir(parents=True, exist_ok=True)
        return path
    return Path(tempfile.mkdtemp(prefix="casemate-c-"))


def build(source: Path, *flags: str) -> Path:
    """Compile a C case (statically, unless flags say otherwise); built anew only when it changed."""
    options = ("-O1", "-Wall", "-Werror", "-pthread", *(flags or ("-static",)))
    headers = (header.read_bytes() for header in sorted(C.glob("*.h")))
    text = b"".join((source.read_bytes(), *headers, repr(options).encode()))
    target = _build_directory() / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        libraries = ["-lrt", "-lm"]
        command = ["gcc", *options, f"-I{C}", "-o", str(part), str(source), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
        assert done.returncode == 0, done.stderr
        part.rename(target)
    return target


def native(
    argv: Sequence[str], stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program on the host."""
    return subprocess.run(
        argv, input=stdin, capture_output=True, timeout=RUN_SECONDS, cwd=cwd, env=dict(env or _environment())
    )


def sentry(
    argv: Sequence[str],
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str = "/tmp",
    options: Sequence[str] = (),
    timeout: float = RUN_SECONDS,
    within: Sequence[str] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a program of the host behind the sentry: the host's root is there to read, what is written is thrown away.

    Arguments:
        within: a command that runs what follows it, in other surroundings.
    """
    command = [*within, sys.executable, "-P", "-m", "casemate", "do", f"--cwd={cwd}", *options, "--", *argv]
    inherited = {key: os.environ[key] for key in os.environ if key.startswith("CASEMATE_")}
    return subprocess.run(
        command, input=stdin, capture_output=True, timeout=timeout, env={**inherited, **(env or _environment())}
    )


def both(source: Path | str, *arguments: str, flags: Sequence[str] = ()) -> None:
    """A C case has to succeed natively, and then behind the sentry.

    Arguments:
        source: below ``tests/sentry/c``.
        arguments: for the program.
        flags: of the compiler, instead of ``-static``.
    """
    program = str(build(C / source, *flags))
    with tempfile.TemporaryDirectory() as scratch:
        there = native([program, *arguments], cwd=scratch)
    assert there.returncode == 0, f"fails natively, so the case is wrong:\n{_told(there)}"
    here = sentry([program, *arguments], options=["--summary"])
    assert here.returncode == 0, f"fails behind the sentry, not natively:\n{_told(here)}"
    tally.note(str(source), here.stderr)


def same(argv: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A program has to say the same, and end the same way, natively and behind the sentry."""
    there, here = native(argv, stdin), sentry(argv, stdin)
    assert (here.returncode, here.stdout, here.stderr) == (there.returncode, there.stdout, there.stderr), _told(here)
    return here


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


def _told(done: subprocess.CompletedProcess[bytes]) -> str:
    stdout, stderr = (text[-4000:].decode(errors="replace") for text in (done.stdout, done.stderr))
    return f"status {done.returncode}\nstdout: {stdout}\nstderr: {stderr}"

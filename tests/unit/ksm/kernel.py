"""A directory that looks like ``/sys/kernel/mm/ksm``, and a throttler as a process of its own that works on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from casemate.ksm.kept import Home
from casemate.ksm.settings import Settings

PROGRAM = """
import json, sys
from pathlib import Path
from casemate.cli.ksm import _say
from casemate.config import Config
from casemate.errors import CasemateError
from casemate.ksm.daemon import Throttler
from casemate.ksm.kept import Home
mode, run, kernel, changes = sys.argv[1:]
try:
    sys.exit(Throttler(Config(**json.loads(changes)), mode, _say, Home(Path(run), Path(kernel))).run())
except CasemateError as error:
    sys.exit(f"refused: {error}")
"""
FOUND = Settings(0, 123, 45, "")
QUICK = {"ksm_aggressive_seconds": 1, "ksm_standard_seconds": 1, "ksm_slow_seconds": 1}


def make(directory: Path, settings: Settings = FOUND, **files: str) -> Path:
    """Make such a directory.

    Arguments:
        settings: what is in force; without an advisor where it names none, as in kernels before 6.7.
        files: more of its files.
    """
    directory.mkdir()
    for name in ("run", "pages_to_scan", "sleep_millisecs"):
        (directory / name).write_text(f"{getattr(settings, name)}\n")
    if settings.advisor_mode:
        (directory / "advisor_mode").write_text(f"[{settings.advisor_mode}] other\n")
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def values(directory: Path) -> dict[str, str]:
    """What is in every file."""
    return {path.name: path.read_text().strip() for path in directory.iterdir()}


class Process:
    """The throttler."""

    def __init__(self, home: Home, mode: str = "auto", **changes: Any) -> None:
        self.home = home
        arguments = [mode, str(home.run), str(home.kernel), json.dumps(changes)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def says(self, words: str) -> str:
        """Wait for a line of its messages with ``words`` in it; its guard's too."""
        assert self.process.stderr is not None
        seen = ""
        for line in self.process.stderr:
            seen += line
            if words in line:
                return line
        raise AssertionError(f"it did not say {words!r} but {seen!r}")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait for its end and its guard's; its status and last messages."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        # The guard has the same standard error: the end of that is the end of both.
        said = self.process.stderr.read()
        return self.process.wait(), said

    def close(self) -> None:
        """For the end of a test, whatever it did."""
        self.process.kill()
        assert self.process.stderr is not None
        self.process.stderr.read()
        self.process.wait()
        self.process.stderr.close()

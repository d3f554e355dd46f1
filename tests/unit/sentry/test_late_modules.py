"""A sentry that has shut itself in still gets modules, out of memory: whatever it may want is there, and asks the host
for nothing that it may not ask any more."""

from __future__ import annotations

import os
import subprocess
import sys

SHUT_IN = """
import importlib, os, sys
from casemate.programs import begin
begin()
from casemate import bundle
found = bundle.use()
assert found is not None, "no bundle"
from casemate.host import syscalls
from casemate.sentry import foreground, isolation
from casemate.sentry.syscalls import table
isolation.load_all()
assert found.sealed and not found.stale, "it is stale"
names = [name for name in bundle.below("casemate.sentry")
         if not name.endswith("__main__") and name not in isolation.NOT_NEEDED]
later = [name for name in names if name not in sys.modules]
calls = len(table.begin())
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
isolation.confine()
try:
    os.listdir("/")
    sys.exit("it is not shut in")
except OSError:
    pass
print(len(later), calls, table.late(41).name, table.late(9999))
for name in later:
    importlib.import_module(name)
assert table.TABLE == table.load() and len(table.TABLE) == len(found.calls)
from casemate.late import Logger
Logger("casemate.sentry").warning("heard")
sys.stdout.flush()
os._exit(0)
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-P", *words], capture_output=True, text=True, timeout=120, env=environment, cwd="/"
    )


def test_what_was_not_imported_before_still_can_be() -> None:
    made = python("-m", "casemate.bundle")
    assert made.returncode == 0, made.stderr
    done = python("-c", SHUT_IN)
    assert done.returncode == 0, done.stderr
    later, calls, name, nobody = done.stdout.split()
    assert int(later) > 50 and int(calls) < 100, "most of it comes later"
    assert (name, nobody) == ("socket", "None") and "heard" in done.stderr

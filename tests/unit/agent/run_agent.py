"""The agent as a process of the host, for tests: ``run_agent.py FD SOURCE BASE SHARE CGROUPS CRUN...``.

It adopts orphans as process 1 would, and ends where process 1 would power off.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_CHILD_SUBREAPER = 36

if __name__ == "__main__":
    fd, source, base, share, cgroups, *crun = sys.argv[1:]
    sys.path.insert(0, source)
    from casemate.agent.container import Places
    from casemate.agent.main import serve

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    places = Places(base, share, cgroups, tuple(crun))

    def power_off(reason: str) -> None:
        os.write(2, f"power off: {reason}\n".encode())
        os._exit(0)

    serve(int(fd), places, lambda: None, power_off)

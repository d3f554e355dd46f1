"""What an engine's monitor is to a runtime: the subreaper that gets the container's process and reaps it.

``python reaper.py READY_FD PID_FILE COMMAND...`` runs COMMAND (a ``create`` or a detached ``run`` or ``exec``), writes
its exit status as a line to READY_FD, and then lives until the process of PID_FILE has ended, with whose status it
ends. Death by a signal is told as 128 + the signal. Every other child that comes its way is reaped.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    ready, pid_file, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    status = subprocess.call(command)
    wanted = 0
    if status == 0:
        with open(pid_file) as file:
            wanted = int(file.read())
    for descriptor in (0, 1, 2):  # the container's alone from here on
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    os.write(ready, b"%d\n" % status)
    os.close(ready)
    if status != 0:
        return status
    while True:
        pid, how = os.waitpid(-1, 0)
        if pid == wanted:
            code = os.waitstatus_to_exitcode(how)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())

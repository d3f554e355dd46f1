"""``ps``: the host's processes that stand for those of a container."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from casemate.errors import HostError, NotRunning, UsageError
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import TEXT, Option, Options

USAGE = "[options] <container-id> [ps options]"
OPTIONS = (Option("format, f", TEXT, "select one of: table or json", "table"),)
ARGUMENTS = (1, None)
ANYWHERE = False


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print them."""
    record = context.store.get(arguments[0])
    pids: list[int] = []
    if record.status in ("created", "running", "paused"):
        from casemate.pod.client import PodClient

        try:
            answer = PodClient(context.store, record.pod).pids(record.id)
            pids = [answer["pid"], *answer["execs"].values()]
        except NotRunning:
            pids = []
    if options["format"] == "json":
        sys.stdout.write(json.dumps(pids or None, separators=(",", ":")) + "\n")
    elif options["format"] == "table":
        _table(pids, arguments[1:] or ["-ef"])
    else:
        raise UsageError("invalid format option")
    sys.stdout.flush()
    return 0


def _table(pids: list[int], words: list[str]) -> None:
    """What the host's ps(1) says of these processes."""
    try:
        done = subprocess.run(["ps", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except OSError as error:
        raise HostError(f"cannot run ps: {error.strerror}", "apt install procps") from None
    text = os.fsdecode(done.stdout)
    if done.returncode != 0:
        raise HostError(f"exit status {done.returncode}: {text.strip()}")
    header, *lines = text.splitlines()
    titles = header.split()
    if "PID" not in titles:
        raise HostError("couldn't find PID field in ps output")
    column = titles.index("PID")
    wanted = {str(pid) for pid in pids}
    print(header)
    for line in lines:
        fields = line.split()
        if len(fields) > column and fields[column] in wanted:
            print(line)

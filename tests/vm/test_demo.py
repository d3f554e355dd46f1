"""``make run`` ends with ``scripts/demo``: what a stranger sees first."""

from __future__ import annotations

import os
import re
import subprocess

from tests.vm.support import CHECKOUT, Environment


def test_demo_shows_a_kernel_that_is_not_the_hosts(env: Environment) -> None:
    done = subprocess.run(
        [CHECKOUT / "scripts" / "demo"],
        env=env.variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = {}
    for line in done.stdout.splitlines():
        if match := re.fullmatch(r" {4}(\w[\w ]{0,15}?) {2,}(\S.*?) {2,}(\S.*)", line):
            rows[match[1]] = (match[2], match[3])
    host, guest = rows["kernel"]
    assert host == os.uname().release[:38]
    assert re.match(r"\d+\.\d+", guest)
    host, guest = rows["booted"]
    assert guest > host
    assert rows["memory"][0] != rows["memory"][1]
    assert rows["boot id"][0] != rows["boot id"][1]

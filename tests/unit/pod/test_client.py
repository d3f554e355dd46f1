"""How a sandbox's keeper is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from casemate.config import Config
from casemate.pod import client
from casemate.pod.store import Pod


def test_a_keeper_gets_its_own_descriptors_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec ls /proc/self/fd\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    reader, writer = os.pipe()
    left_open = os.dup2(reader, 200, inheritable=True)
    null = os.open(os.devnull, os.O_RDWR)
    try:
        pid = client._start(Pod(Config(), tmp_path), (null, writer, null, null), {"PATH": os.defpath})
        os.close(writer)
        with open(reader) as file:
            found = {int(word) for word in file.read().split()}
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(left_open)
        os.close(null)
    assert status == 0
    assert found == {0, 1, 2, 3, 4, 5}  # the last one is that of whoever lists them

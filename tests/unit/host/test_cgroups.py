"""Control groups without any: what does not need the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casemate.errors import HostError
from casemate.host.cgroups import Cgroup


def test_nobody_kills_himself(tmp_path: Path) -> None:
    """cgroup.kill ends everybody in the group, and so a keeper that could not leave it, before its last word."""
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (tmp_path / "cgroup.kill").touch()
    group = Cgroup("x", {"unified": tmp_path})
    with pytest.raises(HostError, match="itself"):
        group.kill(timeout=0.1)
    assert (tmp_path / "cgroup.kill").read_text() == ""

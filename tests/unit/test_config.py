"""Settings that would only fail later, and then obscurely."""

from __future__ import annotations

import pytest

from casemate import config
from casemate.errors import ConfigError


def test_run_directory_leaves_room_for_its_sockets() -> None:
    """A UNIX socket's address has 107 characters, unix(7)."""
    environ = {"CASEMATE_RUN": "/" + "r" * 80}
    assert len(str(config.load(environ).run)) == 81
    with pytest.raises(ConfigError, match="at most 81"):
        config.load({"CASEMATE_RUN": "/" + "r" * 81})

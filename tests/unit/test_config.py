"""Settings that would only fail later, and then obscurely."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate import config
from casemate.errors import ConfigError


def test_run_directory_leaves_room_for_its_sockets() -> None:
    """A UNIX socket's address has 107 characters, unix(7)."""
    environ = {"CASEMATE_RUN": "/" + "r" * 80}
    assert len(str(config.load(environ).run)) == 81
    with pytest.raises(ConfigError, match="at most 81"):
        config.load({"CASEMATE_RUN": "/" + "r" * 81})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('ksm = "fast"', "auto, initial, off"),
        ("ksm = true", "of type str"),
        ("ksm_slow_share = 0", "from 1"),
        ("ksm_standard_pause = 0", "from 1"),
        ("ksm_aggressive_seconds = -1", "from 0"),
    ],
)
def test_bad_settings_of_the_throttler(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(line)
    with pytest.raises(ConfigError, match=said):
        config.load({"CASEMATE_CONFIG": str(file)})

"""Settings that would only fail later, and then obscurely."""

from __future__ import annotations

import tomllib
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


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", True),
        ("memory = 128\n", True),
        ('# all\n\n root = "/a b"\t\nmemory=0\npool_size\t= 12', True),
        ('run = ""', True),
        ("memory = 1_000", False),
        ("memory = 0x10", False),
        ("memory = +1", False),
        ("memory = 1 # much", False),
        ('wall = "a\\\\b"', False),
        ("wall = 'vm'", False),
        ('"wall" = "vm"', False),
        ("twins = true", False),
        ('guest = """\na"""', False),
        ("[table]\nmemory = 1", False),
        ("# one\x0bmemory = 1", False),
        ('wall = "é"', False),
    ],
)
def test_plain_files_are_read_as_toml(text: str, plain: bool) -> None:
    table = config._plain(text)
    assert (table is not None) == plain
    if plain:
        assert table == tomllib.loads(text)


@pytest.mark.parametrize(
    "text", ["memory = 01", "memory =", "memory = 1\nmemory = 2", "= 1", 'wall = "a"b"', 'wall = "', 'a b = 1', "x"]
)
def test_what_is_not_toml_is_not_plain(text: str) -> None:
    assert config._plain(text) is None
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(text)

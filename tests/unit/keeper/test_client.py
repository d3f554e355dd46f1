"""Starting a real keeper's program, as far as it gets without root."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.errors import HostError
from casemate.keeper import client, reap
from casemate.keeper.store import Store
from tests.unit.keeper.helpers import make_config, make_spec


@pytest.mark.parametrize("remove", [False, True])
def test_a_keeper_that_dies_at_once_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remove: bool
) -> None:
    monkeypatch.setattr(reap, "clean_host", lambda container: None)
    monkeypatch.setenv("CASEMATE_CONFIG", str(tmp_path / "nowhere.toml"))
    config = make_config(tmp_path)
    container = Store(config).create(make_spec(remove=remove))
    with pytest.raises(HostError) as caught:
        client.launch(config, container, (None, None, None), size=None)
    assert "nowhere.toml does not exist" in caught.value.message
    assert "Error" not in caught.value.message
    assert container.path.exists() != remove
    if not remove:
        assert container.stored_state().status == "exited"

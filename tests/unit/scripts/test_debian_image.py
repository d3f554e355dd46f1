"""The part of the Debian image that needs no Debian mirror: the image layout."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from scripts import debian_image


def fake_bootstrap(suite: str, tar: Path, packages: Sequence[str], hooks: Sequence[str]) -> None:
    with tarfile.open(tar, "w") as archive:
        entry = tarfile.TarInfo("etc/hello")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(debian_image, "_bootstrap", fake_bootstrap)
    return debian_image.build(tmp_path)


def read(layout: Path, descriptor: dict[str, object]) -> bytes:
    """A blob, after checking that the descriptor tells the truth."""
    digest = str(descriptor["digest"]).removeprefix("sha256:")
    data = (layout / "blobs" / "sha256" / digest).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    assert len(data) == descriptor["size"]
    return data


def test_layout_is_whole_from_the_index_to_the_file(layout: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == debian_image.TAG
    manifest = json.loads(read(layout, entry))
    config = json.loads(read(layout, manifest["config"]))
    (layer,) = manifest["layers"]
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(read(layout, layer))
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(plain).hexdigest()]
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        assert archive.getnames() == ["etc/hello"]


def test_it_is_made_once(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(suite: str, tar: Path, packages: Sequence[str], hooks: Sequence[str]) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(debian_image, "_bootstrap", never)
    assert debian_image.build(layout.parent.parent) == layout


def test_another_recipe_is_another_image(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(debian_image.IMAGES, debian_image.TAG, ("bash",))
    assert debian_image.build(layout.parent.parent) != layout


def test_what_failed_halfway_is_not_taken_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(suite: str, tar: Path, packages: Sequence[str], hooks: Sequence[str]) -> None:
        tar.write_bytes(b"half")
        raise RuntimeError("mmdebstrap failed")

    monkeypatch.setattr(debian_image, "_bootstrap", broken)
    with pytest.raises(RuntimeError, match="mmdebstrap failed"):
        debian_image.build(tmp_path)
    monkeypatch.setattr(debian_image, "_bootstrap", fake_bootstrap)
    assert (debian_image.build(tmp_path) / "index.json").exists()

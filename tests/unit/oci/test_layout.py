"""Layouts and archives: honest ones of skopeo and hostile ones."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from casemate.errors import BadImage, ImageNotFound, UsageError
from casemate.oci.layout import local_name
from casemate.oci.manifest import host_architecture
from casemate.oci.store import ImageStore
from tests.unit.oci import builders
from tests.unit.oci.builders import INDEX, MANIFEST, Layout, hardlink, member, sha256, symlink, tar

LAYER = tar(member("f", b"content"))
SECOND = tar(member("g", b"more"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.mark.parametrize("media_type", [builders.GZIP, builders.ZSTD, builders.TAR])
def test_a_layout_is_pulled(store: ImageStore, layout: Layout, media_type: str) -> None:
    layout.add(layout.manifest(LAYER, SECOND, media_type=media_type), "v1")
    image = store.pull(f"oci:{layout.path}:v1")
    assert image.names == ("localhost/layout:v1",) and image.manifest == layout.manifests[0]["digest"]
    assert [sorted(os.listdir(layer)) for layer in image.layers] == [["f"], ["g"]]
    assert store.pull(f"oci:{layout.path}").id == image.id == store.resolve("localhost/layout:v1").id


def test_one_of_several_images_has_to_be_named(store: ImageStore, layout: Layout) -> None:
    layout.add(layout.manifest(LAYER), "a")
    layout.add(layout.manifest(SECOND), "docker.io/library/b:1")
    with pytest.raises(UsageError, match="several.*a, docker.io"):
        store.pull(f"oci:{layout.path}")
    with pytest.raises(ImageNotFound, match="it has: a"):
        store.pull(f"oci:{layout.path}:c")
    assert store.pull(f"oci:{layout.path}:docker.io/library/b:1").display_names == ("b:1",)


def test_the_host_s_architecture_is_chosen(store: ImageStore, layout: Layout) -> None:
    mine, other = (
        layout.manifest(LAYER),
        layout.manifest(SECOND, image={**builders.config(SECOND), "architecture": "mips"}),
    )
    here = {"os": "linux", "architecture": host_architecture()}
    nested = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                {**other, "platform": {"os": "linux", "architecture": "mips"}},
                {**mine, "platform": here},
                {**other, "platform": {"os": "unknown", "architecture": "unknown"}},
            ],
        }
    ).encode()
    layout.add(layout.blob(nested, INDEX), "multi")
    assert store.pull(f"oci:{layout.path}").manifest == mine["digest"]
    layout.manifests.clear()
    layout.add(layout.blob(nested.replace(here["architecture"].encode(), b"riscv32"), INDEX), "multi")
    with pytest.raises(BadImage, match="it has: linux/mips, linux/riscv32"):
        store.pull(f"oci:{layout.path}")


def rewrite(layout: Layout, change: Any) -> None:
    """Change the only manifest's value and put it back under its new digest."""
    path = layout.blob_path(layout.manifests[0]["digest"])
    value = json.loads(path.read_bytes())
    change(value)
    layout.manifests.clear()
    layout.add(layout.blob(json.dumps(value).encode(), MANIFEST))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: v.update(schemaVersion=1), "schema version"),
        (lambda v: v.pop("config"), "descriptor"),
        (lambda v: v.update(mediaType="x/y"), "says that it is"),
        (lambda v: v.update(layers={}), "no list"),
        (lambda v: v.update(layers=v["layers"] * 200), "more than 128"),
        (lambda v: v.update(manifests=[]), "at once"),
        (lambda v: v["config"].update(mediaType="application/vnd.example+json"), "artifact"),
        (lambda v: v["config"].update(digest="sha256:../../../../etc/passwd"), "bad digest"),
        (lambda v: v["config"].update(size=-1), "bad size"),
        (lambda v: v["config"].update(size=True), "bad size"),
        (lambda v: v["config"].update(size=1 << 40), "larger"),
        (lambda v: v["config"].update(size=3), "should have 3"),
        (
            lambda v: v["layers"][0].update(mediaType="application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
            "encrypted",
        ),
        (lambda v: v["layers"][0].update(digest="sha256:" + "0" * 64), "lacks its layer"),
        (lambda v: v["layers"][0].update(size=5), "larger than 5"),
        (lambda v: v["layers"][0].update(size=1 << 62), "larger"),
        (lambda v: v["layers"][0].update(digest=v["config"]["digest"], size=v["config"]["size"]), "gzip"),
    ],
)
def test_manifests_are_validated(store: ImageStore, layout: Layout, change: Any, word: str) -> None:
    layout.add(layout.manifest(LAYER))
    rewrite(layout, change)
    with pytest.raises(BadImage, match=word):
        store.pull(f"oci:{layout.path}")
    assert store.list() == ()


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_every_digest_is_checked(store: ImageStore, layout: Layout, what: str) -> None:
    layout.add(layout.manifest(LAYER))
    value = json.loads(layout.blob_path(layout.manifests[0]["digest"]).read_bytes())
    found = {"manifest": layout.manifests[0], "config": value["config"], "layer": value["layers"][0]}[what]
    path = layout.blob_path(found["digest"])
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadImage, match="digest|damaged"):
        store.pull(f"oci:{layout.path}")
    assert store.list() == ()


def test_a_layout_s_links_and_pipes_lead_nowhere(store: ImageStore, layout: Layout, tmp_path: Path) -> None:
    layout.add(layout.manifest(LAYER))
    secret = tmp_path / "secret"
    index = layout.path / "index.json"
    index.rename(secret)
    index.symlink_to(secret)
    with pytest.raises(BadImage, match="lacks 'index.json'"):
        store.pull(f"oci:{layout.path}")
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(BadImage, match="no regular file"):
        store.pull(f"oci:{layout.path}")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("oci-layout", '{"imageLayoutVersion":"2"}', "version"),
        ("oci-layout", "x" * 5000, "larger"),
        ("index.json", "[]", "object"),
        ("index.json", '{"manifests":[]}', "no list"),
        ("index.json", '{"manifests":[1]}', "no list"),
        ("index.json", '{"manifests":[{"annotations":[1]}]}', "annotations"),
        ("index.json", "[" * 50_000, "JSON"),
    ],
)
def test_layouts_are_validated(store: ImageStore, layout: Layout, name: str, content: str, word: str) -> None:
    layout.add(layout.manifest(LAYER))
    (layout.path / name).write_text(content)
    with pytest.raises(BadImage, match=word):
        store.pull(f"oci:{layout.path}")


def test_an_index_that_names_itself_ends(store: ImageStore, layout: Layout) -> None:
    inner = layout.manifest(LAYER)
    for _ in range(6):
        value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}
        inner = layout.blob(json.dumps(value).encode(), INDEX)
    layout.add(inner)
    with pytest.raises(BadImage, match="nested"):
        store.pull(f"oci:{layout.path}")


@pytest.fixture
def honest(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "honest")
    layout.add(layout.manifest(LAYER, SECOND), "v1")
    return layout


@pytest.mark.parametrize(
    ("destination", "source", "name"),
    [
        ("docker-archive:{}/a.tar:example/app:v2", "docker-archive:{}/a.tar", "docker.io/example/app:v2"),
        (
            "docker-archive:{}/b.tar:example/app:v2",
            "docker-archive:{}/b.tar:example/app:v2",
            "docker.io/example/app:v2",
        ),
        ("docker-archive:{}/My_App.tar", "docker-archive:{}/My_App.tar", "localhost/my-app:latest"),
        ("oci-archive:{}/c.tar:v3", "oci-archive:{}/c.tar:v3", "localhost/c:v3"),
        ("dir:{}/plain", "dir:{}/plain", "localhost/plain:latest"),
        ("oci:{}/other:v4", "oci:{}/other", "localhost/other:v4"),
    ],
)
def test_what_skopeo_writes_is_read(
    store: ImageStore, honest: Layout, tmp_path: Path, destination: str, source: str, name: str
) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    target = destination.format(tmp_path)
    subprocess.run(["skopeo", "copy", "-q", f"oci:{honest.path}", target], check=True, capture_output=True, timeout=60)
    image = store.pull(source.format(tmp_path))
    assert image.names == (name,) and [sorted(os.listdir(layer)) for layer in image.layers] == [["f"], ["g"]]
    assert image.config.diff_ids == (sha256(LAYER), sha256(SECOND))


def docker_archive(path: Path, *extra: tuple[tarfile.TarInfo, bytes], **changes: Any) -> Path:
    """An archive as ``docker save`` writes it."""
    entry = {"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["1/layer.tar", "2/layer.tar"], **changes}
    path.write_bytes(
        tar(
            member("manifest.json", json.dumps([entry]).encode()),
            member("c.json", json.dumps(builders.config(LAYER, SECOND)).encode()),
            member("1/layer.tar", LAYER),
            *(extra or (member("2/layer.tar", SECOND),)),
            format=tarfile.USTAR_FORMAT,
        )
    )
    return path


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, lambda data: data])
def test_docker_archives_may_be_compressed_and_hold_links(store: ImageStore, tmp_path: Path, pack: Any) -> None:
    path = docker_archive(tmp_path / "a.tar", member("x/shared.tar", SECOND), symlink("2/layer.tar", "../x/shared.tar"))
    path.write_bytes(pack(path.read_bytes()))
    image = store.pull(f"docker-archive:{path}")
    assert image.display_names == ("app:1",) and (image.layers[1] / "g").read_bytes() == b"more"
    docker_archive(path, member("x/shared.tar", SECOND), hardlink("2/layer.tar", "x/shared.tar"))
    assert store.pull(f"docker-archive:{path}").id == image.id


@pytest.mark.parametrize(
    ("extra", "changes", "word"),
    [
        ((symlink("2/layer.tar", "/etc/passwd"),), {}, "lacks its layer"),
        ((symlink("2/layer.tar", "../2/layer.tar"),), {}, "lacks its layer"),
        ((member("../../2/layer.tar", SECOND),), {}, r"'\.\.'"),
        ((member("2/layer.tar", SECOND), member("./2//layer.tar", LAYER)), {}, "twice"),
        ((member("2/layer.tar", LAYER),), {}, "digest"),
        ((), {"Config": "/etc/passwd"}, "lacks '/etc/passwd'"),
        ((), {"Config": 1}, "no configuration"),
        ((), {"Layers": ["1/layer.tar"]}, "1 layers"),
        ((), {"Layers": [1]}, "bad layers"),
        ((), {"RepoTags": ["Not A Name"]}, "bad image name"),
        ((), {"RepoTags": "x"}, "RepoTags"),
    ],
)
def test_hostile_docker_archives_are_refused(
    store: ImageStore, tmp_path: Path, extra: Any, changes: dict[str, Any], word: str
) -> None:
    path = docker_archive(tmp_path / "a.tar", *extra, **changes)
    with pytest.raises(BadImage, match=word):
        store.pull(f"docker-archive:{path}")
    assert store.list() == ()


def test_archives_that_are_none(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for data in (b"", b"not a tar" * 100, gzip.compress(b"x" * 5000), b"\x1f\x8b broken", io.BytesIO().getvalue()):
        path.write_bytes(data)
        for transport in ("docker-archive", "oci-archive"):
            with pytest.raises(BadImage):
                store.pull(f"{transport}:{path}")
    os.unlink(path)
    with pytest.raises(ImageNotFound, match="no image archive"):
        store.pull(f"docker-archive:{path}")
    os.mkfifo(path)
    with pytest.raises(BadImage, match="no regular file"):
        store.pull(f"docker-archive:{path}")
    with pytest.raises(ImageNotFound, match="no image layout"):
        store.pull(f"oci:{path}")


def test_names_made_from_files() -> None:
    assert local_name("/a/My App_1.oci.tar.gz") == "localhost/my-app-1:latest"
    assert local_name("/a/..", "v1") == "localhost/image:v1" and local_name("x" * 300).endswith(":latest")

"""Pulling from a real registry server, honest and tampered with, and what skopeo's errors become."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import BadImage, CasemateError, HostError, ImageError, ImageNotFound
from casemate.oci import registry as client
from casemate.oci.manifest import host_architecture
from casemate.oci.reference import parse
from casemate.oci.store import ImageStore
from tests.unit.oci import builders
from tests.unit.oci.builders import GZIP, INDEX, MANIFEST, ZSTD, Layout, member, sha256, tar
from tests.unit.oci.conftest import Registry

BASE = tar(member("base", os.urandom(50_000)))
TOP = tar(member("top", b"top"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def push(registry: Registry, layout: Layout, name: str, *layers: bytes, **fields: Any) -> dict[str, Any]:
    """Push an image of these layers; its manifest."""
    layout.manifests.clear()
    layout.add(layout.manifest(*layers, **fields))
    registry.push(f"oci:{layout.path}", name)
    value: dict[str, Any] = json.loads(layout.blob_path(layout.manifests[0]["digest"]).read_bytes())
    return value


def tamper(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("media_type", [GZIP, ZSTD])
def test_an_image_is_pulled_and_known_by_tag_and_digest(
    store: ImageStore, registry: Registry, layout: Layout, media_type: str
) -> None:
    name = f"{registry.host}/known/{media_type[-4:]}:v1"
    push(registry, layout, f"known/{media_type[-4:]}:v1", BASE, TOP, media_type=media_type)
    lines: list[str] = []
    image = store.pull(name, lines.append)
    digest = layout.manifests[0]["digest"]
    assert image.names == (name,) and image.manifest == digest
    assert image.digests == (f"{registry.host}/known/{media_type[-4:]}@{digest}",)
    assert [os.listdir(layer) for layer in image.layers] == [["base"], ["top"]]
    assert [line.split(":")[0].split(" ")[0] for line in lines[:2]] == ["layer", "layer"]
    for text in (name, image.digests[0], f"docker://{name}"):
        assert store.resolve(text).id == image.id
    lines.clear()
    assert store.pull(image.digests[0], lines.append).id == image.id and "up to date" in lines[0]
    assert os.listdir(store.layers_directory.parent / "tmp") == []


def test_layers_that_are_there_are_not_downloaded(store: ImageStore, registry: Registry, layout: Layout) -> None:
    base = tar(member("base", os.urandom(50_000)))
    first = push(registry, layout, "shared:one", base)
    store.pull(f"{registry.host}/shared:one")
    push(registry, layout, "shared:two", base, TOP)
    tamper(registry.blob(first["layers"][0]["digest"]))  # whoever fetched it would see that it is bad
    image = store.pull(f"{registry.host}/shared:two")
    assert [os.listdir(layer) for layer in image.layers] == [["base"], ["top"]]
    store.remove(image.id)
    store.remove(f"{registry.host}/shared:one")
    with pytest.raises(CasemateError):
        store.pull(f"{registry.host}/shared:two")
    assert store.list() == ()


@pytest.mark.parametrize("what", ["manifest", "config", "layers"])
def test_a_wrong_digest_is_never_taken(store: ImageStore, registry: Registry, layout: Layout, what: str) -> None:
    layer = tar(member("f", os.urandom(5000)))
    value = push(registry, layout, f"bad/{what}:1", layer)
    found = {"manifest": layout.manifests[0], "config": value["config"], "layers": value["layers"][0]}[what]
    tamper(registry.blob(found["digest"]))
    with pytest.raises(CasemateError) as caught:
        store.pull(f"{registry.host}/bad/{what}@{layout.manifests[0]['digest']}")
    assert isinstance(caught.value, (BadImage, ImageError, HostError)) and "\n" not in str(caught.value)
    assert store.list() == () and os.listdir(store.layers_directory) == ["empty"]
    assert os.listdir(store.layers_directory.parent / "tmp") == []


def test_a_wrong_manifest_for_a_digest_is_seen_without_skopeo_s_help(
    registry: Registry, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_inspect", lambda reference, work: b'{"schemaVersion":2}')
    with pytest.raises(BadImage, match="digest of the manifest"):
        client.look(parse(f"localhost/x@{sha256(b'other')}"), tmp_path)


def test_the_host_s_image_is_chosen_out_of_several(store: ImageStore, registry: Registry, layout: Layout) -> None:
    entries = []
    for architecture in ("mips64le", host_architecture()):
        image = {**builders.config(BASE, User=architecture), "architecture": architecture}
        push(registry, layout, f"multi:{architecture}", BASE, image=image)
        platform = {"os": "linux", "architecture": architecture}
        entries.append({**layout.manifests[0], "platform": platform})
    body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    for tag, data in (("all", body), ("none", json.dumps({**json.loads(body), "manifests": entries[:1]}).encode())):
        request = urllib.request.Request(
            f"http://{registry.host}/v2/multi/manifests/{tag}", data, {"Content-Type": INDEX}, method="PUT"
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 201
    pulled = store.pull(f"{registry.host}/multi:all")
    assert pulled.config.user == host_architecture() and pulled.manifest == entries[1]["digest"]
    assert {text.partition("@")[2] for text in pulled.digests} == {sha256(body), entries[1]["digest"]}
    assert store.pull(f"{registry.host}/multi@{sha256(body)}").id == pulled.id
    with pytest.raises(BadImage, match="it has: linux/mips64le"):
        store.pull(f"{registry.host}/multi:none")


def test_docker_s_own_manifests_are_taken_as_they_are(store: ImageStore, registry: Registry, layout: Layout) -> None:
    docker = "application/vnd.docker."
    raw = json.dumps(builders.config(BASE)).encode()
    value = {
        "schemaVersion": 2,
        "mediaType": docker + "distribution.manifest.v2+json",
        "config": layout.blob(raw, docker + "container.image.v1+json"),
        "layers": [layout.blob(builders.compress(BASE, GZIP), docker + "image.rootfs.diff.tar.gzip")],
    }
    descriptor = layout.blob(json.dumps(value).encode(), value["mediaType"])  # type: ignore[arg-type]
    layout.add(descriptor)
    path = layout.path / "as-dir"
    path.mkdir()
    (path / "version").write_text("Directory Transport Version: 1.1\n")
    (path / "manifest.json").write_bytes(json.dumps(value).encode())
    for item in (value["config"], *value["layers"]):  # type: ignore[misc]
        digest = item["digest"]
        (path / digest.partition(":")[2]).write_bytes(layout.blob_path(digest).read_bytes())
    registry.push(f"dir:{path}", "docker/image:1")
    image = store.pull(f"{registry.host}/docker/image:1")
    assert image.manifest == descriptor["digest"] and image.id == sha256(raw)


def test_a_tag_that_moves_is_followed(store: ImageStore, registry: Registry, layout: Layout) -> None:
    name = f"{registry.host}/moves:latest"
    push(registry, layout, "moves:latest", BASE)
    old = store.pull(name)
    push(registry, layout, "moves:latest", BASE, TOP)
    new = store.pull(name)
    assert old.id != new.id and store.resolve(name).id == new.id and store.resolve(old.id).names == ()


def test_what_is_missing_says_so(store: ImageStore, registry: Registry, layout: Layout) -> None:
    push(registry, layout, "there:1", BASE)
    for name in ("there:2", "not-there:1", f"there@{sha256(b'none')}"):
        with pytest.raises(ImageNotFound, match="has no image"):
            store.pull(f"{registry.host}/{name}")
    with pytest.raises(HostError, match="cannot reach registry 127.0.0.1:9"):
        store.pull("127.0.0.1:9/x")


def test_without_skopeo_the_package_is_named(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="install the Debian package skopeo"):
        store.pull("localhost/x")


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in skopeo's place."""
    program = tmp_path / "bin" / "skopeo"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_a_manifest_without_end_and_a_silent_registry(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, 'case "$*" in *big*) head -c 5000000 /dev/zero;; *) exec sleep 60;; esac')
    with pytest.raises(BadImage, match="larger"):
        store.pull("localhost/big")
    monkeypatch.setattr(client, "_STALL", 1.0)
    with pytest.raises(HostError, match="does not answer"):
        store.pull("localhost/silent")
    assert os.listdir(store.layers_directory.parent / "tmp") == []


def test_tls_is_left_out_for_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/said; exit 1')
    for host, wanted in (("127.0.0.1:5000", True), ("localhost", True), ("registry.example", False)):
        with pytest.raises(CasemateError):
            client.look(parse(f"{host}/x"), tmp_path)
        assert ("--tls-verify=false" in (tmp_path / "said").read_text()) is wanted


@pytest.mark.parametrize(
    ("text", "kind", "word"),
    [
        ("manifest unknown", ImageNotFound, "has no image"),
        ("unauthorized: authentication required", ImageNotFound, "login"),
        ("write /x: no space left on device", HostError, "no space"),
        ("toomanyrequests: slow down", HostError, "fewer"),
        ("x509: certificate signed by unknown authority", HostError, "certificate"),
        ("dial tcp: lookup r.example: no such host", HostError, "cannot reach"),
        ("something new", ImageError, "something new"),
        ("Error loading trust policy: open /etc/containers/policy.json: no such file", HostError, "policy"),
        ('bad \\x1b[2J \\"quoted\\" \x1b[31m' + "x" * 5000, ImageError, "cannot pull"),
    ],
)
def test_skopeo_s_messages_become_one_clean_line(text: str, kind: type[CasemateError], word: str) -> None:
    log = f'time="2026" level=warning msg="noise"\ntime="2026" level=fatal msg="{text}"\n'
    error = client.explain(log, parse("r.example/x"))
    assert type(error) is kind and word in str(error) and len(str(error)) < 500 and str(error).isprintable()
    assert client.explain("", parse("x")).message == "cannot pull x:latest: skopeo failed"


def test_progress_is_told_while_bytes_come(tmp_path: Path) -> None:
    lines: list[str] = []
    meter = client._Meter(tmp_path, 4_000_000, lines.append)
    (tmp_path / "part").write_bytes(os.urandom(2_000_000))
    assert meter.tick() and "MB of 4.0 MB" in lines[0] and "/s" in lines[0]
    assert MANIFEST and meter.tick()

"""Image names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UsageError
from casemate.oci.reference import parse, parse_source, shorten

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "name", "display"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("host:5000/a/b_c/d-e__f", "host:5000/a/b_c/d-e__f:latest", "host:5000/a/b_c/d-e__f:latest"),
        ("Host/app", "Host/app:latest", "Host/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        (f"debian:12@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        ("host.example/x:A_b.c-D", "host.example/x:A_b.c-D", "host.example/x:A_b.c-D"),
    ],
)
def test_names_are_normalised_and_shown_as_docker_does(text: str, name: str, display: str) -> None:
    reference = parse(text)
    assert (reference.name, reference.display, shorten(name)) == (name, display, display)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Debian",
        "debian:",
        "debian:-x",
        "debian:a/b",
        "/debian",
        "debian/",
        "a//b",
        "a b",
        "-a",
        "a..b",
        "a/_b",
        "a" * 256,
        "debian@sha256:12",
        f"debian@{DIGEST.upper()}",
        "debian@md5:" + "0" * 32,
        "host:port/x",
        "a___b",
        "host:123456/x",
        "-host.example/x",
        "0123456789abcdef" * 4,
        "debian:" + "a" * 129,
        "über",
        "a\n",
        "../a",
        "a/../b",
    ],
)
def test_bad_names_say_what_to_do(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.hint and "\n" not in str(caught.value)


@given(st.text(alphabet="abZ09.-_:/@[]", max_size=40))
def test_a_name_that_parses_is_its_own_normal_form(text: str) -> None:
    try:
        reference = parse(text)
    except UsageError:
        return
    assert parse(reference.name) == (reference if not reference.digest else parse(reference.name))
    assert parse(reference.name).name == reference.name
    assert parse(reference.display).name == reference.name


@pytest.mark.parametrize(
    ("text", "transport", "path", "selector"),
    [
        ("oci:/a/b", "oci", "/a/b", ""),
        ("oci:dir:v1", "oci", "dir", "v1"),
        ("oci-archive:f.tar:v1", "oci-archive", "f.tar", "v1"),
        ("docker-archive:f.tar:debian:12", "docker-archive", "f.tar", "debian:12"),
        ("dir:a:b", "dir", "a:b", ""),
    ],
)
def test_sources_with_a_path(text: str, transport: str, path: str, selector: str) -> None:
    source = parse_source(text)
    assert (source.transport, source.path, source.selector, source.reference) == (transport, path, selector, None)
    assert str(source) == text


def test_busybox_is_built_in_only_when_nothing_else_is_said() -> None:
    assert parse_source("busybox").transport == "embedded"
    for text in ("docker://busybox", "busybox:latest", "docker.io/library/busybox", f"busybox@{DIGEST}"):
        source = parse_source(text)
        assert source.transport == "docker" and source.reference is not None
        assert source.reference.repository == "docker.io/library/busybox"


@pytest.mark.parametrize(
    "text",
    ["oci:", "dir:", "docker-archive::x", "docker-daemon:x", "containers-storage:x", "https://x/y", "docker://", "a\0"],
)
def test_bad_sources_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_source(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("10.0.0.1:5000", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_only_this_machine_is_trusted_without_tls(host: str, loopback: bool) -> None:
    assert parse(f"{host}/x").loopback is loopback

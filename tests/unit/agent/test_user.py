"""Users of containers, whose files are hostile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.agent import user as user_module
from casemate.agent.user import resolve
from casemate.protocol.wire import RequestFailed


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(
        "# a comment:x:5:5::/:\nbroken\nroot:x:0:0:root:/root:/bin/sh\nbad:x:abc:0::/:\nhuge:x:99999999999:0::/:\n"
        "bad:x:1_0:0::/:\nbad:x:٣:0::/:\nbad:x:-1:0::/:\n"
        "web:x:33:34:w:/srv/web:/bin/sh\n1234:x:50:51::/num:\n"
    )
    (tmp_path / "etc/group").write_text("root:x:0:root\nwww:x:34:\nstaff:x:60:web,other\nlog:x:61:web\nbad:x:q:web\n")
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", (0, 0, [], "/root")),
        ("root", (0, 0, [], "/root")),
        ("web", (33, 34, [60, 61], "/srv/web")),
        ("33", (33, 34, [60, 61], "/srv/web")),
        ("web:staff", (33, 60, [], "/srv/web")),
        ("web:77", (33, 77, [], "/srv/web")),
        ("1000", (1000, 0, [], "/")),
        ("1000:1000", (1000, 1000, [], "/")),
        ("1234", (50, 51, [], "/num")),  # a name goes before a number
        ("0:www", (0, 34, [], "/root")),
    ],
)
def test_resolve(root: int, wanted: str, expected: tuple[int, int, list[int], str]) -> None:
    user = resolve(root, wanted)
    assert (user.uid, user.gid, user.groups, user.home) == expected


@pytest.mark.parametrize(
    "wanted", ["nobody", "web:nothing", "web:", "a:b:c", "bad", "4294967296", "web:2147483648", "-1", "٣"]
)
def test_refused(root: int, wanted: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        resolve(root, wanted)
    assert caught.value.code == "bad-user"


def test_links_stay_inside_and_only_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("web:x:7:7::/:\n")
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    fd = os.open(inside, os.O_PATH)
    passwd = inside / "etc/passwd"
    for target in ("../../outside", str(tmp_path / "outside"), "/proc/self/root/etc/passwd", "passwd"):
        passwd.symlink_to(target)
        with pytest.raises(RequestFailed):
            resolve(fd, "web")
        passwd.unlink()
    os.mkfifo(passwd)
    with pytest.raises(RequestFailed):
        resolve(fd, "web")  # and it does not wait for a writer
    passwd.unlink()
    passwd.mkdir()
    with pytest.raises(RequestFailed):
        resolve(fd, "web")
    passwd.rmdir()
    (inside / "etc/users").write_text("web:x:8:8::/:\n")
    passwd.symlink_to("/etc/users")  # absolute links are the container's
    assert resolve(fd, "web").uid == 8
    os.close(fd)


def test_a_huge_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_module, "MAX_FILE", 1000)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("x:x:1:1::/:\n" * 100 + "web:x:8:8::/:\n")
    fd = os.open(tmp_path, os.O_PATH)
    with pytest.raises(RequestFailed):
        resolve(fd, "web")
    os.close(fd)


@given(st.binary(max_size=300), st.binary(max_size=300), st.text(max_size=20))
def test_any_files_and_any_wish(
    tmp_path_factory: pytest.TempPathFactory, passwd: bytes, group: bytes, wanted: str
) -> None:
    path = tmp_path_factory.mktemp("root")
    (path / "etc").mkdir()
    (path / "etc/passwd").write_bytes(b"web:x:1:2::/h:/s\n" + passwd)
    (path / "etc/group").write_bytes(group)
    fd = os.open(path, os.O_PATH)
    try:
        user = resolve(fd, wanted)
        assert 0 <= user.uid < 1 << 31 and 0 <= user.gid < 1 << 31
    except RequestFailed as error:
        assert error.code == "bad-user"
    finally:
        os.close(fd)

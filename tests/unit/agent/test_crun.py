"""The agent with the real crun on this host, and what crun's messages mean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.agent.crun import explain
from casemate.protocol.wire import RequestFailed
from tests.unit.agent.box import Box, read_all

# crun wants a version 2 control group file system where it looks; a private mount namespace gives it one on any host.
PRIVATE = (
    "unshare", "--mount", "--propagation", "private",
    "sh", "-c", 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"', "sh",
)  # fmt: skip

needs_crun = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("crun") or not os.path.exists("/bin/busybox"),
    reason="needs root, crun and busybox-static",
)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    crun = ("crun", f"--root={tmp_path}/state", "--cgroup-manager=disabled")
    one = Box(tmp_path, crun, PRIVATE, "/sys/fs/cgroup")
    for name in ("bin", "etc", "proc", "tmp"):
        (one.root / name).mkdir()
    shutil.copy("/bin/busybox", one.root / "bin/busybox")
    for name in ("sh", "cat", "echo", "id", "sleep", "stty", "tty"):
        (one.root / "bin" / name).symlink_to("busybox")
    (one.root / "etc/passwd").write_text("web:x:1000:1001::/srv:/bin/sh\n")
    (one.root / "etc/group").write_text("web:x:1001:\nmore:x:1002:web\n")
    one.mounts += [("dev", "tmpfs"), ("dev/pts", "devpts")]
    yield one
    assert "Traceback" not in one.close()


@needs_crun
def test_a_container(box: Box) -> None:
    command = "echo $$ $HOME; cat /etc/hosts; cat >&2; exit 9"
    files = [{"path": "/etc/hosts", "mode": 0o644, "content": "::1 here\n"}]
    started = box.start("c", "/bin/sh", "-c", command, stdin=True, files=files, user="web")
    assert started.stdin is not None and started.stderr is not None
    started.stdin.send(b"8-bit: \xff\0\xfe")
    started.stdin.send_eof()
    assert started.output() == b"1 /srv\n::1 here\n"
    assert read_all(started.stderr) == b"8-bit: \xff\0\xfe"
    assert box.ended.wait("c") == {"id": "c", "exec_id": None, "status": 9, "signal": None, "oom": False}
    box.link.call("container.delete", {"id": "c"}, 20)
    assert os.listdir(box.path / "state") == []
    assert os.listdir(box.path / "run/containers") == []


@needs_crun
def test_further_processes(box: Box) -> None:
    box.start("c", "/bin/sleep", "60")
    started = box.exec("c", "who", "/bin/id", user="web")
    assert started.output() == b"uid=1000(web) gid=1001(web) groups=1002(more)\n"
    assert box.ended.wait("c", "who")["status"] == 0
    started = box.exec(
        "c",
        "tty",
        "/bin/sh",
        "-c",
        # exec sets it a moment later, and until then stty(1) of busybox says nothing, and ends with 0.
        'until [ "$(stty size 2> /dev/null)" ]; do :; done; stty size; tty; read x; echo [$x]; exit 2',
        stdin=True,
        terminal=True,
        size=[21, 42],
    )
    assert started.stdin is not None
    started.stdin.send(b"word\r")
    output = started.output()
    assert b"21 42\r\n" in output and b"/dev/pts/" in output and b"[word]" in output  # the echo comes in between
    assert box.ended.wait("c", "tty")["status"] == 2
    started = box.start("t", "/bin/stty", "size", terminal=True, size=[33, 44])
    assert started.output() == b"33 44\r\n"
    box.ended.wait("t")
    # Killing the first process takes the others along; their ends are told before its end.
    box.exec("c", "other", "/bin/sleep", "60")
    box.link.call("process.signal", {"id": "c", "exec_id": None, "signal": 9, "all": False}, 20)
    assert box.ended.wait("c")["signal"] == 9
    assert [event["exec_id"] for event in box.ended.events if event["id"] == "c"] == ["who", "tty", "other", None]
    with pytest.raises(RequestFailed) as caught:
        box.exec("c", "late", "/bin/id")
    assert caught.value.code == "no-such-container"


@needs_crun
def test_commands_that_cannot_run(box: Box) -> None:
    (box.root / "bin/plain").write_text("not executable")
    for name, content in (
        ("odd", "just text"),
        ("orphan", "#!/bin/missing\n"),
        ("foreign", "\x7fELF\2\1\1" + "\0" * 90),
    ):
        (box.root / "bin" / name).write_text(content)
        (box.root / "bin" / name).chmod(0o755)
    cases = [
        ("missing", "not-found"), ("/bin/missing", "not-found"), ("/bin/plain", "not-executable"),
        ("/bin/odd", "not-executable"), ("/bin/orphan", "not-found"), ("/bin/foreign", "not-executable"),
        ("/etc", "not-executable"),
    ]  # fmt: skip
    box.start("c", "/bin/sleep", "60")
    for name, code in cases:
        with pytest.raises(RequestFailed) as caught:
            box.exec("c", "e", name)
        assert caught.value.code == code, (name, caught.value)
        with pytest.raises(RequestFailed) as caught:
            box.start("d", name)
        assert caught.value.code == code, (name, caught.value)
    assert box.exec("c", "e", "/bin/echo", "fine").output() == b"fine\n"


@pytest.mark.parametrize(
    ("log", "code", "part"),
    [
        ("", "failed", "status 1"),
        ("garbage\n{", "failed", "status 1"),
        ('{"msg":"low","level":"warning"}', "failed", "status 1"),
        ('{"msg":"make `x` private: No such file or directory","level":"error"}', "failed", "private"),
        ('{"msg":"executable file `x y` not found in $PATH: No such file","level":"error"}', "not-found", "x y"),
        ('{"msg":"open executable: Permission denied","level":"error"}', "not-executable", "Permission denied"),
        ('{"msg":7,"level":"error"}', "failed", "status 1"),
    ],
)
def test_messages(log: str, code: str, part: str) -> None:
    error = explain(log, 1)
    assert error.code == code
    assert part in error.message

"""Hooks at all their points by the OCI command line, with runc as the control."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.vm.oci import Bundle, Failed, Runtime

ON_HOST = ("prestart", "createRuntime", "createContainer")
POINTS = (*ON_HOST, "startContainer", "poststart", "poststop")


def shell(script: str, **rest: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], **rest}


def with_notes(runtime: Runtime) -> tuple[Bundle, Path]:
    """A bundle with a hook at every point that adds a line to a file, which is a mount of the container's too."""
    bundle = runtime.bundle("sh", "-c", "echo process >>/notes/file; exit 3")
    notes = bundle.path / "notes"
    notes.mkdir()
    bundle.mount("/notes", notes, "rbind")
    bundle.spec["annotations"] = {"note": "worthy"}
    hooks = {point: [shell(f"echo {point} $(cat) >>{notes}/file")] for point in POINTS}
    hooks["startContainer"] = [shell("echo startContainer $(cat) >>/notes/file")]
    bundle.spec["hooks"] = hooks
    return bundle, notes / "file"


def test_each_runs_at_its_point_with_the_state(either: Runtime) -> None:
    bundle, notes = with_notes(either)
    container = either.create(bundle)
    after_create = notes.read_text().splitlines()
    container.start()
    assert container.wait() == 3
    container("delete")
    lines = notes.read_text().splitlines()
    names = [line.partition(" ")[0] for line in lines]
    if either.kind == "runc":  # it runs these before "create" returns, which the specification does not want
        assert "poststart" in [line.partition(" ")[0] for line in after_create]
        lines.remove(next(line for line in lines if line.startswith("poststart")))
        names.remove("poststart")
        assert names == [*ON_HOST, "startContainer", "process", "poststop"]
    else:
        assert [line.partition(" ")[0] for line in after_create] == list(ON_HOST)
        assert names[:3] == list(ON_HOST) and names[-1] == "poststop"
        # What the container does and what the host does once it was started go their own ways.
        names.remove("poststart")
        assert names[3:-1] == ["startContainer", "process"]
    states = {line.partition(" ")[0]: json.loads(line.partition(" ")[2]) for line in lines if "{" in line}
    for point, state in states.items():
        assert state["id"] == container.id and state["annotations"] == {"note": "worthy"}, point
        assert state["ociVersion"].startswith("1.0")  # crun, which runs what runs in the guest, says no more of it
    for point in ON_HOST:
        assert states[point]["status"] == "creating" and states[point]["bundle"] == str(bundle.path)
    assert [states[point]["pid"] for point in ON_HOST] == [container.pid, container.pid, 1]
    assert states["poststop"]["status"] == "stopped" and "pid" not in states["poststop"]
    if either.kind == "casemate":
        assert (states["poststart"]["status"], states["poststart"]["pid"]) == ("running", container.pid)


@pytest.mark.parametrize("point", ON_HOST)
def test_one_that_fails_before_the_start_undoes_all(either: Runtime, point: str) -> None:
    bundle = either.bundle()
    gone = bundle.path / "poststop"
    bundle.spec["hooks"] = {point: [shell("echo said; echo err >&2; exit 3")], "poststop": [shell(f"touch {gone}")]}
    id = either.new_id()
    with pytest.raises(Failed) as caught:
        either.create(bundle, id=id)
    end = "hook #0: error running hook: exit status 3, stdout: said\n, stderr: err\n"
    assert caught.value.status == 1 and caught.value.log.endswith(end)
    assert caught.value.log.startswith(f"{either.name} create failed: ")
    assert either.fails("state", id) == "container does not exist"
    assert gone.exists()


def test_one_that_takes_too_long_is_ended(either: Runtime) -> None:
    bundle = either.bundle()
    bundle.spec["hooks"] = {"createRuntime": [shell("exec sleep 600", timeout=1)]}
    with pytest.raises(Failed) as caught:
        either.create(bundle)
    assert caught.value.log.endswith("hook #0: hook ran past specified timeout of 1.0s")


def test_one_that_is_not_there(either: Runtime) -> None:
    bundle = either.bundle()
    bundle.spec["hooks"] = {"prestart": [{"path": "/nope/hook"}]}
    with pytest.raises(Failed) as caught:
        either.create(bundle)
    assert caught.value.log.endswith("hook #0: fork/exec /nope/hook: no such file or directory")


def test_start_container_hooks_are_the_containers(either: Runtime) -> None:
    bundle = either.bundle("sh", "-c", "cat /tmp/made; exit 2")
    bundle.spec["hooks"] = {"startContainer": [shell("hostname >/tmp/made; pwd >>/tmp/made; echo $PPID >>/tmp/made")]}
    bundle.spec["hostname"] = "inside"
    container = either.create(bundle)
    assert not (bundle.rootfs / "tmp/made").exists()
    container.start()
    assert container.wait() == 2
    assert container.output().split()[0] == "inside"


def test_a_start_container_hook_that_fails_stops_the_container(either: Runtime) -> None:
    bundle = either.bundle("touch", "/tmp/ran")
    bundle.spec["hooks"] = {"startContainer": [shell("exit 1")]}
    container = either.create(bundle)
    either("start", container.id)
    assert container.wait() != 0
    assert not (bundle.rootfs / "tmp/ran").exists()


def test_poststop_may_fail(either: Runtime) -> None:
    bundle = either.bundle("true")
    ran = bundle.path / "ran"
    bundle.spec["hooks"] = {"poststop": [shell("exit 1"), shell(f"touch {ran}")]}
    container = either.create(bundle).start()
    container.wait()
    assert either("delete", "--force", container.id).returncode == 0
    if either.kind == "casemate":  # runc stops at the first; "remaining hooks ... continue" says the specification
        assert ran.exists()
    assert either.fails("state", container.id) == "container does not exist"


def test_poststart_may_fail(ours: Runtime) -> None:
    bundle = ours.bundle()
    ran = bundle.path / "ran"
    bundle.spec["hooks"] = {"poststart": [shell("exit 1"), shell(f"touch {ran}")]}
    container = ours.create(bundle).start()
    assert ran.exists() and container.state()["status"] == "running"
    warnings = [json.loads(line) for line in ours.log.read_text().splitlines()]
    assert ["exit status 1" in entry["msg"] for entry in warnings if entry["level"] == "warning"] == [True]


def test_a_prestart_hook_sets_up_the_network_of_the_process_that_it_is_told_of(either: Runtime) -> None:
    """As Docker does: it moves a link into the namespace of the process whose id the state tells."""
    bundle = either.bundle("sh", "-c", "ip -o link show; ip -o addr show dev eth7; ip route")
    script = (
        "pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'); n=cmh$$; ip link add $n type veth peer name ${n}p &&"
        " ip link set ${n}p netns $pid name eth7 && nsenter -t $pid -n sh -c '"
        "ip addr add 10.99.7.2/24 dev eth7; ip link set eth7 up mtu 1400; ip route add default via 10.99.7.1'"
    )
    bundle.spec["hooks"] = {"prestart": [shell(script)]}
    done = either("run", "--bundle", bundle.write(), either.new_id())
    out = done.stdout.decode()
    assert done.returncode == 0, done
    assert "eth7" in out and "mtu 1400" in out and "10.99.7.2/24" in out and "default via 10.99.7.1 dev eth7" in out


def test_a_create_container_hook_mounts_into_the_root(either: Runtime) -> None:
    """As those that bring libraries of the host along: their directory is the root, and it is not the root yet."""
    bundle = either.bundle("sh", "-c", "cat /opt/lib/file; cat /data/more/file")
    (bundle.path / "lib").mkdir()
    (bundle.path / "lib/file").write_text("from a hook\n")
    (bundle.path / "data/more").mkdir(parents=True)
    bundle.mount("/data", bundle.path / "data", "rbind")
    lib = bundle.path / "lib"
    script = f"mkdir -p opt/lib && mount --bind {lib} opt/lib && mount --bind {lib} data/more"
    bundle.spec["hooks"] = {"createContainer": [shell(script)]}
    done = either("run", "--bundle", bundle.write(), either.new_id())
    assert (done.returncode, done.stdout) == (0, b"from a hook\n" * 2), done
    assert os.listdir(bundle.rootfs / "opt/lib") == []  # the host does not see them

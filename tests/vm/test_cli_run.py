"""``casemate run`` with real virtual machines: exit statuses, streams, signals, options, limits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.support import Casemate, Environment, await_log, detached


def test_the_kernel_is_not_the_hosts(cm: Casemate) -> None:
    script = "uname -r; cat /proc/sys/kernel/random/boot_id; cat /proc/1/comm"
    inside = cm.out("run", "--rm", "busybox", "sh", "-c", script)
    kernel, boot, first = inside.splitlines()
    assert kernel != os.uname().release
    assert boot != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert first in ("sh", "cat", "busybox"), "the container's own first process, not the agent"


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137, ""),
        (["no-such-program"], 127, "no-such-program"),
        (["/etc"], 126, ""),
    ],
)
def test_exit_statuses(cm: Casemate, command: list[str], status: int, message: str) -> None:
    done = cm("run", "--rm", "busybox", *command)
    assert done.returncode == status
    error = done.stderr.decode()
    assert message in error and "Traceback" not in error and error.count("\n") <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "1m", "busybox"], "too little"),
        (["-v", "data:/data", "busybox"], "use a path"),
        (["--pull", "never", "no-such-image"], "no-such-image"),
        (["--nope", "busybox"], "unknown option --nope"),
        (["--user", "nobody-at-all", "busybox", "true"], "nobody-at-all"),
        (["oci:/no/such/layout", "true"], "/no/such/layout"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_and_leaves_nothing(cm: Casemate, words: list[str], message: str) -> None:
    done = cm("run", *words)
    assert done.returncode == 125
    error = done.stderr.decode()
    assert error.startswith("casemate: ") and message in error and error.count("\n") == 1
    assert cm.out("ps", "-aq") == ""


def test_streams_are_8_bit_clean_and_end(cm: Casemate) -> None:
    data = os.urandom(3 << 20)
    done = cm("run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo done >&2", input=data, check=True)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert done.stderr == b"done\n"


def test_without_i_standard_input_is_empty(cm: Casemate) -> None:
    assert cm.out("run", "--rm", "busybox", "cat", input=b"not for you") == ""


def test_options_reach_the_container(cm: Casemate, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "in").write_text("from the host")
    env_file = tmp_path / "env"
    env_file.write_text("FILE=1\nBOTH=file\n")
    script = """
        echo "who $(id -u):$(id -g)"; echo "where $(pwd)"; echo "name $(hostname)"
        echo "env $FILE $BOTH $OPTION $TAKEN"; echo "volume $(cat /data/in)"; echo out > /data/out
        echo x > /ro/x 2>/dev/null || echo "ro refused"; echo x > /root-file 2>/dev/null || echo "root refused"
        echo t > /t/f && echo "tmpfs $(stat -f -c %T /t)"; grep -c . /proc/self/status > /dev/null
        echo "caps $(sed -n 's/^CapBnd:[[:space:]]*//p' /proc/self/status)"
        echo "nofile $(ulimit -n)"; echo "limit $(cat /sys/fs/cgroup/pids.max)"
        echo "nnp $(sed -n 's/^NoNewPrivs:[[:space:]]*//p' /proc/self/status)"
    """
    out = cm.out(
        "run", "--rm", "--read-only", "--hostname", "box", "-w", "/t", "-u", "1234:5678", "--env-file", env_file,
        "-e", "BOTH=option", "-e", "OPTION=a b", "-e", "LANG_TEST", "-v", f"{data}:/data", "-v", f"{tmp_path}:/ro:ro",
        "--tmpfs", "/t:mode=1777", "--cap-drop", "ALL", "--cap-add", "chown", "--ulimit", "nofile=77:88",
        "--pids-limit", "55", "--security-opt", "no-new-privileges", "busybox", "sh", "-c",
        f"umask 0; {script}",
    )  # fmt: skip
    lines = dict(line.split(" ", 1) for line in out.splitlines())
    assert lines["who"] == "1234:5678" and lines["where"] == "/t" and lines["name"] == "box"
    assert lines["env"].split() == ["1", "option", "a", "b"]
    assert lines["volume"] == "from the host"
    assert lines["ro"] == lines["root"] == "refused"
    assert lines["tmpfs"] == "tmpfs"
    assert int(lines["caps"], 16) == 1
    assert (lines["nofile"], lines["limit"], lines["nnp"]) == ("77", "55", "1")


def test_the_image_stays_as_it_is_and_each_root_is_its_own(cm: Casemate) -> None:
    script = "test ! -e /mark && touch /mark && echo fresh"
    assert cm.out("run", "--rm", "busybox", "sh", "-c", script) == "fresh"
    assert cm.out("run", "--rm", "busybox", "sh", "-c", script) == "fresh"


def test_the_filter_lets_programs_work_and_refuses_the_rest(cm: Casemate) -> None:
    script = (
        "grep Seccomp: /proc/self/status; unshare -m true 2>&1; mount -t tmpfs x /mnt 2>&1; sethostname=1;"
        " mknod /tmp/d b 254 0 && head -c1 /tmp/d 2>&1; dmesg 2>&1 | head -1"
    )
    out = cm("run", "--rm", "busybox", "sh", "-c", f"mkdir -p /mnt /tmp; {script}").stdout.decode()
    assert re.search(r"Seccomp:\s+2", out)
    assert out.count("Operation not permitted") >= 3
    script = "mkdir -p /m; mount -t tmpfs x /m && echo ok"
    admin = cm.out("run", "--rm", "--cap-add", "SYS_ADMIN", "busybox", "sh", "-c", script)
    assert admin == "ok"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_process(cm: Casemate, number: signal.Signals) -> None:
    traps = "trap 'echo caught INT; exit 3' INT; trap 'echo caught TERM; exit 3' TERM"
    script = f"{traps}; echo ready; while :; do sleep 1; done"
    with cm.popen("run", "--rm", "busybox", "sh", "-c", script) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(number)
        out, _ = client.communicate(timeout=60)
    assert out == f"caught {number.name[3:]}\n".encode()
    assert client.returncode == 3


def test_an_interrupt_while_the_machine_boots_leaves_nothing(cm: Casemate) -> None:
    with cm.popen("run", "--name", "early", "busybox", "sleep", "100") as client:
        deadline = time.monotonic() + 60
        while not (cm.env.root / "names" / "early").is_symlink():
            assert time.monotonic() < deadline and client.poll() is None
            time.sleep(0.01)  # the file system tells nobody else of it
        client.send_signal(signal.SIGINT)
        _, err = client.communicate(timeout=60)
    assert client.returncode == 130
    assert b"Traceback" not in err
    assert cm.out("ps", "-aq") == ""


def test_over_its_memory_the_container_is_killed_and_says_so(cm: Casemate) -> None:
    try:
        done = cm("run", "--name", "hog", "--memory", "128m", "busybox", "sh", "-c", "tail /dev/zero; exit $?")
        status = cm.inspect("hog")
        assert status["State"]["OOMKilled"] is True
        assert status["HostConfig"]["Memory"] == 128 << 20
        assert done.returncode == status["State"]["ExitCode"] == 137
        assert "out of memory" in cm.out("ps", "-a", "--filter", "name=hog")
    finally:
        cm.remove("hog")


def test_the_guest_has_what_was_asked(cm: Casemate) -> None:
    script = "nproc; grep MemTotal /proc/meminfo"
    out = cm.out("run", "--rm", "--memory", "300m", "--cpus", "2", "busybox", "sh", "-c", script)
    processors, memory = out.splitlines()
    assert processors == "2"
    assert 200 << 10 < int(memory.split()[1]) <= 300 << 10


def test_published_ports_and_names(cm: Casemate) -> None:
    serve = ("sh", "-c", "mkdir -p /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www")
    with detached(cm, "web", "-p", "127.0.0.1::80", command=serve) as web:
        port = cm.inspect("web")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
        assert int(port) > 0
        web.sh("until wget -q -O /dev/null http://127.0.0.1/; do :; done")
        with socket.create_connection(("127.0.0.1", int(port)), 30) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert b"200 OK" in answer and answer.endswith(b"hello\n")
        assert f"127.0.0.1:{port}->80/tcp" in cm.out("ps")
        taken = cm("run", "--rm", "-p", f"127.0.0.1:{port}:80", "busybox", "true")
        assert taken.returncode == 125 and port in taken.stderr.decode()


def test_without_a_network(cm: Casemate) -> None:
    script = "ls /sys/class/net; ping -c1 -W2 127.0.0.1 >&2 && echo up"
    out = cm.out("run", "--rm", "--network", "none", "busybox", "sh", "-c", script)
    assert out.split() == ["lo", "up"]


def test_detached_containers_outlive_their_shell(cm: Casemate, env: Environment) -> None:
    script = "casemate=$1; shift; $casemate run -d --name stays busybox sh -c 'echo here; sleep 1000'; exit 0"
    from tests.vm.support import CONSOLE_SCRIPT

    command = ["setsid", "-w", "sh", "-c", script, "sh", str(CONSOLE_SCRIPT)]
    done = subprocess.run(command, env=env.variables, capture_output=True, timeout=120, check=False)
    try:
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(rb"[0-9a-f]{64}\n", done.stdout)
        assert cm.inspect("stays")["State"]["Running"] is True
        await_log(cm, "stays", "here")
    finally:
        cm.remove("stays")


def test_a_slow_reader_holds_the_process_and_loses_nothing(cm: Casemate) -> None:
    with cm.popen("run", "--rm", "busybox", "sh", "-c", "seq 1 300000") as client:
        assert client.stdout is not None
        select.select([client.stdout], [], [], 60)
        time.sleep(1)  # the reader is slow: that is the point
        out, _ = client.communicate(timeout=120)
    assert out.splitlines()[-1] == b"300000" and out.count(b"\n") == 300_000


def test_an_image_from_a_layout_with_entrypoint_and_user(cm: Casemate, tmp_path: Path) -> None:
    layout = _layout(tmp_path / "layout")
    image = cm.out("pull", "-q", f"oci:{layout}:t")
    assert cm.out("run", "--rm", image) == "entry default 1000 /srv image"
    assert cm.out("run", "--rm", image, "given") == "entry given 1000 /srv image"
    assert cm.out("run", "--rm", "--entrypoint", "echo", image, "-n", "x") == "x"
    assert cm.out("run", "--rm", "-u", "0", "-e", "WHO=me", image, "given") == "entry given 0 /srv me"
    cm.out("rmi", image)


def _layout(path: Path) -> Path:
    """An image layout by hand: busybox, an entrypoint, a user and a variable."""
    import io
    import shutil
    import tarfile

    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is missing: run make setup"
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "srv", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox")
        for name in ("sh", "id", "pwd", "echo"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    data = layer.getvalue()
    config = {
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]},
        "config": {
            "Entrypoint": ["sh", "-c", "echo entry $0 $(id -u) $(pwd) $WHO"], "Cmd": ["default"], "User": "1000",
            "WorkingDir": "/srv", "Env": ["WHO=image", "PATH=/bin"],
        },
    }  # fmt: skip
    vendor = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2, "mediaType": f"{vendor}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{vendor}.config.v1+json"),
        "layers": [blob(data, f"{vendor}.layer.v1.tar")],
    }  # fmt: skip
    top = blob(json.dumps(manifest).encode(), f"{vendor}.manifest.v1+json")
    top["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return path

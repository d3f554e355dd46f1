"""``casemate install``: engines' configurations are changed without a loss and put back to the byte."""

from __future__ import annotations

import glob
import json
import os
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli.installers import changes, containerd, docker, jsontext, ksm, podman, unit
from casemate.cli.main import main
from casemate.errors import ConfigError, HostError

Capture = pytest.CaptureFixture[str]
PROGRAMS = {name: Path("/usr/local/bin") / name for name in containerd.PROGRAMS}
V2 = 'plugins."io.containerd.grpc.v1.cri"'
V3 = "plugins.'io.containerd.cri.v1.runtime'"
DEBIAN = f"""version = 2

[plugins]
  [{V2}]
    [{V2}.cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"""


class Machine:
    """A directory with the files of a machine, and the command on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = home / "usr" / "bin"
        self.links = home / "usr" / "local" / "bin"
        self.bin.mkdir(parents=True)
        for name in PROGRAMS:
            (self.bin / name).write_text("#!/bin/sh\n")
            (self.bin / name).chmod(0o755)
        self.file = home / "etc" / "engine" / "config"

    def put(self, text: str) -> str:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(text)
        return text

    def run(self, *words: str) -> int:
        return main(["install", *words, "--file", str(self.file), "--links", str(self.links)])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(made.bin / "casemate")])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda *args: None)
    monkeypatch.setenv("CASEMATE_ROOT", str(tmp_path / "lib"))
    monkeypatch.setenv("CASEMATE_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("NO_COLOR", "1")
    return made


def snapshot(home: Path) -> dict[str, Any]:
    """Every file and link with its content and mode, without our own book."""
    return {
        str(path.relative_to(home)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
            stat.S_IMODE(path.lstat().st_mode),
        )
        for path in home.rglob("*")
        if path.relative_to(home).parts[0] not in ("lib", "run")
    }


CONFIGURATIONS = {
    "docker": [
        "{}",
        "{}\n",
        "{ }",
        "{\n}\n",
        "",
        '{"log-driver":"json-file"}',
        '{"runtimes":{}}',
        '{"runtimes":{"runsc":{"path":"/x"}},"debug":true}',
        '{\n  "debug": true\n}\n',
        '{\n\t"debug": true,\n\t"runtimes": {\n\t\t"nvidia": {\n\t\t\t"path": "nvidia"\n\t\t}\n\t}\n}\n',
        '{\n    "runtimes": {},\n    "hosts": ["a", {"}": "\\"{"}],\n    "mtu": 1.50e3\n}',
        '{\r\n  "debug": true\r\n}\r\n',
    ],
    "containerd": [
        DEBIAN,
        "version = 2\n",
        "version = 2",
        "",
        "# only a comment\n",
        'disabled_plugins = ["cri"]\n',
        f"version = 3\n[{V3}.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n",
        "version = 2\r\n[grpc]\r\n  address = '/x'\r\n",
        "[plugins.cri]\n  stream_server_port = '0'\n\n",
    ],
    "podman": [],
}
EVERY = [(engine, text) for engine, texts in CONFIGURATIONS.items() for text in (None, *texts)]
IDS = [f"{engine}-{number}" for number, (engine, _) in enumerate(EVERY)]


# ---- whole


@pytest.mark.parametrize(("engine", "text"), EVERY, ids=IDS)
def test_installing_twice_and_undoing_leaves_every_byte(
    machine: Machine, engine: str, text: str | None, capsys: Capture
) -> None:
    if text is not None:
        machine.put(text)
        machine.file.chmod(0o640)
    before = snapshot(machine.home)
    assert machine.run(engine) == 0
    once = snapshot(machine.home)
    assert once != before
    if text is not None:
        assert stat.S_IMODE(machine.file.stat().st_mode) == 0o640
    capsys.readouterr()
    assert machine.run(engine) == 0
    assert "casemate is there already" in capsys.readouterr().out
    assert snapshot(machine.home) == once
    assert machine.run(engine, "--undo") == 0
    after = snapshot(machine.home)
    for made in ("usr/local/bin", "usr/local"):
        after.pop(made, None)  # the directory for links may stay
    assert after == before
    capsys.readouterr()
    assert machine.run(engine, "--undo") == 0
    assert "nothing of casemate is there" in capsys.readouterr().out


@pytest.mark.parametrize(("engine", "text"), [pair for pair in EVERY if pair[0] != "podman"])
def test_what_an_owner_adds_later_stays(machine: Machine, engine: str, text: str | None) -> None:
    """After an edit the old content cannot be put back; ours is cut out of the new one instead."""
    if text is not None:
        machine.put(text)
    machine.run(engine)
    edited = machine.file.read_text()
    if engine == "docker":
        machine.put(json.dumps({**json.loads(edited), "live-restore": True}, indent=3))
    else:
        machine.put(edited + "# mine\n")
    assert machine.run(engine, "--undo") == 0
    left = machine.file.read_text()
    if engine == "docker":
        expected = json.loads(text) if text else {}
        if not expected.get("runtimes"):
            expected.pop("runtimes", None)
        assert json.loads(left) == {**expected, "live-restore": True}
    else:
        assert tomllib.loads(left) == tomllib.loads(text or "version = 2")
        assert left.endswith("# mine\n")


@pytest.mark.parametrize(("engine", "text"), EVERY, ids=IDS)
def test_a_dry_run_shows_the_diff_and_changes_nothing(
    machine: Machine, engine: str, text: str | None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        machine.put(text)
    before = snapshot(machine.home)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.run(engine, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert snapshot(machine.home) == before
    assert not (machine.home / "lib").exists()
    assert f"+++ {machine.file}" in shown and "casemate" in shown
    assert f"link {machine.links}/casemate-runtime -> {machine.bin}/casemate-runtime" in shown
    if engine != "docker" and (text or "").endswith("\n"):
        assert not [line for line in shown.splitlines() if line.startswith("-") and not line.startswith("--- ")]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    machine.run(engine)
    installed = snapshot(machine.home)
    capsys.readouterr()
    assert machine.run(engine, "--undo", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert snapshot(machine.home) == installed
    assert f"remove {machine.links}/casemate-runtime" in shown and f"--- {machine.file}" in shown


def test_only_root_changes_anything(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.run("docker") == 125
    assert "needs root (try: sudo casemate install docker)" in capsys.readouterr().err
    assert not machine.file.exists()


def test_an_unknown_engine_is_told(machine: Machine, capsys: Capture) -> None:
    assert machine.run("lxc") == 125
    assert "unknown engine 'lxc' (known are docker, podman, containerd, ksm, pool)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ("docker", "{"), ("docker", "[]"), ("docker", '{"a": 1, "a": 2}'), ("docker", '{"runtimes": []}'),
        ("docker", '{"runtimes": {"casemate": {"path": "/x"}, "casemate": {}}}'), ("docker", "{} x"),
        ("docker", "{/* c */}"), ("docker", "[" * 100_000),
        ("containerd", "version = "), ("containerd", "version = 4\n"), ("containerd", "version = 'x'\n"),
        ("containerd", 'version = 2\nplugins = { "io.containerd.grpc.v1.cri" = { sandbox_image = "x" } }\n'),
        ("containerd", f'version = 2\n[{V2}.containerd.runtimes.casemate]\nruntime_type = "mine"\n'),
        ("containerd", "version = 2\nplugins = 5\n"),
        ("podman", "[engine"), ("podman", "[engine]\nruntime = 'crun'\n"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_are_left_alone(machine: Machine, engine: str, text: str, capsys: Capture) -> None:
    machine.put(text)
    before = snapshot(machine.home)
    assert machine.run(engine) == 125
    error = capsys.readouterr().err
    assert str(machine.file) in error and error.count("\n") == 1
    assert snapshot(machine.home) == before


def test_files_that_are_no_files_are_left_alone(machine: Machine, capsys: Capture) -> None:
    machine.file.parent.mkdir(parents=True)
    os.mkfifo(machine.file)
    assert machine.run("docker") == 125
    machine.file.unlink()
    machine.file.symlink_to("nowhere")
    assert machine.run("docker") == 125
    assert "leads nowhere" in capsys.readouterr().err
    machine.file.unlink()
    machine.file.write_bytes(b"\xff{}")
    assert machine.run("docker") == 125
    assert "not text in UTF-8" in capsys.readouterr().err
    machine.file.write_bytes(b"{" + b" " * changes.MAX_BYTES + b"}")
    assert machine.run("docker") == 125
    assert "larger than 1 MiB" in capsys.readouterr().err


def test_a_link_to_the_file_stays_a_link(machine: Machine) -> None:
    real = machine.home / "real.json"
    real.write_text("{}")
    machine.file.parent.mkdir(parents=True)
    machine.file.symlink_to(real)
    machine.run("docker")
    assert machine.file.is_symlink()
    assert "casemate" in real.read_text()
    machine.run("docker", "--undo")
    assert machine.file.is_symlink() and real.read_text() == "{}"


def test_a_write_that_fails_leaves_the_old_file(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    machine.put("{}")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert machine.run("docker") == 125
    assert "No space left on device" in capsys.readouterr().err
    assert machine.file.read_text() == "{}"
    assert os.listdir(machine.file.parent) == ["config"]


# ---- programs and links


def test_labels_and_access_lists_stay(machine: Machine) -> None:
    machine.put("{}\n")
    try:
        os.setxattr(machine.file, "user.label", b"of the owner's")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error.strerror}")
    assert machine.run("docker") == 0
    assert "casemate" in machine.file.read_text()
    assert os.getxattr(machine.file, "user.label") == b"of the owner's"


def test_a_link_that_cannot_be_made_leaves_nothing(machine: Machine) -> None:
    place = machine.links / "casemate-runtime"
    (place / "x").mkdir(parents=True)
    link = changes.LinkChange(place, machine.bin / "casemate-runtime")
    with pytest.raises(HostError):
        changes.link(link)
    assert os.listdir(machine.links) == ["casemate-runtime"]


def test_programs_are_linked_to_where_engines_look(machine: Machine) -> None:
    machine.run("containerd")
    assert {path.name: os.readlink(path) for path in machine.links.iterdir()} == {
        name: str(machine.bin / name) for name in PROGRAMS
    }


@pytest.mark.parametrize("first", ["docker", "containerd"])
def test_links_stay_while_another_engine_needs_them(machine: Machine, first: str) -> None:
    files = {"docker": machine.home / "daemon.json", "containerd": machine.home / "config.toml"}
    for engine, machine.file in files.items():
        machine.run(engine)
    machine.file = files.pop(first)
    machine.run(first, "--undo")
    last, machine.file = files.popitem()
    assert "casemate-runtime" in os.listdir(machine.links)
    machine.run(last, "--undo")
    assert os.listdir(machine.links) == []


def test_a_program_of_somebody_elses_is_not_replaced(machine: Machine, capsys: Capture) -> None:
    machine.links.mkdir(parents=True)
    (machine.links / "casemate-runtime").write_text("mine")
    assert machine.run("docker") == 125
    assert "is not casemate's" in capsys.readouterr().err
    assert not machine.file.exists()


def test_links_follow_when_casemate_has_moved(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.run("docker")
    moved = machine.home / "opt"
    machine.bin.rename(moved)
    monkeypatch.setattr(sys, "argv", [str(moved / "casemate")])
    machine.run("docker")
    assert os.readlink(machine.links / "casemate-runtime") == str(moved / "casemate-runtime")
    machine.run("docker", "--undo")
    assert os.listdir(machine.links) == [] and not machine.file.exists()


def test_programs_that_are_missing_are_told(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "argv", [str(machine.home / "x" / "casemate")])
    monkeypatch.setattr(sys, "executable", str(machine.home / "y" / "python"))
    monkeypatch.setenv("PATH", str(machine.home))
    assert machine.run("docker") == 125
    assert "casemate-runtime is not installed" in capsys.readouterr().err


def test_an_interrupted_installation_can_be_undone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.put('{"debug":true}')
    before = snapshot(machine.home)

    def die(path: Path, content: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(changes, "write", die)
        assert machine.run("docker") == 130
    assert os.listdir(machine.links) == ["casemate-runtime"]
    assert machine.run("docker", "--undo") == 0
    after = snapshot(machine.home)
    assert {key: value for key, value in after.items() if not key.startswith("usr/local")} == before
    assert os.listdir(machine.links) == []


# ---- docker


def test_what_docker_reads() -> None:
    made = docker.edit('{"debug": true, "runtimes": {"runsc": {"path": "runsc"}}}', Path("f"), PROGRAMS)
    assert json.loads(made) == {
        "debug": True,
        "runtimes": {"runsc": {"path": "runsc"}, "casemate": {"path": "/usr/local/bin/casemate-runtime"}},
    }


def test_arguments_that_a_person_gave_our_runtime_stay() -> None:
    text = '{"runtimes": {"casemate": {"path": "/old", "runtimeArgs": ["--debug"]}}}'
    made = docker.edit(text, Path("f"), PROGRAMS)
    assert json.loads(made)["runtimes"]["casemate"] == {
        "path": "/usr/local/bin/casemate-runtime", "runtimeArgs": ["--debug"]
    }  # fmt: skip


def test_the_default_runtime_is_not_taken_away(machine: Machine, capsys: Capture) -> None:
    machine.run("docker")
    text = machine.put(json.dumps({**json.loads(machine.file.read_text()), "default-runtime": "casemate"}))
    assert machine.run("docker", "--undo") == 125
    assert "default-runtime (choose another default first)" in capsys.readouterr().err
    assert machine.file.read_text() == text


def test_a_daemon_with_runtimes_on_its_command_line_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cmdline = tmp_path / "cmdline"
    monkeypatch.setattr(glob, "glob", lambda pattern: [str(cmdline), str(tmp_path / "gone")])
    cmdline.write_bytes(b"/usr/sbin/dockerd\0--add-runtime=a=/b\0")
    with pytest.raises(ConfigError, match="started with --add-runtime"):
        docker.check(docker.FILE)
    docker.check(tmp_path / "other.json")
    cmdline.write_bytes(b"dockerd\0--config-file\0/x.json\0--add-runtime\0a=b\0")
    docker.check(docker.FILE)
    with pytest.raises(ConfigError):
        docker.check(Path("/x.json"))
    cmdline.write_bytes(b"/usr/sbin/dockerd\0-H\0fd://\0")
    docker.check(docker.FILE)


# ---- podman


def test_what_podman_reads() -> None:
    made = podman.edit(None, Path("f"), PROGRAMS)
    assert tomllib.loads(made) == {"engine": {"runtimes": {"casemate": ["/usr/local/bin/casemate-runtime"]}}}
    assert podman.edit(made, Path("f"), PROGRAMS) == made


def test_a_drop_in_that_was_added_to_is_not_removed(machine: Machine, capsys: Capture) -> None:
    machine.run("podman")
    text = machine.put(machine.file.read_text() + "other = ['/x']\n")
    assert machine.run("podman", "--undo") == 125
    assert "holds more than casemate wrote" in capsys.readouterr().err
    assert machine.file.read_text() == text


def test_a_drop_in_that_was_added_to_keeps_what_was_added(machine: Machine, capsys: Capture) -> None:
    machine.run("podman")
    made = machine.file.read_text()
    text = machine.put(made + "\n[containers]\nlog_driver = 'k8s-file'  # ours\n")
    assert machine.run("podman") == 0
    assert machine.file.read_text() == text
    machine.links = machine.home / "elsewhere"
    assert machine.run("podman") == 125
    assert "holds more than casemate wrote" in capsys.readouterr().err
    assert machine.file.read_text() == text
    text = machine.put(made + "[containers\n")
    assert machine.run("podman") == 125
    assert machine.file.read_text() == text
    machine.put(made)
    assert machine.run("podman") == 0
    assert str(machine.links) in machine.file.read_text()
    for odd in ("engine = 1\n", "[engine]\nruntimes = 'x'\n"):  # sound TOML, and none that Podman would read
        machine.put(made.splitlines(True)[0] + odd)
        assert machine.run("podman", "--undo") == 125


# ---- the throttler's unit


@pytest.fixture
def throttled(machine: Machine) -> Machine:
    """A machine that has the program of the unit."""
    (machine.bin / "casemate").write_text("#!/bin/sh\n")
    (machine.bin / "casemate").chmod(0o755)
    return machine


def test_the_unit_is_made_shown_and_taken_back(throttled: Machine, capsys: Capture) -> None:
    before = snapshot(throttled.home)
    assert throttled.run("ksm", "--dry-run") == 0
    assert f"+ExecStart={throttled.links}/casemate ksm\n" in capsys.readouterr().out
    assert snapshot(throttled.home) == before
    assert throttled.run("ksm") == 0
    text = throttled.file.read_text()
    assert f"\nExecStart={throttled.links}/casemate ksm\n" in text
    assert f"\nExecStopPost={throttled.links}/casemate ksm --restore\n" in text
    assert os.readlink(throttled.links / "casemate") == str(throttled.bin / "casemate")
    assert "systemctl enable --now" in capsys.readouterr().out
    assert throttled.run("ksm") == 0 and "is there already" in capsys.readouterr().out
    assert throttled.run("ksm", "--undo") == 0
    after = snapshot(throttled.home)
    for made in ("usr/local/bin", "usr/local"):
        after.pop(made, None)
    assert after == before


def test_the_pools_unit_ends_nothing_but_the_pool(throttled: Machine, capsys: Capture) -> None:
    assert throttled.run("pool") == 0
    text = throttled.file.read_text()
    assert f"\nExecStart={throttled.links}/casemate pool\n" in text and "\nKillMode=process\n" in text
    assert "systemctl enable --now casemate-pool.service" in capsys.readouterr().out
    assert throttled.run("ksm") == 125, "another unit of ours is not this one"
    assert throttled.run("pool", "--undo") == 0 and not throttled.file.exists()


def test_a_unit_that_was_changed_or_is_anothers_is_left_alone(throttled: Machine, capsys: Capture) -> None:
    throttled.run("ksm")
    ours = throttled.file.read_text()
    text = throttled.put(ours + "CPUQuota=5%\n")
    for words in (("ksm", "--undo"), ("ksm",)):
        assert throttled.run(*words) == 125
        assert "drop-in" in capsys.readouterr().err and throttled.file.read_text() == text
    text = throttled.put("[Service]\nExecStart=/bin/true\n")
    assert throttled.run("ksm") == 125 and "not written by casemate" in capsys.readouterr().err
    assert throttled.file.read_text() == text
    # One that an earlier version wrote, with another program, is replaced.
    throttled.put(ksm.edit(None, Path("f"), {"casemate": Path("/old/casemate")}))
    assert throttled.run("ksm") == 0 and throttled.file.read_text() == ours


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/usr/local/bin/casemate", "/usr/local/bin/casemate"),
        ("/a b/casemate", '"/a b/casemate"'),
        ("/100%/$HOME", '"/100%%/$HOME"'),
    ],
)
def test_a_program_in_a_unit_is_quoted(path: str, word: str) -> None:
    assert unit.quoted(path) == word
    for odd in "\n\"'\\":
        with pytest.raises(ConfigError, match="unit"):
            unit.quoted(path + odd)


# ---- containerd


@pytest.mark.parametrize(
    ("text", "table"),
    [
        (DEBIAN, "io.containerd.grpc.v1.cri"), ("", "io.containerd.grpc.v1.cri"),
        ("version = 3\n", "io.containerd.cri.v1.runtime"), ('disabled_plugins = ["cri"]\n', "cri"),
    ],
)  # fmt: skip
def test_what_containerd_reads(text: str, table: str) -> None:
    made = tomllib.loads(containerd.edit(text, Path("f"), PROGRAMS))
    runtimes = made["plugins"][table]["containerd"]["runtimes"]
    # containerd's own default is gone as soon as a file names any runtime.
    assert runtimes == {
        "runc": {"runtime_type": "io.containerd.runc.v2"}, "casemate": {"runtime_type": "io.containerd.casemate.v2"}
    }  # fmt: skip
    if text == DEBIAN:
        assert made["plugins"][table]["cni"] == {"bin_dir": "/usr/lib/cni", "conf_dir": "/etc/cni/net.d"}


def test_runtimes_that_are_there_are_left_as_they_are() -> None:
    text = f"version = 2\n[{V2}.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\n"
    made = tomllib.loads(containerd.edit(text, Path("f"), PROGRAMS))
    assert set(made["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]) == {"kata", "casemate"}


def test_what_was_added_to_our_runtimes_is_not_left_without_them() -> None:
    made = containerd.edit("", Path("f"), PROGRAMS) + f"[{V2}.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"
    with pytest.raises(ConfigError, match="more about the runtime runc than casemate wrote"):
        containerd.erase(made, Path("f"))


def test_a_runtime_that_is_configured_by_hand_is_enough() -> None:
    text = f'version = 2\n[{V2}.containerd.runtimes.casemate]\nruntime_type = "io.containerd.casemate.v2"\nx = 1\n'
    assert containerd.edit(text, Path("f"), PROGRAMS) == text
    assert containerd.erase(text, Path("f")) == text


def test_the_file_whose_table_counts_is_the_one_that_is_changed(machine: Machine) -> None:
    """containerd 1.x replaces a plugin's whole table by the one of an imported file."""
    machine.put('version = 2\nimports = ["conf.d/*.toml", "/nowhere/*.toml", "config"]\n' + f"[{V2}]\nx = 1\n")
    drop_ins = machine.file.parent / "conf.d"
    drop_ins.mkdir()
    (drop_ins / "a.toml").write_text(f"[{V2}.registry]\nconfig_path = '/x'\n")
    (drop_ins / "b.toml").write_text("[metrics]\naddress = ''\n")
    before = snapshot(machine.home)
    machine.run("containerd")
    assert tomllib.loads((drop_ins / "a.toml").read_text())["plugins"]["io.containerd.grpc.v1.cri"] == {
        "registry": {"config_path": "/x"},
        "containerd": {
            "runtimes": {
                "runc": {"runtime_type": "io.containerd.runc.v2"},
                "casemate": {"runtime_type": "io.containerd.casemate.v2"},
            }
        },
    }
    assert main(["install", "containerd", "--undo"]) == 0
    after = snapshot(machine.home)
    assert {key: value for key, value in after.items() if not key.startswith("usr/local")} == before


def test_a_damaged_import_is_told(machine: Machine, capsys: Capture) -> None:
    machine.put('version = 2\nimports = ["x.toml"]\n')
    (machine.file.parent / "x.toml").write_text("[")
    assert machine.run("containerd") == 125
    assert "x.toml is damaged" in capsys.readouterr().err


def test_marks_that_do_not_match_are_told() -> None:
    for text in (containerd.BEGIN, containerd.END + containerd.BEGIN, (containerd.BEGIN + containerd.END) * 2):
        with pytest.raises(ConfigError, match="marks do not match"):
            containerd.erase(text, Path("f"))


def test_the_default_runtime_of_containerd_is_not_taken_away() -> None:
    made = containerd.edit(f'version = 2\n[{V2}.containerd]\ndefault_runtime_name = "casemate"\n', Path("f"), PROGRAMS)
    with pytest.raises(ConfigError, match="default_runtime_name"):
        containerd.erase(made, Path("f"))


# ---- JSON as text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text() | st.sampled_from(["runtimes", "a"]), VALUES, max_size=4)
STYLES = st.sampled_from([
    {}, {"separators": (",", ":")}, {"indent": 2}, {"indent": "\t"}, {"indent": 0}, {"ensure_ascii": False},
])  # fmt: skip


@given(OBJECTS, st.none() | st.dictionaries(st.sampled_from(["x", "y", "casemate"]), VALUES), STYLES, VALUES)
def test_any_object_takes_an_entry_and_gives_it_back(
    value: dict[str, Any], table: dict[str, Any] | None, style: dict[str, Any], entry: Any
) -> None:
    value.pop("runtimes", None)
    if table is not None:
        value["runtimes"] = table
    text = json.dumps(value, **style)
    made = jsontext.put(text, "runtimes", "casemate", {"path": entry})
    assert json.loads(made) == {**value, "runtimes": {**(table or {}), "casemate": {"path": entry}}}
    back = jsontext.take(made, "runtimes", "casemate")
    expected = {name: item for name, item in (table or {}).items() if name != "casemate"}
    assert json.loads(back) == {**{k: v for k, v in value.items() if k != "runtimes"},
                                **({"runtimes": expected} if expected else {})}  # fmt: skip
    if table and "casemate" not in table:
        assert back == text, "what is put in and taken out again leaves no trace"

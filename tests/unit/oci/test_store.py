"""The image store: names, sharing, removal, and what concurrency, full disks and sudden death leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from casemate.config import Config
from casemate.errors import BadImage, HostError, ImageError, ImageInUse, ImageNotFound, StateError, UsageError
from casemate.oci import busybox
from casemate.oci.store import Image, ImageStore
from tests.unit.oci.builders import Layout, directory, member, tar

BASE = tar(directory("etc"), member("etc/base", b"base"), member("gone", b"x"))
TOP = tar(member("top", b"top"), member(".wh.gone"))
OTHER = tar(member("other", b"other"))
EMPTY = tar()


class Users:
    """Stands for the containers: who uses which image."""

    def __init__(self) -> None:
        self.of: dict[str, list[str]] = {}

    def __call__(self, image: str) -> Sequence[str]:
        return self.of.get(image, [])


@pytest.fixture
def users() -> Users:
    return Users()


@pytest.fixture
def store(config: Config, users: Users, as_root: None) -> ImageStore:
    return ImageStore(config, in_use=users)


def pull(store: ImageStore, tmp_path: Path, name: str, *layers: bytes, **changes: Any) -> Image:
    path = tmp_path / "layouts" / os.urandom(4).hex()
    layout = Layout(path)
    layout.add(layout.manifest(*layers, **changes), f"docker.io/library/{name}")
    return store.pull(f"oci:{path}")


def left(store: ImageStore) -> list[str]:
    """All files and directories of the store but its index and locks."""
    top = store.layers_directory.parent
    found = []
    for name in ("layers", "manifests", "configs", "tmp"):
        found += [f"{name}/{each}" for each in os.listdir(top / name) if each != "empty"]
    return sorted(found)


def test_the_built_in_busybox_runs_without_a_network(store: ImageStore) -> None:
    with pytest.raises(ImageNotFound, match="casemate pull busybox"):
        store.resolve("busybox")
    lines: list[str] = []
    image = store.pull("busybox", lines.append)
    assert image.display_names == ("busybox:latest",) and image.config.cmd == ("sh",)
    assert store.resolve("busybox") == store.resolve("docker.io/library/busybox:latest") == image
    (layer,) = image.layers
    shown = subprocess.run([layer / "bin/sh", "-c", "echo $((6*7))"], capture_output=True, text=True, check=True).stdout
    assert shown == "42\n" and (layer / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (layer / "bin/busybox").stat().st_ino == (layer / "bin/ls").stat().st_ino
    assert "root:x:0:0" in (layer / "etc/passwd").read_text() and "MB" in lines[0]
    assert store.pull("busybox").id == busybox.load().id == image.id  # the same program, the same digest


def test_a_dynamic_program_is_no_busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic, junk = Path(sys.executable).resolve(), tmp_path / "junk"
    junk.write_bytes(b"\x7fELF" + bytes(10))
    assert not busybox.is_static(dynamic.read_bytes()) and not busybox.is_static(junk.read_bytes())
    monkeypatch.setattr(busybox, "PROGRAMS", (dynamic, junk, tmp_path / "none"))
    with pytest.raises(HostError, match="busybox-static"):
        busybox.load()


def test_names_digests_ids_and_listing(store: ImageStore, tmp_path: Path) -> None:
    first = pull(store, tmp_path, "one:1", BASE)
    second = pull(store, tmp_path, "two", BASE, TOP, User="1")
    assert [image.display_names for image in store.list()] in (
        [("two:latest",), ("one:1",)],
        [("one:1",), ("two:latest",)],
    )
    digits = first.id.partition(":")[2]
    for text in ("one:1", "docker.io/library/one:1", first.id, digits, digits[:12]):
        assert store.resolve(text).id == first.id
    assert second.size == 4 + 1 + 3 and len(second.layers) == 2 and second.layers[0] == first.layers[0]
    with pytest.raises(ImageNotFound):
        store.resolve("one:2")
    with pytest.raises(ImageNotFound):
        store.resolve("oci:/somewhere")
    with pytest.raises(UsageError):
        store.resolve("Bad Name")


def test_short_ids_that_fit_two_images_are_refused(store: ImageStore, tmp_path: Path) -> None:
    seen: dict[str, str] = {}
    for number in range(40):  # 16 first digits: two must meet
        digits = pull(store, tmp_path, f"n{number}", BASE, User=str(number)).id.partition(":")[2]
        if digits[0] in seen:
            with pytest.raises(UsageError, match="more digits"):
                store.resolve(digits[0])
            return
        seen[digits[0]] = digits
    pytest.fail("no two images with the same first digit")


def test_a_name_moves_to_the_newer_image_and_the_older_is_pruned(store: ImageStore, tmp_path: Path) -> None:
    old = pull(store, tmp_path, "app", BASE, TOP)
    new = pull(store, tmp_path, "app", BASE, OTHER)
    assert store.resolve("app").id == new.id and store.resolve(old.id).names == ()
    pruned = store.prune()
    assert pruned.deleted == [old.id] and pruned.freed == 3
    assert new.layers[0].exists() and not old.layers[1].exists()


def test_layers_are_shared_and_go_with_their_last_image(store: ImageStore, tmp_path: Path) -> None:
    first, second = pull(store, tmp_path, "one", BASE, TOP), pull(store, tmp_path, "two", BASE)
    removed = store.remove("one")
    assert removed.untagged == ["docker.io/library/one:latest"] and removed.deleted == [first.id] and removed.freed == 3
    assert second.layers[0].exists() and not first.layers[1].exists()
    store.remove(second.id)
    assert store.list() == () and left(store) == []
    with pytest.raises(ImageNotFound):
        store.remove("two")


def test_an_image_with_two_names_loses_one_at_a_time(store: ImageStore, tmp_path: Path) -> None:
    image = pull(store, tmp_path, "one", BASE)
    assert pull(store, tmp_path, "two", BASE).id == image.id
    with pytest.raises(ImageError, match="more than one name"):
        store.remove(image.id)
    assert store.remove("one").deleted == []
    assert store.resolve("two").id == image.id
    pull(store, tmp_path, "one", BASE)
    assert store.remove(image.id[7:20], force=True).deleted == [image.id]
    assert left(store) == []


def test_an_image_in_use_stays_and_a_forced_removal_waits_for_its_containers(
    store: ImageStore, tmp_path: Path, users: Users
) -> None:
    image = pull(store, tmp_path, "one", BASE)
    users.of[image.id] = ["web"]
    with pytest.raises(ImageInUse, match="container web"):
        store.remove("one")
    removed = store.remove("one", force=True)
    assert removed.kept == [image.id] and removed.freed == 0 and image.layers[0].exists()
    assert store.list() == () and store.prune().deleted == []
    with pytest.raises(ImageNotFound):
        store.resolve("one")
    users.of.clear()
    assert store.collect(wait=True) == 5
    assert left(store) == []


def test_a_store_that_knows_no_containers_leaves_put_off_removals_alone(
    store: ImageStore, config: Config, tmp_path: Path, users: Users
) -> None:
    image = pull(store, tmp_path, "one", BASE)
    users.of[image.id] = ["web"]
    store.remove("one", force=True)
    ImageStore(config).collect(wait=True)
    assert image.layers[0].exists()


def test_an_image_removed_by_force_comes_back_by_a_pull(store: ImageStore, tmp_path: Path, users: Users) -> None:
    image = pull(store, tmp_path, "one", BASE)
    users.of[image.id] = ["web"]
    store.remove("one", force=True)
    assert pull(store, tmp_path, "one", BASE).layers == image.layers
    users.of.clear()
    store.collect(wait=True)
    assert store.resolve("one").id == image.id


def test_a_held_store_deletes_nothing(store: ImageStore, tmp_path: Path, config: Config, users: Users) -> None:
    image = pull(store, tmp_path, "one", BASE)
    done = threading.Event()

    def remove() -> None:
        store.remove("one")
        done.set()

    with store.hold():
        found = store.resolve("one")
        thread = threading.Thread(target=remove)
        thread.start()
        assert not done.wait(0.2)  # it waits for us
        users.of[found.id] = ["new"]
    thread.join(timeout=10)
    assert done.is_set() and image.layers[0].exists()  # and then sees the container


def test_layers_for_overlayfs_are_each_there_once_and_empty_ones_left_out(store: ImageStore, tmp_path: Path) -> None:
    image = pull(store, tmp_path, "one", BASE, TOP, EMPTY, OTHER, BASE, EMPTY)
    base, top, other = (pull(store, tmp_path, f"x{i}", layer).layers[0] for i, layer in enumerate((BASE, TOP, OTHER)))
    assert image.layers == (top, other, base)
    nothing = pull(store, tmp_path, "none")
    assert len(nothing.layers) == 1 and os.listdir(nothing.layers[0]) == []
    wiped = pull(store, tmp_path, "wiped", BASE, tar(member(".wh..wh..opq"), member("only")))
    assert [os.listdir(layer) for layer in wiped.layers] == [["only"]]


def test_a_hundred_layers_fit_one_mount(store: ImageStore, tmp_path: Path) -> None:
    image = pull(store, tmp_path, "many", *(tar(member(f"f{i}", b"x")) for i in range(128)))
    names = ":".join(layer.relative_to(store.layers_directory).as_posix() for layer in reversed(image.layers))
    assert len(image.layers) == 128 and len(names) < 2200
    with pytest.raises(BadImage, match="128"):
        pull(store, tmp_path, "more", *(tar(member(f"f{i}")) for i in range(129)))


def test_overlayfs_shows_what_the_layers_mean(store: ImageStore, tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare of util-linux")
    image = pull(
        store,
        tmp_path,
        "real",
        tar(
            directory("d"),
            member("d/low"),
            directory("e"),
            member("e/low"),
            member("f"),
            member("g", b"low"),
            directory("h"),
        ),
        tar(
            member("d/.wh..wh..opq"),
            member("d/new"),
            member(".wh.f"),
            member("e/new"),
            member(".wh.h"),
            member("h/x/new"),
        ),
        tar(member("g", b"new"), member("f/now-a-directory")),
    )
    lower = ":".join(str(layer) for layer in reversed(image.layers))
    (tmp_path / "m").mkdir()
    script = f"mount -t overlay overlay -o lowerdir={lower} {tmp_path}/m && cd {tmp_path}/m"
    script += " && find . -type f | sort && cat g"
    shown = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == "./d/new\n./e/low\n./e/new\n./f/now-a-directory\n./g\n./h/x/new\nnew"


def test_wrong_platforms_and_counts_are_refused_and_leave_nothing(store: ImageStore, tmp_path: Path) -> None:
    from tests.unit.oci.builders import config as image_config

    for change, word in (({"architecture": "s390x"}, "s390x"), ({"os": "windows"}, "windows")):
        with pytest.raises(BadImage, match=word):
            pull(store, tmp_path, "x", BASE, image={**image_config(BASE), **change})
    with pytest.raises(BadImage, match="layers"):
        pull(store, tmp_path, "x", BASE, image=image_config(BASE, TOP))
    with pytest.raises(BadImage, match="digest"):  # the first layer is good; it does not stay either
        pull(store, tmp_path, "x", BASE, TOP, image=image_config(BASE, OTHER))
    assert store.list() == () and left(store) == []


def test_a_damaged_index_says_what_to_do(store: ImageStore, tmp_path: Path) -> None:
    pull(store, tmp_path, "one", BASE)
    index = store.layers_directory.parent / "index.json"
    good = index.read_text()
    for bad in ("{", "[]", '{"version": 9}', '{"version": 1}', good.replace('"directory": "', '"directory": "../')):
        index.write_text(bad)
        with pytest.raises(StateError, match="pull the images again"):
            store.resolve("one")
    index.write_text(good)
    shutil.rmtree(store.layers_directory)
    with pytest.raises(StateError, match="lost a layer"):
        store.resolve("one")


def test_a_lost_layer_is_unpacked_again(store: ImageStore, tmp_path: Path) -> None:
    image = pull(store, tmp_path, "one", BASE)
    shutil.rmtree(image.layers[0])
    assert pull(store, tmp_path, "one", BASE).layers[0].joinpath("etc/base").read_bytes() == b"base"


SCRIPT = """
import sys
from pathlib import Path
from casemate.config import Config
from casemate.errors import CasemateError
from casemate.oci.store import ImageStore
from casemate.oci.limits import Limits
store = ImageStore(Config(root=Path(sys.argv[1])), in_use=lambda image: [], limits=Limits(free_bytes=int(sys.argv[3])))
try:
    print(store.pull(sys.argv[2], lambda line: print(line, flush=True)).id)
except CasemateError as error:
    print(type(error).__name__, error)
"""


def command(root: Path, source: str, free: int = 0) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(root), source, str(free)]


def test_many_pulls_of_one_image_at_once_do_the_work_once(store: ImageStore, config: Config, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    layout.add(layout.manifest(tar(*(member(f"f{i}", b"x" * 1000) for i in range(2000))), BASE), "one")
    start = command(config.root, f"oci:{layout.path}")
    running = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    output = [process.communicate(timeout=60)[0] for process in running]
    assert len({text.splitlines()[-1] for text in output}) == 1 and "sha256:" in output[0].splitlines()[-1]
    assert sum(text.count("unpacked") for text in output) == 2
    assert len([name for name in left(store) if name.startswith("layers/")]) == 2


def test_pulls_and_removes_against_each_other_end_well(store: ImageStore, tmp_path: Path) -> None:
    layouts = []
    for number in range(3):
        layout = Layout(tmp_path / f"l{number}")
        layout.add(layout.manifest(BASE, TOP, tar(member(f"f{number}", b"x"))), "docker.io/library/app")
        layouts.append(layout)
    problems: list[BaseException] = []

    def churn(number: int) -> None:
        for turn in range(12):
            try:
                if (turn + number) % 3:
                    image = store.pull(f"oci:{layouts[number].path}")
                    with store.hold():
                        found = store.resolve(image.id)
                        assert all(layer.is_dir() for layer in found.layers)
                else:
                    store.remove("app", force=True)
            except (ImageNotFound, StateError):
                continue  # someone removed it in between, which is what was asked for
            except BaseException as error:  # noqa: BLE001 - any other is the test's finding
                problems.append(error)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert problems == []
    for image in store.list():
        store.remove(image.id, force=True)
    store.collect(wait=True)
    assert left(store) == []


def test_a_killed_pull_leaves_nothing_after_the_next(store: ImageStore, config: Config, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    layout.add(layout.manifest(BASE, tar(*(member(f"f{i}", b"x" * 100) for i in range(30_000)))), "big")
    process = subprocess.Popen(command(config.root, f"oci:{layout.path}"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "unpacked" in process.stdout.readline()  # the first layer is there, the second under way
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    process.stdout.close()
    assert store.list() == () and left(store) != []
    store.pull("busybox")
    store.remove("busybox")
    assert left(store) == []


@pytest.mark.parametrize(
    ("size", "free", "word"), [("99m,nr_inodes=40", 0, "no space left"), ("99m", 1 << 30, "does not fit")]
)
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path, size: str, free: int, word: str) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare of util-linux")
    words = " ".join(f"'{word}'" for word in command(tmp_path, "busybox", free)[3:])
    shell = f'mount -t tmpfs -o size={size} tmpfs {tmp_path} && {sys.executable} -c "$SCRIPT" {words}'
    shell += f" && cd {tmp_path}/images && find layers configs manifests tmp -mindepth 1 && cat index.json"
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell],
        env={**os.environ, "SCRIPT": SCRIPT},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = result.stdout.splitlines()
    assert lines[0].startswith("HostError") and word in lines[0], result
    assert [line for line in lines[1:] if "/" in line] == ["layers/empty"]


def test_an_image_can_be_removed_when_the_disk_is_full(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare of util-linux")
    script = SCRIPT + (
        "import os, subprocess\n"
        "top = Path(sys.argv[1])\n"
        "print(subprocess.run(['dd', 'if=/dev/zero', f'of={top}/fill', 'bs=4096'], capture_output=True).returncode)\n"
        "print(os.statvfs(top).f_bavail, store.remove('busybox').freed, os.listdir(top / 'images/layers'))\n"
    )
    shell = f'mount -t tmpfs -o size=80m tmpfs {tmp_path} && {sys.executable} -c "$SCRIPT" {tmp_path} busybox 0'
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell], env={**os.environ, "SCRIPT": script}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    full, freed = result.stdout.splitlines()[-2:]
    assert full == "1" and freed.startswith("0 ") and freed.endswith(" ['empty']"), result


def test_without_privileges_it_says_so(config: Config) -> None:
    if os.geteuid() != 0:
        with pytest.raises(HostError, match="root"):
            ImageStore(Config(root=Path("/var/lib/casemate-none"))).pull("busybox")
        return
    config.root.mkdir()
    result = subprocess.run(
        command(Path("/proc/none"), "busybox"),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert result.stdout.startswith("HostError") and "run as root" in result.stdout

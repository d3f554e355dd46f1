"""Volumes and root filesystems: what host and guest see of each other's files, and what they must not see."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.oci import busybox
from tests.unit.oci.builders import Layout, directory, symlink, tar
from tests.vm.support import Casemate, Container, detached

MANY = 10_000
NAMES = [
    "\u00fcml\u00e4ut \u732b".encode(), b"line\nbreak", b"-dash", b"sp ace", b"quo'te\"", b"not\xff\xfeutf8",
    b"n" * 255,
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is on the host: ``data`` is a volume, ``inner`` one inside of it, ``secret`` none."""
    made = tmp_path_factory.mktemp("volumes")
    for name in ("data", "inner", "ro", "cover", "secret"):
        (made / name).mkdir()
    (made / "data" / "sub").mkdir()
    (made / "ro" / "kept").write_text("kept")
    (made / "cover" / "mine").write_text("mine")
    (made / "file").write_text("one file\n")
    (made / "secret" / "key").write_text("the host's")
    return made


@pytest.fixture(scope="module")
def data(base: Path) -> Path:
    return base / "data"


@pytest.fixture(scope="module")
def box(cm: Casemate, debian_image: str, base: Path) -> Iterator[Container]:
    """A Debian container with the volumes."""
    options = ["-v", f"{base}/data:/data", "-v", f"{base}/inner:/data/sub", "-v", f"{base}/ro:/ro:ro"]
    options += ("-v", f"{base}/file:/etc/one", "-v", f"{base}/file:/one-ro:ro", "-v", f"{base}/cover:/usr/share")
    with detached(cm, "volumes", *options, image=debian_image) as made:
        yield made


def python(box: Container, script: str, *arguments: str, timeout: float = 120) -> str:
    done = box.exec("python3", "-c", script, *arguments, timeout=timeout, check=True)
    return done.stdout.decode(errors="surrogateescape").rstrip("\n")


def tree_digest(top: Path) -> str:
    """Everything of a tree but the times of access: names, kinds, owners, modes, times of change, contents."""
    digest = hashlib.sha256()
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        digest.update(f"{path} {info.st_mode} {info.st_uid} {info.st_gid} {info.st_mtime_ns} {info.st_size}\n".encode())
        if stat.S_ISLNK(info.st_mode):
            digest.update(os.readlink(path).encode())
        elif stat.S_ISREG(info.st_mode):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def test_the_guest_sees_at_once_what_the_host_does(box: Container, data: Path) -> None:
    """In one running process, which has looked at everything just before: nothing may be remembered from then."""
    script = """
import os, sys
def look(path):
    try: return open(path).read()
    except FileNotFoundError: return "none"
held = open("/data/appended")
for line in sys.stdin:
    print(look("/data/made"), look("/data/changed"), look("/data/old"), look("/data/new"), held.read() or "-",
          ",".join(sorted(n for n in os.listdir("/data") if n != "sub")), os.stat("/data/changed").st_size,
          oct(os.stat("/data/changed").st_mode & 0o777), flush=True)
"""
    (data / "changed").write_text("v1")
    (data / "old").write_text("name")
    (data / "appended").write_text("start")
    with box.cm.popen("exec", "-i", box.name, "python3", "-c", script) as reader:
        assert reader.stdin is not None and reader.stdout is not None

        def look() -> list[str]:
            assert reader.stdin is not None and reader.stdout is not None
            reader.stdin.write(b"\n")
            reader.stdin.flush()
            return reader.stdout.readline().decode().split()

        first = look()
        assert first[:5] == ["none", "v1", "name", "none", "start"] and first[5] == "appended,changed,old"
        (data / "made").write_text("made")
        (data / "changed").write_text("v2")  # of the same size, and soon after
        (data / "old").rename(data / "new")
        with open(data / "appended", "a") as file:
            file.write("more")
        assert look()[:6] == ["made", "v2", "none", "name", "more", "appended,changed,made,new"]
        (data / "made").unlink()
        (data / "changed").write_text("longer than before".replace(" ", "_"))
        (data / "changed").chmod(0o640)
        third = look()
        assert third[0] == "none" and third[1] == "longer_than_before" and third[-2:] == ["18", "0o640"]
        replacement = data / "replacement"
        replacement.write_text("another")
        replacement.rename(data / "changed")
        assert look()[1] == "another"
        reader.stdin.close()
        assert reader.wait(60) == 0
    for name in ("changed", "new", "appended"):
        (data / name).unlink()


def test_the_host_sees_at_once_what_the_guest_does(box: Container, data: Path) -> None:
    script = """
import os, sys
held = open("/data/held", "w")
steps = [
    lambda: held.write("one") and held.flush(),
    lambda: os.rename("/data/held", "/data/moved"),
    lambda: (held.write(" two"), held.flush()),
    lambda: os.truncate("/data/moved", 3),
    lambda: os.mkdir("/data/dir"),
    lambda: (os.unlink("/data/moved"), os.rmdir("/data/dir")),
]
for step in steps:
    sys.stdin.readline(); step(); print("done", flush=True)
"""
    with box.cm.popen("exec", "-i", box.name, "python3", "-c", script) as writer:

        def step() -> None:
            assert writer.stdin is not None and writer.stdout is not None
            writer.stdin.write(b"\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == b"done\n"

        step()
        assert (data / "held").read_text() == "one"
        step()
        assert (data / "moved").read_text() == "one" and not (data / "held").exists()
        step()
        assert (data / "moved").read_text() == "one two"
        step()
        assert (data / "moved").read_text() == "one"
        step()
        assert (data / "dir").is_dir()
        step()
        assert os.listdir(data) == ["sub"]
        assert writer.wait(60) == 0


def test_a_follower_in_the_guest_sees_what_the_host_appends(box: Container, data: Path) -> None:
    log = data / "log"
    log.write_text("first\n")
    with box.cm.popen("exec", box.name, "tail", "-n", "+1", "-s", "0.1", "-f", "/data/log") as follower:
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"first\n"
            for number in range(3):
                with open(log, "a") as file:
                    file.write(f"line {number}\n")
                assert follower.stdout.readline() == b"line %d\n" % number
            box.sh("pkill tail")
            assert follower.wait(60) == 143
        finally:
            follower.kill()
    log.unlink()


def test_read_only_volumes_and_single_files(box: Container, base: Path) -> None:
    script = """
        for command in 'echo x > /ro/new' 'rm /ro/kept' 'chmod 777 /ro/kept' 'touch /ro/kept' 'echo x >> /one-ro'; do
            sh -c "$command" 2>&1 | grep -c 'Read-only file system'
        done
        cat /etc/one /one-ro; echo written > /etc/one; cat /one-ro
        rm /etc/one 2> /dev/null || echo busy; ls /usr/share; ls /data
    """
    lines = box.sh(script).splitlines()
    assert lines[:5] == ["1"] * 5
    assert lines[5:] == ["one file", "one file", "written", "busy", "mine", "sub"]
    assert (base / "file").read_text() == "written\n"
    assert os.listdir(base / "ro") == ["kept"] and (base / "ro" / "kept").read_text() == "kept"
    # An editor replaces a file as a whole; a directory holds for that, a single file stays the one it was.
    with open(base / "file", "w") as file:
        file.write("by the host\n")
    assert box.sh("cat /etc/one") == "by the host"


def test_nested_volumes(box: Container, base: Path, data: Path) -> None:
    box.sh("echo inner > /data/sub/file; echo outer > /data/file")
    assert (base / "inner" / "file").read_text() == "inner\n"
    assert os.listdir(data / "sub") == [] and (data / "file").read_text() == "outer\n"
    (data / "sub" / "below").write_text("covered")
    assert box.sh("ls /data/sub") == "file"
    (data / "sub" / "below").unlink()
    (data / "file").unlink()


def test_owners_modes_links_and_attributes(box: Container, data: Path) -> None:
    script = """
import os, socket
os.chdir("/data")
open("owned", "w").close(); os.chown("owned", 12345, 54321); os.chmod("owned", 0o4751)
os.symlink("owned", "link"); os.lchown("link", 7, 8); os.link("owned", "hard"); os.mkfifo("pipe", 0o600)
os.mknod("node", 0o20666, os.makedev(1, 3))
os.setxattr("owned", "user.note", b"\\x00\\xff"); os.utime("owned", ns=(1, 1_234_567_890_123_456_789))
s = socket.socket(socket.AF_UNIX); s.bind("sock"); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect("sock")
os.mkdir("sticky"); os.chmod("sticky", 0o3777)
print(os.getxattr("owned", "user.note"), sorted(os.listxattr("owned")), os.stat("owned").st_nlink)
print(os.getxattr("fromhost", "user.h"), os.stat("fromhost").st_uid, oct(os.stat("fromhost").st_mode & 0o7777))
"""
    (data / "fromhost").write_text("")
    os.setxattr(data / "fromhost", "user.h", b"v")
    os.chown(data / "fromhost", 4242, 4343)
    (data / "fromhost").chmod(0o2750)
    out = python(box, script).splitlines()
    assert out == [r"b'\x00\xff' ['user.note'] 2", "b'v' 4242 0o2750"]
    owned = (data / "owned").stat()
    assert (owned.st_uid, owned.st_gid, stat.S_IMODE(owned.st_mode), owned.st_nlink) == (12345, 54321, 0o4751, 2)
    assert owned.st_mtime_ns == 1_234_567_890_123_456_789
    assert (data / "owned").samefile(data / "hard")
    assert os.readlink(data / "link") == "owned" and (data / "link").lstat().st_uid == 7
    assert os.getxattr(data / "owned", "user.note") == b"\x00\xff"
    assert stat.S_IMODE((data / "sticky").stat().st_mode) == 0o3777
    assert stat.S_ISFIFO((data / "pipe").stat().st_mode) and stat.S_ISSOCK((data / "sock").stat().st_mode)
    assert (data / "node").stat().st_rdev == os.makedev(1, 3)
    # Another user of the container is held to modes as on any file system.
    (data / "private").mkdir(mode=0o700)
    (data / "open").mkdir()
    (data / "open").chmod(0o1777)
    look = "ls /data/private; echo x > /data/fromhost; echo mine > /data/open/mine && stat -c %u /data/open/mine"
    done = box.cm("exec", "-u", "1000:1000", box.name, "sh", "-c", look)
    assert done.stderr.count(b"Permission denied") == 2
    assert done.stdout.endswith(b"1000\n") and (data / "open" / "mine").stat().st_uid == 1000
    box.sh("cd /data; rm -r owned link hard pipe node sock sticky fromhost private open")
    assert os.listdir(data) == ["sub"]


def test_odd_names_both_ways(box: Container, data: Path) -> None:
    for name in NAMES:
        (Path(os.fsdecode(os.fsencode(data) + b"/" + name))).write_bytes(name)
    script = """
import os
for name in sorted(os.listdir(b"/data")):
    if name != b"sub":
        assert open(b"/data/" + name, "rb").read() == name
        os.rename(b"/data/" + name, b"/data/" + name[:254] + b"!")
        print(name.hex())
"""
    assert python(box, script).split() == sorted(name.hex() for name in NAMES)
    seen = [name for name in os.listdir(os.fsencode(data)) if name != b"sub"]
    assert sorted(seen) == sorted(name[:254] + b"!" for name in NAMES)
    for name in seen:
        os.unlink(os.fsencode(data) + b"/" + name)


def test_locks_hold_between_processes_of_the_guest(box: Container) -> None:
    """flock(2) and fcntl(2), on a volume and on the root: the second waits until the first lets go."""
    script = """
import fcntl, os, sys
def wait_for(path, how):
    file = open(path, "w")
    lock = fcntl.flock if how == "flock" else fcntl.lockf
    lock(file, fcntl.LOCK_EX)
    ready, told = os.pipe(); got, tell = os.pipe()
    if os.fork() == 0:
        mine = open(path, "w")
        try: lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB); print("both have it", flush=True)
        except BlockingIOError: os.write(told, b"x")
        lock(mine, fcntl.LOCK_EX)
        os.write(tell, b"x"); os._exit(0)
    os.close(told); os.close(tell); os.read(ready, 1)
    lock(file, fcntl.LOCK_UN)
    print(how, os.read(got, 1) == b"x", flush=True); os.wait()
for path in "/data/lock", "/lock":
    for how in "flock", "fcntl": wait_for(path, how)
    os.unlink(path)
"""
    assert python(box, script).splitlines() == ["flock True", "fcntl True"] * 2


def test_mapped_files_are_shared(box: Container, data: Path) -> None:
    """Between two processes of the guest by MAP_SHARED; the host has it after msync."""
    script = """
import mmap, os, sys
for path in "/data/map", "/map":
    with open(path, "wb") as file: file.truncate(3 << 20)
    file = open(path, "r+b"); one = mmap.mmap(file.fileno(), 0)
    ready, told = os.pipe()
    if os.fork() == 0:
        again = open(path, "r+b"); two = mmap.mmap(again.fileno(), 0)
        two[2 << 20:(2 << 20) + 5] = b"child"; os.write(told, b"x"); os._exit(0)
    os.close(told); os.read(ready, 1); os.wait()
    print(one[2 << 20:(2 << 20) + 5], flush=True); one[:6] = b"parent"; one.flush()
"""
    assert python(box, script).split() == ["b'child'"] * 2
    content = (data / "map").read_bytes()
    assert len(content) == 3 << 20 and content.startswith(b"parent") and content[2 << 20 :].startswith(b"child")
    (data / "map").unlink()


def test_many_small_files(box: Container, data: Path) -> None:
    many = data / "many"
    many.mkdir()
    for number in range(MANY):
        (many / f"f{number}").write_bytes(b"%d" % number)
    script = """
import os
names = os.listdir("/data/many"); print(len(names), sum(e.stat().st_size for e in os.scandir("/data/many")))
print(all(open(f"/data/many/f{n}").read() == str(n) for n in range(0, %d, 10)))
for n in range(0, %d, 10): os.unlink(f"/data/many/f{n}"); open(f"/data/many/g{n}", "w").write("x")
"""
    out = python(box, script % (MANY, MANY)).split()
    assert out == [str(MANY), str(sum(len(str(number)) for number in range(MANY))), "True"]
    left = set(os.listdir(many))
    assert len(left) == MANY and "f1" in left and "f10" not in left and "g10" in left
    assert (many / "g10").read_text() == "x"
    shutil.rmtree(many)
    assert box.sh("ls /data") == "sub"


def test_a_huge_sparse_file(box: Container, data: Path) -> None:
    script = """
import os
file = os.open("/data/sparse", os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 1 << 40); os.pwrite(file, b"end", (1 << 40) - 3)
print(os.fstat(file).st_size == 1 << 40, os.fstat(file).st_blocks < 1000, os.pread(file, 10, (1 << 40) - 3))
print(os.pread(file, 4, 1 << 35), os.lseek(file, 0, os.SEEK_DATA) >= (1 << 40) - (1 << 20))
"""
    assert python(box, script).splitlines() == ["True True b'end'", r"b'\x00\x00\x00\x00' True"]
    info = (data / "sparse").stat()
    assert info.st_size == 1 << 40 and info.st_blocks * 512 < 1 << 20
    (data / "sparse").unlink()


def test_links_out_of_a_volume_lead_into_the_guest(box: Container, base: Path, data: Path) -> None:
    """Whoever makes a link, the host or the container: the guest follows it among its own files."""
    box.sh("echo the-guests > /etc/shadow; ln -s /etc/shadow /data/shadow; ln -s ../../../../../../etc/shadow /data/up")
    (data / "secret").symlink_to(base / "secret" / "key")
    (data / "relative").symlink_to("../secret/key")
    assert box.sh("cat /data/shadow /data/up").split() == ["the-guests", "the-guests"]
    assert (data / "shadow").is_symlink() and "the-guests" not in Path("/etc/shadow").read_text()
    for name in ("secret", "relative"):
        done = box.exec("cat", f"/data/{name}")
        assert done.returncode == 1 and b"No such file" in done.stderr and b"the host's" not in done.stdout
    # What the container writes through such a link stays its own too.
    box.sh(f"mkdir -p {base}/secret && echo forged > /data/secret && cat /data/secret")
    assert (base / "secret" / "key").read_text() == "the host's"
    # Nor does a copy made by the host follow it.
    fetched = base / "fetched"
    box.cm("cp", f"{box.name}:/etc/shadow", fetched, check=True)
    assert fetched.read_text() == "the-guests\n"
    for name in ("shadow", "up", "secret", "relative"):
        (data / name).unlink()


def test_a_way_up_by_open_directories_ends_at_the_volume(box: Container, base: Path, data: Path) -> None:
    """The host moves a directory out of the volume while the guest is in it: its ``..`` is not the host's."""
    script = """
import os, sys
os.mkdir("/data/a"); os.mkdir("/data/a/b"); os.chdir("/data/a/b"); print("in", flush=True); sys.stdin.readline()
seen = []
for _ in range(8):
    try: os.chdir(".."); seen += os.listdir(".")
    except OSError: break
print("key" in seen or "secret" in seen, flush=True)
"""
    with box.cm.popen("exec", "-i", box.name, "python3", "-c", script) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"in\n"
        (data / "a" / "b").rename(base / "b")
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"False\n"
        process.wait(60)
    (base / "b").rmdir()
    (data / "a").rmdir()


def test_a_privileged_container_cannot_write_read_only_volumes(cm: Casemate, base: Path) -> None:
    """The host refuses, so that it does not matter what the guest thinks of the mount."""
    script = "mount -o remount,rw,bind /ro; grep -c ' /ro .* rw' /proc/mounts; echo x > /ro/new; rm /ro/kept; echo end"
    options = ("--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "-v", f"{base}/ro:/ro:ro")
    done = cm("run", "--rm", *options, "busybox", "sh", "-c", script)
    assert done.stdout.split() == [b"1", b"end"], "it is writable as far as the guest knows"
    assert done.stderr.count(b"Read-only file system") == 2
    assert os.listdir(base / "ro") == ["kept"]


def test_a_destination_through_links_of_the_image_stays_inside(cm: Casemate, tmp_path: Path) -> None:
    program = busybox.find()
    made = Layout(tmp_path / "links")
    outside = tmp_path / "outside"
    outside.mkdir()
    # The image has directories of those names too: in there is where the links lead.
    inside = [directory(str(path)[1:]) for path in reversed([outside, *outside.parents]) if path != Path("/")]
    made.add(
        made.manifest(
            busybox.make_layer(program.read_bytes(), busybox.applets(program)),
            tar(*inside, symlink("absolute", str(outside)), symlink("up", "../" * 12 + str(outside).lstrip("/")),
                directory("real"), symlink("inside", "/real")),
        ),
        "v1",
    )  # fmt: skip
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "file").write_text("here")
    places = {"absolute": "one", "up": "two", "inside": "three"}
    options = [part for name, last in places.items() for part in ("-v", f"{tmp_path}/volume:/{name}/{last}")]
    script = f"cat {outside}/one/file {outside}/two/file /real/three/file /up/one/file; cp /bin/sh /up/new"
    assert cm.out("run", "--rm", *options, f"oci:{made.path}:v1", "sh", "-c", script) == "here" * 4
    assert os.listdir(outside) == []


def test_roots_are_each_containers_own_and_the_image_stays(cm: Casemate, box: Container) -> None:
    layers = cm.inspect(cm.out("run", "-d", "--name", "root-one", "busybox", "sleep", "86400"))["GraphDriver"]["Data"]
    try:
        lower = [Path(layer) for layer in re.split(":", layers["LowerDir"])]
        before = [tree_digest(layer) for layer in lower]
        change = "set -e; echo one > /mark; rm $(which wget); echo changed > /etc/passwd; chmod 700 /bin"
        cm.out("exec", "root-one", "sh", "-c", change)
        options = ("--read-only", "--tmpfs", "/scratch:size=1m,mode=1770", "--tmpfs", "/etc")
        script = """
            ls /mark 2> /dev/null; which wget > /dev/null && echo wget; (echo two > /mark) 2>&1
            echo x > /scratch/x && cat /scratch/x; stat -c %a /scratch
            dd if=/dev/zero of=/scratch/big bs=1k count=2000 2>&1 | grep -c 'No space'
        """
        lines = cm.out("run", "--rm", *options, "busybox", "sh", "-c", script).splitlines()
        assert lines[0] == "wget" and "Read-only file system" in lines[1], lines
        assert lines[2:] == ["x", "1770", "1"]
        assert cm.out("exec", "root-one", "cat", "/mark", "/etc/passwd").split() == ["one", "changed"]
        assert [tree_digest(layer) for layer in lower] == before
        assert (Path(layers["UpperDir"]) / "mark").read_text() == "one\n"
    finally:
        cm.remove("root-one")

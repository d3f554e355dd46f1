"""Programs as people use them, in an image of Debian packages: bash, python3, git, gcc, a web server, sqlite."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.support import Casemate, Container, Environment, detached
from tests.vm.world import get, world

BIG = 5 << 20


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def box(cm: Casemate, debian_image: str, work: Path) -> Iterator[Container]:
    """A container of the Debian image with a volume and a published port."""
    with detached(cm, "programs", "-v", f"{work}:/project", "-w", "/project", "-p", "8000", image=debian_image) as made:
        yield made


def bash(box: Container, script: str, timeout: float = 120) -> str:
    done = box.exec("bash", "-euo", "pipefail", "-c", script, timeout=timeout)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.decode().rstrip("\n")


def host(*command: str, cwd: Path) -> str:
    # The files may be of the container's user, and git is told that this is meant.
    settings = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    names = {f"GIT_{who}_{what}": "host" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(command, cwd=cwd, env=os.environ | settings | names, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_bash(box: Container, work: Path) -> None:
    (work / "script").write_text(
        "#!/bin/bash\n"
        "declare -A count; while read -r word; do (( ++count[$word] )); done < <(printf '%s\\n' a b a c a)\n"
        "echo \"${count[a]} ${count[b]} ${!#} $(seq 1 100 | paste -sd+ | { read -r sum; echo $((sum)); })\"\n"
        "coproc cat; echo through >&\"${COPROC[1]}\"; read -r line <&\"${COPROC[0]}\"; echo $line\n"
        "sleep 100 & kill $!; wait $! || echo $?; [[ abc =~ ^a(.)c$ ]] && echo ${BASH_REMATCH[1]}\n"
        "trap 'echo bye' EXIT; exit 3\n"
    )
    (work / "script").chmod(0o755)
    done = box.exec("/project/script", "last word")
    assert done.returncode == 3, done.stderr
    assert done.stdout.decode().splitlines() == ["3 1 last word 5050", "through", "143", "b", "bye"]


def test_python_venv_and_unittest(box: Container, work: Path) -> None:
    package = work / "project" / "sums"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def add(a, b):\n    return a + b\n")
    (package / "test_sums.py").write_text(
        "import sys, unittest, subprocess, tempfile, concurrent.futures\nfrom sums import add\n"
        "class Sums(unittest.TestCase):\n"
        "    def test_add(self): self.assertEqual(add(1, 2), 3)\n"
        "    def test_venv(self): self.assertEqual((sys.prefix, sys.base_prefix), ('/opt/venv', '/usr'))\n"
        "    def test_child(self):\n"
        "        out = subprocess.run([sys.executable, '-c', 'print(6*7)'], capture_output=True, text=True).stdout\n"
        "        self.assertEqual(out, '42\\n')\n"
        "    def test_temporary(self):\n"
        "        with tempfile.TemporaryFile() as file:\n"
        "            file.write(b'x'); file.seek(0); self.assertEqual(file.read(), b'x')\n"
        "    def test_threads(self):\n"
        "        with concurrent.futures.ThreadPoolExecutor(4) as pool:\n"
        "            self.assertEqual(sum(pool.map(add, range(100), range(100))), 9900)\n"
    )
    bash(box, "python3 -m venv --without-pip /opt/venv")
    done = box.exec("bash", "-c", "cd /project/project && /opt/venv/bin/python -m unittest -v sums.test_sums")
    assert done.returncode == 0 and b"Ran 5 tests" in done.stderr, done.stderr
    # And a test that fails is seen to.
    (package / "__init__.py").write_text("def add(a, b):\n    return a - b\n\n\n")
    done = box.exec("bash", "-c", "cd /project/project && /opt/venv/bin/python -m unittest sums.test_sums")
    assert done.returncode == 1 and b"failures=2" in done.stderr


def test_git_over_a_volume(box: Container, work: Path) -> None:
    origin = work / "origin"
    host("git", "init", "-q", "-b", "main", str(origin), cwd=work)
    for number in range(40):
        (origin / f"file{number}").write_text(f"{number}\n" * 50)
    host("git", "add", "-A", cwd=origin)
    host("git", "commit", "-q", "-m", "by the host", cwd=origin)
    host("git", "checkout", "-q", "--detach", cwd=origin)
    bash(box, """
        git config --global user.name c; git config --global user.email c@example.com
        git config --global safe.directory '*'
        git clone -q /project/origin /root/clone; cd /root/clone; git checkout -q main
        echo changed >> file1; git mv file2 moved; git rm -q file3; git commit -qam 'by the container'
        git push -q origin main; git fsck --strict
        cd /project/origin; git fsck --strict; git checkout -q main; git status --porcelain
        git init -q -b main /project/made; cd /project/made
        cp -r /root/clone/file* .; git add -A; git commit -qm made; git gc -q
    """)  # fmt: skip
    assert host("git", "log", "--format=%an %s", cwd=origin).splitlines() == ["c by the container", "host by the host"]
    assert host("git", "status", "--porcelain", cwd=origin) == ""
    assert host("git", "fsck", "--strict", cwd=origin) == ""
    assert (origin / "file1").read_text().endswith("changed\n") and (origin / "moved").exists()
    # What the container made, the host can use, and the other way round.
    assert host("git", "fsck", "--strict", cwd=work / "made") == ""
    (work / "made" / "file1").write_text("by the host\n")
    host("git", "commit", "-qam", "again", cwd=work / "made")
    told = bash(box, "cd /project/made; git fsck --strict; git status --porcelain; git log --format=%s")
    assert told == "again\nmade"


def test_gcc_make_and_threads(box: Container, work: Path) -> None:
    (work / "sum.c").write_text("""
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
static atomic_long total; static long plain; static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local long own;
static void *add(void *upto) {
    for (long i = 1; i <= (long)upto; i++) {
        own += i; atomic_fetch_add(&total, i);
        pthread_mutex_lock(&lock); plain += i; pthread_mutex_unlock(&lock);
    }
    return (void *)own;
}
int main(int argc, char **argv) {
    pthread_t threads[8]; long sum = 0; void *result;
    for (int i = 0; i < 8; i++) if (pthread_create(&threads[i], NULL, add, (void *)atol(argv[1]))) return 2;
    for (int i = 0; i < 8; i++) { pthread_join(threads[i], &result); sum += (long)result; }
    printf("%ld %ld %ld\\n", total, plain, sum);
    return argc - 2;
}
""")
    (work / "Makefile").write_text("sum: sum.c\n\tgcc -O2 -Wall -Werror -pthread -o $@ $<\n")
    wanted = str(8 * 2000 * 2001 // 2)
    assert bash(box, "make -s; ./sum 2000").split() == [wanted] * 3
    # On the root filesystem, and with what the file says of itself: not stripped, of this machine.
    assert bash(box, "cp sum.c /tmp; cd /tmp; gcc -g -static -pthread -o sum sum.c; ./sum 2000").split() == [wanted] * 3
    assert (work / "sum").read_bytes()[:4] == b"\x7fELF"
    (work / "bad.c").write_text("int main(void) { return x; }\n")
    bad = box.exec("gcc", "-c", "bad.c")
    assert bad.returncode == 1 and b"undeclared" in bad.stderr and not (work / "bad.o").exists()


def test_tar_and_gzip_of_a_tree(box: Container, work: Path) -> None:
    bash(box, """
        mkdir -p /tmp/tree; cp -a /etc /usr/lib/python3.*/json /tmp/tree/
        ln -s etc/passwd /tmp/tree/link; ln /tmp/tree/etc/passwd /tmp/tree/hard; mkfifo /tmp/tree/pipe
        chown -R 123:456 /tmp/tree/etc/default; touch -d '2001-02-03 04:05:06' /tmp/tree/etc/hosts.old
        tar -C /tmp/tree -czf /project/tree.tgz --sort=name .
        mkdir /project/tree; tar -C /project/tree -xpzf /project/tree.tgz
        tar -C /tmp/tree -dzf /project/tree.tgz; tar -C /project/tree -dzf /project/tree.tgz
        diff -r --no-dereference --exclude=pipe /tmp/tree /project/tree
    """)  # fmt: skip
    # The host unpacks what the container packed, and finds what the container unpacked.
    done = subprocess.run(["tar", "-C", work / "tree", "-dzf", work / "tree.tgz"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert (work / "tree" / "hard").stat().st_nlink == 2 and (work / "tree" / "etc" / "default").stat().st_uid == 123


def test_sqlite(box: Container, work: Path) -> None:
    """With a write-ahead log, whose index is shared memory, and with memory-mapped reading; two connections at once."""
    script = """
import os, sqlite3, sys
where, mode = sys.argv[1:]
os.makedirs(where, exist_ok=True)
path = f"{where}/{mode}.db"
def connect():
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.execute("pragma mmap_size = 100000000")
    return db
db = connect()
assert db.execute(f"pragma journal_mode = {mode}").fetchone() == (mode,)
db.execute("create table t (who integer, n integer, data blob)")
children = []
for who in range(2):
    pid = os.fork()
    if pid == 0:
        mine = connect()
        for n in range(20):
            mine.execute("begin immediate"); mine.execute("insert into t values (?, ?, ?)", (who, n, bytes(3000)))
            mine.execute("commit")
        mine.close(); os._exit(0)
    children.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
db.execute("begin"); db.execute("delete from t"); db.execute("rollback")
print(db.execute("select count(*), sum(n), sum(length(data)) from t").fetchone(),
      db.execute("pragma integrity_check").fetchone())
db.close()
"""
    (work / "db.py").write_text(script)
    for where in ("/root/db", "/project/db"):
        for mode in ("wal", "delete"):
            out = bash(box, f"python3 /project/db.py {where} {mode}")
            assert out == "(40, 380, 120000) ('ok',)", (where, mode)
    for mode in ("wal", "delete"):
        with contextlib.closing(sqlite3.connect(work / "db" / f"{mode}.db")) as db:
            assert db.execute("select count(*) from t").fetchone() == (40,)


def test_a_web_server_through_a_published_port(cm: Casemate, env: Environment, box: Container, work: Path) -> None:
    body = os.urandom(BIG)
    (work / "www").mkdir()
    (work / "www" / "volume").write_bytes(body)
    bash(box, "mkdir -p /srv/www; cp /project/www/volume /srv/www/root; ln -s /srv/www /project/www/root")
    port = cm.inspect(box.name)["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"]
    with cm.popen("exec", box.name, "python3", "-u", "-m", "http.server", "-d", "/project/www", "8000") as server:
        try:
            assert server.stdout is not None and b"Serving HTTP" in server.stdout.readline()
            with world(env.network_number) as outside:
                for fetch, name in ((get, "127.0.0.1"), (get, outside.host), (outside.get, outside.host)):
                    assert digest(fetch(f"http://{name}:{port}/volume")) == digest(body)
                assert outside.get(f"http://{outside.host}:{port}/root/root") == body
            bash(box, "pkill -f http.server")
            assert server.wait(60) == 143
        finally:
            server.kill()
            server.communicate()

"""Files behind the sentry: C cases that succeed natively first, and programs that must say the same on both."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.sentry.lab import C, both, build, native, same, sentry

CASES = sorted(path.name for path in (C / "files").glob("*.c"))
SCRIPT = Path(__file__).parent / "files.sh"


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    both(f"files/{case}")


@pytest.mark.parametrize("case", [case for case in CASES if case != "mounts.c"])
def test_case_with_the_hosts_files(case: str, tmp_path: Path) -> None:
    """The same where what is written goes through the gofer."""
    done = sentry([str(build(C / "files" / case))], cwd=str(tmp_path), options=["--rw"])
    assert done.returncode == 0, done.stderr.decode()


def test_coreutils_findutils_tar() -> None:
    directory = tempfile.mkdtemp(prefix="casemate-files-")
    try:
        done = same(["bash", str(SCRIPT), f"{directory}/here"])
        assert done.returncode == 0
        assert done.stdout.endswith(b"removed\n")
    finally:
        shutil.rmtree(directory)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git() -> None:
    script = """
        set -e
        export HOME=$(mktemp -d); cd $HOME
        git init -q -b main one; cd one
        git config --global user.email a@example.org; git config --global user.name A
        for i in $(seq 20); do seq $i $((i * 50)) > file$i; git add .; git commit -qm "change $i"; done
        git checkout -q -b side HEAD~5; echo side > side; git add side; git commit -qm side
        git checkout -q main; git merge -q -m merge side
        git clone -q . ../two; cd ../two; git gc -q; git fsck --strict 2>&1; git log --oneline | wc -l; git status -s
        git grep -c 77 | sort | head -3; git mv file1 moved; git stash -q; git stash pop -q; git status -s
    """
    there = native(["bash", "-c", script])
    assert there.returncode == 0, there.stderr
    here = sentry(["bash", "-c", script])
    assert (here.returncode, here.stdout) == (0, there.stdout), here.stderr


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="sqlite3 is not installed")
def test_sqlite_in_two_processes() -> None:
    """Two processes write one database in turns, which locks decide: nothing is lost, and nothing broken."""
    script = """
        db=$(mktemp -d)/db
        sqlite3 $db 'pragma journal_mode=%s; create table t(who, n)' > /dev/null
        write() { for i in $(seq 15); do echo ".timeout 60000
            begin immediate; insert into t values('$1', $i); commit;"; done | sqlite3 $db; }
        write a & write b & wait
        sqlite3 $db 'select who, count(*), sum(n) from t group by who order by who; pragma integrity_check'
    """
    for mode in ("delete", "wal"):
        here = sentry(["bash", "-c", script % mode])
        assert here.stdout == b"a|15|120\nb|15|120\nok\n", here.stderr

"""Shells that join programs by pipes, FIFOs and files: they say behind the sentry what they say natively."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sentry.lab import same

SCRIPTS = {
    "pipes": "seq 1 2000 | sort -rn | tee /dev/null | head -3; yes | head -c 1000000 | md5sum",
    "substitution": "cat <(echo a) <(echo b); diff <(seq 3) <(seq 4); echo to > >(cat); wait $!; echo $(seq 5 | wc -l)",
    "loops": "for i in 1 2 3; do echo $i; done | while read -r line; do echo got $line; done",
    "fifo": "d=$(mktemp -d); mkfifo $d/f; (seq 1 9 > $d/f &); cat $d/f; cat $d/f & echo late > $d/f; wait; rm -r $d",
    "coprocess": "coproc cat; echo there >&${COPROC[1]}; read -r -u ${COPROC[0]} line; echo $line",
    "here": "cat <<A; cat <<<word\ntext\nA",
    "status": "set -o pipefail; false | true; echo $?; yes | head -1; echo $? ${PIPESTATUS[@]}; (exit 3) | (exit 4)",
    "many": "seq 1 300 | xargs -P 4 -n 10 echo | wc -w; seq 1 50 | xargs -P 3 -I{} sh -c 'echo {}' | sort -n | md5sum",
    "archive": "d=$(mktemp -d); cp -r /etc/init.d $d; tar -C $d -cz . | tar -tz | sort | wc -l; rm -r $d",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell(name: str) -> None:
    same(["bash", "-c", SCRIPTS[name]])


def test_programs_go_on_where_others_stopped_in_a_file(tmp_path: Path) -> None:
    # cat copies with copy_file_range(2), by the offset that it shares with who wrote before.
    text = tmp_path / "text"
    text.write_text("second\n")
    target = tmp_path / "out"
    script = f"echo first; cat {text}; head -c 3 {text}; echo third"
    with target.open("wb") as out:
        out.write(b"zeroth\n")
        out.flush()
        command = [sys.executable, "-P", "-m", "casemate", "do", "--", "bash", "-c", script]
        subprocess.run(command, stdout=out, check=True, timeout=240)
    assert target.read_text() == "zeroth\nfirst\nsecond\nsecthird\n"

"""Shells and the tools that scripts call, make and compilers, perl: from Debian's packages, doing real work."""

from __future__ import annotations

import pytest

from tests.vm.support import Casemate

SECONDS = 200
"""A guard against hanging."""


def script(cm: Casemate, image: str, text: str, *shell: str) -> list[str]:
    """Run a script in a container; its lines. It fails with any of its commands."""
    command = list(shell) or ["bash", "-e"]
    return cm.out("run", "--rm", image, *command, "-c", f"cd /tmp\n{text}", timeout=SECONDS).splitlines()


@pytest.mark.parametrize("shell", [["bash"], ["dash"], ["busybox", "sh"]])
def test_a_script_in_each_shell(cm: Casemate, programs: str, shell: list[str]) -> None:
    text = """
    f() { echo "$1 ${2:-none}"; }
    f one; f one two
    cat <<X | tr a-z A-Z
here $(echo document)
X
    i=0; while [ $i -lt 5 ]; do i=$((i + 1)); done; echo $i
    (exit 3) || echo "status $?"
    trap 'echo trapped' USR1; kill -USR1 $$
    (trap 'exit 7' TERM; while :; do sleep 0.05; done) & sleep 0.3; kill $!; wait $! || echo "ended $?"
    for n in 3 1 2; do echo $n; done | sort -n | tr '\\n' ' '; echo
    sleep 5 & kill -9 $!; wait $! || echo "killed $?"
    mkfifo p; (echo through > p) & cat p; wait
    exec 3>file; echo kept >&3; exec 3>&-; cat file
    set -- a b c; shift; echo "$# $*"
    case abc in a*) echo matches;; esac
    """
    assert script(cm, programs, text, *shell) == [
        "one none", "one two", "HERE DOCUMENT", "5", "status 3", "trapped", "ended 7", "1 2 3 ", "killed 137",
        "through", "kept", "2 b c", "matches",
    ]  # fmt: skip


def test_what_only_bash_has(cm: Casemate, programs: str) -> None:
    text = """
    a=(one two three); echo "${#a[@]} ${a[-1]}"
    declare -A m=([x]=1 [y]=2); echo $((m[x] + m[y]))
    diff <(printf 'a\\nb\\n') <(printf 'a\\nc\\n') || echo differ
    coproc CAT { cat; }; echo ping >&${CAT[1]}; read -r line <&${CAT[0]}; echo "$line"
    exec {CAT[1]}>&-; wait $CAT_PID
    mapfile -t lines < <(seq 3); echo "${lines[*]}"
    set -o pipefail; false | true || echo pipefail
    [[ abc =~ ^a(.)c$ ]] && echo "${BASH_REMATCH[1]}"
    ulimit -n 64; ulimit -n
    printf '%(%Y)T\\n' 0
    """
    assert script(cm, programs, text, "bash") == [
        "3 three", "3", "2c2", "< b", "---", "> c", "differ", "ping", "1 2 3", "pipefail", "b", "64", "1970",
    ]  # fmt: skip


def test_tools(cm: Casemate, programs: str) -> None:
    text = """
    mkdir -p tree/{a,b}/{1,2}; for d in tree/*/*; do seq 100 > $d/file; ln -s file $d/link; done
    find tree -type f | wc -l; find tree -type l -name 'l*' -printf x; echo
    find tree -name file -exec sha256sum {} + | awk '{print $1}' | sort -u | wc -l
    cp -a tree copy; diff -r tree copy; du -s --apparent-size tree > /dev/null; rm -r copy
    for z in z j J; do tar c${z}f t.tar tree; mkdir out; tar xf t.tar -C out; diff -r tree out/tree; rm -r out; done
    seq 100000 | sort -R | sort -n | tail -1
    seq 100000 | gzip | zcat | md5sum
    seq 1000 | xargs -n 10 -P 4 echo | wc -l
    seq 20 | split -l 5 - part. ; ls part.* | wc -l
    timeout 0.2 sleep 10 || echo "timeout $?"
    head -c 1000000 /dev/zero | tr '\\0' x | wc -c
    dd if=/dev/zero of=sparse bs=1 count=1 seek=10M status=none; stat -c '%s' sparse; [ $(stat -c %b sparse) -lt 100 ]
    echo 'scale=20; 4*a(1)' | bc -l
    printf 'a 1\\nb 2\\n' | join - <(printf 'a x\\nb y\\n')
    sed -n '$=' tree/a/1/file; grep -rc 5 tree | head -1 | cut -d: -f2
    env -i A=1 env; nice -n 5 nice; id -u; uname -s; nproc > /dev/null; stty -a 2>/dev/null || echo no terminal
    touch -d @1000000000 old; date -u -r old +%F; chmod 640 old; stat -c %a old; install -m 755 old new; stat -c %a new
    ps -e --no-headers | wc -l > /dev/null; pgrep -x bash > /dev/null;
    kill -0 $$; df /tmp > /dev/null; mktemp -d > /dev/null
    """
    assert script(cm, programs, text) == [
        "4", "xxxx", "1", "100000", "dea9193b768319cbb4ff1a137ac03113  -", "100", "4", "timeout 124", "1000000",
        "10485761", "3.14159265358979323844", "a 1 x", "b 2 y", "100", "19", "A=1", "5", "0", "Linux",
        "no terminal", "2001-09-09", "640", "755",
    ]  # fmt: skip


def test_make_builds_many_files_at_once(cm: Casemate, programs: str) -> None:
    text = r"""
    for i in $(seq 20); do echo "int f$i(int x) { return x + $i; }" > f$i.c; done
    { for i in $(seq 20); do echo "int f$i(int);"; done
      echo '#include <stdio.h>'; echo 'int main(void) { int s = 0;'
      for i in $(seq 20); do echo "s += f$i($i);"; done; echo 'printf("%d\n", s); return 0; }'; } > main.c
    printf 'OBJECTS = $(patsubst %%.c,%%.o,$(wildcard *.c))\nprogram: $(OBJECTS)\n\tgcc -o $@ $^\n' > Makefile
    printf '%%.o: %%.c\n\tgcc -c -O1 -o $@ $<\n' >> Makefile
    make -j4 > log; ./program; wc -l < log
    make | tail -1; touch f7.c; make -j4 | wc -l; ./program
    gcc -O1 -g -pthread -static -o static main.c f*.c; ./static
    ar rc lib.a f*.o; gcc -shared -fPIC -o libf.so f1.c; nm lib.a | grep -c ' T '
    """
    assert script(cm, programs, text) == ["420", "22", "make: 'program' is up to date.", "2", "420", "420", "20"]


def test_perl(cm: Casemate, programs: str) -> None:
    text = r"""
    cat > t.pl <<'X'
use strict; use warnings; use POSIX qw(:sys_wait_h); use IO::Socket::INET; use File::Temp; use Time::HiRes qw(sleep);
my $pid = fork // die; if (!$pid) { exit 3 } waitpid $pid, 0; print $? >> 8, "\n";
print `echo sub`; open my $p, '-|', 'seq 3' or die; my @l = <$p>; close $p; print scalar(@l), "\n";
local $SIG{ALRM} = sub { die "alarm\n" }; eval { alarm 1; sleep 10; }; print $@;
my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die $!;
if (!fork) { my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die;
  print $c "hello\n"; exit }
my $c = $s->accept; print scalar <$c>; wait;
my $t = File::Temp->new; print $t "x" x 100; $t->flush; print -s $t->filename, "\n";
my %h; $h{$_ % 7}++ for 1 .. 100000; print join(',', map { $h{$_} } sort keys %h), "\n";
X
    perl t.pl
    """
    assert script(cm, programs, text) == [
        "3", "sub", "3", "alarm", "hello", "100", "14285,14286,14286,14286,14286,14286,14285",
    ]  # fmt: skip


def test_pip_installs_a_wheel(cm: Casemate, programs: str) -> None:
    text = r"""
    python3 -m venv venv; mkdir wheels
    python3 - <<'X'
import zipfile
with zipfile.ZipFile("wheels/demo-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("demo/__init__.py", "def f():\n    return 42\n")
    wheel.writestr("demo-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1\n")
    wheel.writestr("demo-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("demo-1.dist-info/RECORD", "")
X
    venv/bin/pip install --no-index --find-links wheels demo | tail -1
    venv/bin/python -c 'import demo; print(demo.f())'
    """
    assert script(cm, programs, text) == ["Successfully installed demo-1", "42"]


def test_rights_and_limits_of_tools(cm: Casemate, programs: str) -> None:
    text = r"""
    setpriv --reuid 1000 --regid 1000 --clear-groups id -u
    setpriv --reuid 1000 --regid 1000 --clear-groups --bounding-set=-all --no-new-privs grep -E 'CapBnd|NoNew' \
        /proc/self/status
    runuser -u nobody -- id -un; su nobody -s /bin/sh -c 'id -gn; kill -0 1 2>&1 | grep -o permitted'
    prlimit --nofile=77:88 bash -c 'ulimit -Sn; ulimit -Hn'
    prlimit --pid $$ --core=0; ulimit -c
    renice -n 3 $$ > /dev/null; nice; ionice -c 3 ionice; chrt -b 0 chrt -p 0 | head -1 | grep -o SCHED_BATCH
    taskset -c 0 nproc
    timeout -s KILL 0.1 sleep 5 || echo $?; timeout --preserve-status -s INT 0.1 sleep 5 || echo $?
    flock lockfile echo locked; unshare -U true 2>/dev/null || echo refused
    setsid -w sh -c '[ "$(ps -o sid= -p $$ | tr -d " ")" = $$ ] && echo session'
    for tool in lscpu free uptime vmstat 'top -bn1' hostname 'findmnt /' df ps; do
        $tool > /dev/null || echo $tool
    done
    """
    assert script(cm, programs, text) == [
        "1000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "nobody", "nogroup", "permitted",
        "77", "88", "0", "3", "idle", "SCHED_BATCH", "1", "137", "130", "locked", "refused", "session",
    ]  # fmt: skip

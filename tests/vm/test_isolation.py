"""What a container cannot do to the machine that it is alone in, and above all not to the agent."""

from __future__ import annotations

import errno
import signal
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm.support import Container


def program(number: int, *arguments: int) -> bytes:
    """A static x86-64 program that makes one system call and ends with its errno; 0 when it succeeded."""
    code = b""
    for register, value in zip((b"\x48\xbf", b"\x48\xbe", b"\x48\xba"), arguments, strict=False):  # rdi, rsi, rdx
        code += register + struct.pack("<Q", value)
    code += b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"  # mov eax, number; syscall
    code += b"\x31\xff\x85\xc0\x79\x04\xf7\xd8\x89\xc7"  # xor edi, edi; test eax, eax; jns +4; neg eax; mov edi, eax
    code += b"\xb8" + struct.pack("<I", 60) + b"\x0f\x05"  # mov eax, exit; syscall
    base, head = 0x400000, 64 + 56
    size = head + len(code)
    return (
        struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
        + code
    )


SOCKET, PERSONALITY, CLONE, UNSHARE, KEYCTL, BPF, IO_URING_SETUP = 41, 135, 56, 272, 250, 321, 425
CALLS = {
    "ip": (SOCKET, (2, 1, 0), 0),
    "vsock": (SOCKET, (40, 1, 0), errno.ENOSYS),
    "vsock-with-more-bits": (SOCKET, ((1 << 32) + 40, 1, 0), errno.ENOSYS),
    "user-namespace": (UNSHARE, (0x10000000,), errno.EPERM),
    "a-child-in-a-user-namespace": (CLONE, (0x10000011, 0, 0), errno.ENOSYS),
    "keys": (KEYCTL, (0, 0xFFFFFFFF, 0), errno.EPERM),
    "bpf": (BPF, (0, 0, 0), errno.EPERM),
    "rings": (IO_URING_SETUP, (1, 0), errno.EPERM),
    "a-call-of-another-abi": (0x40000000 + 39, (), 128 + signal.SIGSYS),
}


@pytest.mark.parametrize("name", CALLS)
def test_system_calls(container: Container, name: str) -> None:
    number, arguments, expected = CALLS[name]
    script = f"cat > /tmp/{name}; chmod 755 /tmp/{name}; /tmp/{name}"
    done = container.exec("sh", "-c", script, input=program(number, *arguments))
    assert done.returncode == expected, done.stderr


def test_no_device_of_the_machine_can_be_opened(container: Container) -> None:
    """Nodes can be made, as elsewhere; the control group refuses to open them."""
    said = container.sh("""
        port=$(cat /sys/class/virtio-ports/vport*/dev | tr : ' ')
        disk=$(cat /sys/block/vda/dev | tr : ' ')
        for node in "c $port" "b $disk" "c 1 1" "c 1 11" "c 4 64" "c 10 183" "c 10 235"; do
            name=/tmp/node-$(echo $node | tr ' ' -)
            mknod $name $node || echo "$node: not made"
            (: < $name) 2> /dev/null && echo "$node: read"
            (: > $name) 2> /dev/null && echo "$node: written"
        done
        head -c 1 /dev/zero > /dev/null && echo done
    """)
    assert said == "done"


def test_the_kernels_settings_cannot_be_changed(container: Container) -> None:
    said = container.sh("""
        for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger \
                    /proc/irq/0/smp_affinity /proc/sys/vm/overcommit_memory /sys/kernel/uevent_helper \
                    /sys/kernel/mm/ksm/run /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory.max \
                    /sys/fs/cgroup/pids.max; do
            (echo 1 > $file) 2> /dev/null && echo $file
        done
        for flags in "-o remount,rw /sys" "-o remount,rw /sys/fs/cgroup" "-o remount,rw /proc/sys" "-t tmpfs x /mnt"; do
            mount $flags 2> /dev/null && echo "mount $flags"
        done
        mkdir /sys/fs/cgroup/x 2> /dev/null && echo group
        head -c 1 /proc/kcore; head -c 1 /proc/keys; head -c 1 /proc/timer_list
        cat /proc/self/cgroup
    """)
    assert said == "0::/"


def test_another_user_has_no_capabilities(container: Container) -> None:
    pattern = "Cap(Prm|Eff|Amb)|Groups"
    done = container.cm("exec", "-u", "1000:1000", container.name, "grep", "-E", pattern, "/proc/self/status")
    values = dict(line.split(":\t") for line in done.stdout.decode().splitlines())
    assert {int(values[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")} == {0}
    assert values["Groups"].strip() == ""


def test_a_container_cannot_take_all_processes(container: Container) -> None:
    limit = int(container.sh("cat /sys/fs/cgroup/pids.max"))
    most = int(container.sh("cat /proc/sys/kernel/threads-max"))
    assert 100 < limit < most


def test_full_files_do_not_stop_the_agent(container: Container) -> None:
    """/etc/hosts and the like lie in the guest's memory, beside what the agent writes to start a process."""
    try:
        done = container.exec("sh", "-c", "cat /dev/zero > /etc/hosts")
        assert done.returncode != 0 and b"No space left" in done.stderr
        assert int(container.sh("stat -c %s /etc/hosts")) < 64 << 20
    finally:
        container.exec("sh", "-c", ": > /etc/hosts")


def test_the_guests_clock_goes_as_the_hosts(container: Container) -> None:
    """A counter whose frequency the guest mistook made clocks that ran thirty times too fast."""
    assert "tsc_early_khz=" in container.sh("cat /proc/cmdline")
    assert container.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "tsc"

    def look() -> tuple[float, float, float]:
        before = time.monotonic()
        uptime = float(container.sh("cat /proc/uptime").split()[0])
        return before, uptime, time.monotonic()

    first = look()
    container.sh("sleep 3")
    last = look()
    passed = last[1] - first[1]
    assert last[0] - first[2] - 0.1 <= passed <= last[2] - first[0] + 0.1


def test_every_process_ends_with_its_own_status(container: Container) -> None:
    """Many at once, some of which leave orphans; the container's first process is none of them."""

    def one(number: int) -> int:
        return container.exec("sh", "-c", f"(sleep 0.1 &) ; (exit 3) ; exit {number}").returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(16))) == list(range(16))
    assert container.cm.inspect(container.name)["State"]["Status"] == "running"


def test_addresses_are_random(container: Container) -> None:
    """Those of the container's first process and of others, whatever the runtime's own are."""
    places = {container.sh("sed -n 's/-.* \\[stack\\]$//p' /proc/self/maps") for _ in range(4)}
    assert len(places) == 4
    assert container.sh("cat /proc/1/personality /proc/self/personality").split() == ["00000000"] * 2

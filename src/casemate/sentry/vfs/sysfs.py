"""/sys, sysfs(5): the processors, memory and interfaces that programs look up there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.sentry.vfs.inode import Inode
from casemate.sentry.vfs.proc.machine import cpu_list, cpu_mask, cpus, memory
from casemate.sentry.vfs.synthetic import Directory, Link, Setting, SyntheticFs, Tree, build
from casemate.sentry.vfs.sysnet import Interfaces

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

SYSFS_MAGIC = 0x62656572


def _cpu(number: int) -> Tree:
    """One processor: a package of cores without siblings. Caches are the processor's own to tell."""
    everyone = cpu_mask()
    alone = cpu_mask((number,))
    return {
        "online": "1",
        "topology": {
            "core_id": number,
            "physical_package_id": 0,
            "die_id": 0,
            "core_cpus": alone,
            "core_cpus_list": number,
            "thread_siblings": alone,
            "thread_siblings_list": number,
            "core_siblings": everyone,
            "core_siblings_list": cpu_list(),
            "package_cpus": everyone,
            "package_cpus_list": cpu_list(),
        },
    }


def _cpus() -> Tree:
    every = cpu_list()
    tree: Tree = {
        "online": every,
        "possible": every,
        "present": every,
        "offline": "",
        "isolated": "",
        "kernel_max": 8191,
        "smt": {"active": 0, "control": "notsupported"},
        "vulnerabilities": {},
    }
    for number in cpus():
        tree[f"cpu{number}"] = _cpu(number)
    return tree


def _node_memory(task: Task) -> bytes:
    total, free, _ = memory(task.kernel)
    return (
        f"Node 0 MemTotal:       {total:8} kB\nNode 0 MemFree:        {free:8} kB\n"
        f"Node 0 MemUsed:        {total - free:8} kB\n"
    ).encode()


def _node() -> Tree:
    return {
        "online": "0",
        "possible": "0",
        "has_cpu": "0",
        "has_memory": "0",
        "has_normal_memory": "0",
        "node0": {
            "cpulist": cpu_list(),
            "cpumap": cpu_mask(),
            "distance": "10",
            "meminfo": _node_memory,
            "numastat": "numa_hit 0\nnuma_miss 0\nnuma_foreign 0\ninterleave_hit 0\nlocal_node 0\nother_node 0",
        },
    }


def _huge_pages() -> Tree:
    return {
        "enabled": Setting(b"always [madvise] never").pair,
        "defrag": Setting(b"always defer defer+madvise [madvise] never").pair,
        "shmem_enabled": "always within_size advise [never] deny force",
        "hpage_pmd_size": 2 << 20,
        "use_zero_page": 1,
        "khugepaged": {"defrag": 1},
    }


class SysFs(SyntheticFs):
    """The file system of /sys.

    Arguments:
        device: st_dev.
        kernel: whose sandbox it is.
    """

    name = "sysfs"
    magic = SYSFS_MAGIC

    def __init__(self, device: int, kernel: Kernel) -> None:
        super().__init__(device, kernel)
        self._root = Directory(self, 0o755)
        build(self, self._root, self._tree())

    def _tree(self) -> Tree:
        return {
            "block": {},
            "bus": {"cpu": {"devices": {f"cpu{number}": self._cpu_link(number) for number in cpus()}}},
            "class": {
                "net": Interfaces(self, links=True),
                "mem": {},
                "tty": {},
                "block": {},
                "dmi": {},
            },
            "dev": {"char": {}, "block": {}},
            "devices": {
                "system": {"cpu": _cpus(), "node": _node()},
                "virtual": {"net": Interfaces(self, links=False), "mem": {}, "tty": {}},
            },
            "firmware": {},
            "fs": {"cgroup": {}},
            "hypervisor": {},
            "kernel": {
                "mm": {
                    "transparent_hugepage": _huge_pages(),
                    "hugepages": {},
                    "ksm": {"run": 0},
                },
                "security": {},
                "debug": {},
                "tracing": {},
                "profiling": 0,
                "uevent_seqnum": 0,
                "fscaps": 1,
            },
            "module": {},
            "power": {},
        }

    def _cpu_link(self, number: int) -> Link:
        return Link(self, b"../../../devices/system/cpu/cpu%d" % number)

    @property
    def root(self) -> Inode:
        return self._root

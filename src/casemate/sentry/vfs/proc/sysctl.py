"""``/proc/sys``, proc_sys(5): what programs look up and set. What has no effect here says so by keeping its value."""

from __future__ import annotations

from errno import EINVAL, EPERM
from typing import TYPE_CHECKING, Any

from casemate.sentry.abi import uuid4
from casemate.sentry.creds import CAP_LAST_CAP, CAP_SYS_ADMIN
from casemate.sentry.errno import SysError
from casemate.sentry.net.icmp import PING_GROUPS, ping_groups
from casemate.sentry.vfs.synthetic import Setting, Tree

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

HOST_NAME_MAX = 64
OSTYPE = b"Linux"
OSRELEASE = b"6.1.0-casemate"
VERSION = b"#1 SMP casemate sentry"
"""As uname(2) shows them."""


def release() -> tuple[bytes, bytes]:
    """Release and version of uname(2)."""
    try:
        from casemate.sentry.syscalls import misc
    except ImportError:
        return OSRELEASE, VERSION
    found = getattr(misc, "RELEASE", OSRELEASE), getattr(misc, "VERSION", VERSION)
    return found[0], found[1]


def _uuid(task: Task) -> bytes:
    return uuid4().encode() + b"\n"


def _hostname(task: Task) -> bytes:
    return task.group.ns.uts.hostname + b"\n"


def _name(task: Task, data: bytes) -> bytes:
    if not task.creds.capable(CAP_SYS_ADMIN):
        raise SysError(EPERM)
    name = data.split(b"\n", 1)[0]
    if len(name) > HOST_NAME_MAX:
        raise SysError(EINVAL)
    return name


def _set_hostname(task: Task, data: bytes) -> None:
    task.group.ns.uts.hostname = _name(task, data)


def _domainname(task: Task) -> bytes:
    return task.group.ns.uts.domainname + b"\n"


def _set_domainname(task: Task, data: bytes) -> None:
    task.group.ns.uts.domainname = _name(task, data)


def _last_pid(task: Task) -> bytes:
    return b"%d\n" % task.group.ns.pid.last


def _pid_max(task: Task) -> bytes:
    return b"%d\n" % task.kernel.pid_max


def _file_nr(task: Task) -> bytes:
    tables = {id(one.files): one.files for one in task.kernel.tasks.values() if one.thread is not None}
    return b"%d\t0\t%d\n" % (sum(len(table) for table in tables.values()), 0x7FFF_FFFF_FFFF_FFFF)


def _random(kernel: Kernel) -> Tree:
    return {
        "boot_id": kernel.boot_id,
        "uuid": _uuid,
        "entropy_avail": 256,
        "poolsize": 256,
        "write_wakeup_threshold": 256,
        "urandom_min_reseed_secs": 60,
    }


def _kernel(kernel: Kernel) -> Tree:
    osrelease, version = release()
    return {
        "hostname": (_hostname, _set_hostname),
        "domainname": (_domainname, _set_domainname),
        "ostype": OSTYPE,
        "osrelease": osrelease,
        "version": version,
        "pid_max": _pid_max,
        "ns_last_pid": _last_pid,
        "threads-max": Setting(31000, 1, 1 << 22).pair,
        "cap_last_cap": CAP_LAST_CAP,
        "ngroups_max": 65536,
        "overflowuid": 65534,
        "overflowgid": 65534,
        "random": _random(kernel),
        "randomize_va_space": Setting(2, 0, 2).pair,
        "core_pattern": Setting(b"core").pair,
        "core_uses_pid": Setting(0, 0, 1).pair,
        "printk": Setting(b"4\t4\t1\t7").pair,
        "tainted": 0,
        "sysrq": Setting(0, 0, 511).pair,
        "panic": Setting(0, 0, 1 << 31).pair,
        "kptr_restrict": Setting(1, 0, 2).pair,
        "dmesg_restrict": Setting(1, 0, 1).pair,
        "perf_event_paranoid": Setting(4, -1, 4).pair,
        "unprivileged_bpf_disabled": 2,
        "yama": {"ptrace_scope": 3},
        "seccomp": {
            "actions_avail": b"kill_process kill_thread trap errno trace log allow",
            "actions_logged": b"kill_process kill_thread trap errno trace log",
        },
        "shmmax": Setting(18446744073692774399, 0, (1 << 64) - 1).pair,
        "shmall": Setting(18446744073692774399, 0, (1 << 64) - 1).pair,
        "shmmni": Setting(4096, 0, 1 << 24).pair,
        "shm_rmid_forced": 0,
        "msgmax": Setting(8192, 0, 1 << 31).pair,
        "msgmnb": Setting(16384, 0, 1 << 31).pair,
        "msgmni": Setting(32000, 0, 1 << 24).pair,
        "sem": Setting(b"32000\t1024000000\t500\t32000").pair,
        "sched_child_runs_first": 0,
        "sched_rt_period_us": 1000000,
        "sched_rt_runtime_us": 950000,
        "sched_autogroup_enabled": 0,
        "numa_balancing": 0,
        "io_uring_disabled": 2,
        "keys": {"maxkeys": 200, "maxbytes": 20000},
    }


def _vm() -> Tree:
    return {
        "overcommit_memory": Setting(1, 0, 2).pair,
        "overcommit_ratio": Setting(50, 0, 1 << 31).pair,
        "overcommit_kbytes": Setting(0, 0, 1 << 62).pair,
        "max_map_count": Setting(65530, 0, 1 << 31).pair,
        "mmap_min_addr": 65536,
        "swappiness": Setting(60, 0, 200).pair,
        "min_free_kbytes": Setting(67584, 0, 1 << 31).pair,
        "dirty_ratio": Setting(20, 0, 100).pair,
        "dirty_background_ratio": Setting(10, 0, 100).pair,
        "dirty_expire_centisecs": Setting(3000, 0, 1 << 31).pair,
        "dirty_writeback_centisecs": Setting(500, 0, 1 << 31).pair,
        "drop_caches": Setting(0, 0, 7).pair,
        "nr_hugepages": 0,
        "nr_overcommit_hugepages": 0,
        "legacy_va_layout": 0,
        "panic_on_oom": 0,
        "oom_kill_allocating_task": 0,
        "vfs_cache_pressure": Setting(100, 0, 1 << 31).pair,
        "zone_reclaim_mode": 0,
        "unprivileged_userfaultfd": 0,
        "memfd_noexec": 0,
    }


def _fs() -> Tree:
    return {
        "file-max": 0x7FFF_FFFF_FFFF_FFFF,
        "file-nr": _file_nr,
        "nr_open": 1 << 20,
        "inode-nr": b"0\t0",
        "inode-state": b"0\t0\t0\t0\t0\t0\t0",
        "dentry-state": b"0\t0\t45\t0\t0\t0",
        "aio-nr": 0,
        "aio-max-nr": Setting(65536, 0, 1 << 31).pair,
        "lease-break-time": 45,
        "leases-enable": 1,
        "mount-max": 100000,
        "overflowuid": 65534,
        "overflowgid": 65534,
        "pipe-max-size": Setting(1 << 20, 4096, 1 << 31).pair,
        "pipe-user-pages-hard": 0,
        "pipe-user-pages-soft": 16384,
        "protected_fifos": 0,
        "protected_hardlinks": 0,
        "protected_regular": 0,
        "protected_symlinks": 0,
        "suid_dumpable": 0,
        "epoll": {"max_user_watches": 1 << 20},
        "inotify": {
            "max_queued_events": Setting(16384, 0, 1 << 31).pair,
            "max_user_instances": Setting(128, 0, 1 << 31).pair,
            "max_user_watches": Setting(65536, 0, 1 << 31).pair,
        },
        "mqueue": {
            "msg_default": 10,
            "msg_max": 10,
            "msgsize_default": 8192,
            "msgsize_max": 8192,
            "queues_max": 256,
        },
    }


def _interface() -> Tree:
    return {"disable_ipv6": Setting(0, 0, 1).pair, "forwarding": 0, "accept_ra": 0, "hop_limit": 64, "mtu": 65536}


def _net(kernel: Kernel) -> Tree:
    ipv4: Tree = {
        "ip_forward": 0,
        "ip_local_port_range": Setting(b"32768\t60999").pair,
        "ip_local_reserved_ports": b"",
        "ip_unprivileged_port_start": 1024,
        "ip_default_ttl": Setting(64, 1, 255).pair,
        "ip_nonlocal_bind": 0,
        "ping_group_range": b"%d\t%d" % ping_groups(kernel),
        "tcp_syncookies": Setting(1, 0, 2).pair,
        "tcp_fin_timeout": Setting(60, 0, 1 << 31).pair,
        "tcp_keepalive_time": Setting(7200, 1, 1 << 31).pair,
        "tcp_keepalive_intvl": Setting(75, 1, 1 << 31).pair,
        "tcp_keepalive_probes": Setting(9, 1, 255).pair,
        "tcp_max_syn_backlog": Setting(512, 0, 1 << 31).pair,
        "tcp_tw_reuse": Setting(2, 0, 2).pair,
        "tcp_fastopen": Setting(0, 0, 1 << 31).pair,
        "tcp_rmem": Setting(b"4096\t131072\t6291456").pair,
        "tcp_wmem": Setting(b"4096\t16384\t4194304").pair,
        "tcp_mem": b"46158\t61544\t92316",
        "tcp_sack": 1,
        "tcp_timestamps": 1,
        "tcp_window_scaling": 1,
        "tcp_congestion_control": b"cubic",
        "tcp_available_congestion_control": b"reno cubic",
        "tcp_allowed_congestion_control": b"reno cubic",
        "conf": {name: {"forwarding": 0, "rp_filter": 0} for name in ("all", "default", "lo")},
    }
    return {
        "core": {
            "somaxconn": Setting(4096, 0, 1 << 31).pair,
            "rmem_default": Setting(212992, 0, 1 << 31).pair,
            "rmem_max": Setting(212992, 0, 1 << 31).pair,
            "wmem_default": Setting(212992, 0, 1 << 31).pair,
            "wmem_max": Setting(212992, 0, 1 << 31).pair,
            "optmem_max": 20480,
            "netdev_max_backlog": Setting(1000, 0, 1 << 31).pair,
            "busy_poll": 0,
        },
        "ipv4": ipv4,
        "ipv6": {"conf": {name: _interface() for name in ("all", "default", "lo")}, "bindv6only": 0},
        "unix": {"max_dgram_qlen": Setting(512, 0, 1 << 31).pair},
    }


def _given(net: Tree, kernel: Kernel) -> Tree:
    """The settings of the network, with those that the specification has made."""
    given: dict[str, str] = kernel.subsystems.get("sysctl", {})
    for path, value in given.items():
        if path == PING_GROUPS:
            continue  # it holds, and is shown as Linux does
        *above, name = path.split("/")[1:]
        place: Any = net
        for part in above:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if isinstance(place, dict) and not isinstance(place.get(name), dict):
            place[name] = Setting(value.strip().encode()).pair
    return net


def tree(kernel: Kernel) -> Tree:
    """All of ``/proc/sys``."""
    return {
        "kernel": _kernel(kernel),
        "vm": _vm(),
        "fs": _fs(),
        "net": _given(_net(kernel), kernel),
        "user": {"max_user_namespaces": 0, "max_mnt_namespaces": 0, "max_pid_namespaces": 0},
        "debug": {},
        "dev": {},
        "abi": {},
    }

"""The messages in which a container's use of resources is told: ``io.containerd.cgroups.v1`` and ``.v2``.

Sources: ``stats/v1/metrics.proto`` and ``v2/stats/metrics.proto`` of github.com/containerd/cgroups.
"""

from __future__ import annotations

from casemate.shim.wire import MESSAGE, STRING, UINT64, Table

UNLIMITED = (1 << 64) - 1


def _numbers(name: str, *fields: str, first: int = 1) -> Table:
    """A message of numbers only."""
    return Table(name, *((number, field, UINT64) for number, field in enumerate(fields, first)))


_V1, _V2 = "io.containerd.cgroups.v1.", "io.containerd.cgroups.v2."

_MEMORY_ENTRY = _numbers(_V1 + "MemoryEntry", "limit", "usage", "max", "failcnt")
_MEMORY_KEYS_V1 = (
    "cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pg_pg_in", "pg_pg_out", "pg_fault",
    "pg_maj_fault", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable",
)
_MEMORY_V1 = Table(
    _V1 + "MemoryStat",
    *((number, name, UINT64) for number, name in enumerate(_MEMORY_KEYS_V1, 1)),
    (16, "hierarchical_memory_limit", UINT64), (17, "hierarchical_swap_limit", UINT64),
    *((number, f"total_{name}", UINT64) for number, name in enumerate(_MEMORY_KEYS_V1, 18)),
    *((33 + at, name, MESSAGE, _MEMORY_ENTRY) for at, name in enumerate(("usage", "swap", "kernel", "kernel_tcp"))),
)
_BLKIO_ENTRY = Table(
    _V1 + "BlkIOEntry",
    (1, "op", STRING), (2, "device", STRING), (3, "major", UINT64), (4, "minor", UINT64), (5, "value", UINT64),
)
METRICS_V1 = Table(
    _V1 + "Metrics",
    (2, "pids", MESSAGE, _numbers(_V1 + "PidsStat", "current", "limit")),
    (3, "cpu", MESSAGE, Table(
        _V1 + "CPUStat",
        (1, "usage", MESSAGE, Table(
            _V1 + "CPUUsage",
            (1, "total", UINT64), (2, "kernel", UINT64), (3, "user", UINT64), (4, "per_cpu", UINT64, None, True),
        )),
        (2, "throttling", MESSAGE, _numbers(_V1 + "Throttle", "periods", "throttled_periods", "throttled_time")),
    )),
    (4, "memory", MESSAGE, _MEMORY_V1),
    (5, "blkio", MESSAGE, Table(
        _V1 + "BlkIOStat",
        (1, "io_service_bytes_recursive", MESSAGE, _BLKIO_ENTRY, True),
        (2, "io_serviced_recursive", MESSAGE, _BLKIO_ENTRY, True),
    )),
    (9, "memory_oom_control", MESSAGE, _numbers(_V1 + "MemoryOomControl", "oom_kill_disable", "under_oom", "oom_kill")),
)
"""Times in nanoseconds, sizes in bytes."""

MEMORY_KEYS_V2 = (
    "anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp",
    "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable",
    "slab_unreclaimable", "pgfault", "pgmajfault", "workingset_refault", "workingset_activate",
    "workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree",
    "pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc",
)
"""The keys of ``memory.stat`` that are told, in the order of their numbers."""
CPU_KEYS_V2 = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
EVENT_KEYS_V2 = ("low", "high", "max", "oom", "oom_kill")
IO_KEYS_V2 = ("rbytes", "wbytes", "rios", "wios")

METRICS_V2 = Table(
    _V2 + "Metrics",
    (1, "pids", MESSAGE, _numbers(_V2 + "PidsStat", "current", "limit")),
    (2, "cpu", MESSAGE, _numbers(_V2 + "CPUStat", *CPU_KEYS_V2)),
    (4, "memory", MESSAGE, _numbers(
        _V2 + "MemoryStat", *MEMORY_KEYS_V2, "usage", "usage_limit", "swap_usage", "swap_limit"
    )),
    (6, "io", MESSAGE, Table(
        _V2 + "IOStat", (1, "usage", MESSAGE, _numbers(_V2 + "IOEntry", "major", "minor", *IO_KEYS_V2), True)
    )),
    (8, "memory_events", MESSAGE, _numbers(_V2 + "MemoryEvents", *EVENT_KEYS_V2)),
)
"""Times in microseconds, sizes in bytes."""

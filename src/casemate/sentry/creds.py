"""Credentials: who a task acts as, credentials(7) and capabilities(7).

A :class:`Credentials` object is shared by tasks and never changed once a task has it: who changes something takes a
:meth:`Credentials.copy`, changes that and puts it into ``task.creds``, as Linux does. So a check that has begun goes
on with what it began with, and clone(2) costs nothing.
"""

from __future__ import annotations

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETGID, CAP_SETUID = range(8)
(
    CAP_SETPCAP,
    CAP_LINUX_IMMUTABLE,
    CAP_NET_BIND_SERVICE,
    CAP_NET_BROADCAST,
    CAP_NET_ADMIN,
    CAP_NET_RAW,
    CAP_IPC_LOCK,
    CAP_IPC_OWNER,
) = range(8, 16)
(
    CAP_SYS_MODULE,
    CAP_SYS_RAWIO,
    CAP_SYS_CHROOT,
    CAP_SYS_PTRACE,
    CAP_SYS_PACCT,
    CAP_SYS_ADMIN,
    CAP_SYS_BOOT,
    CAP_SYS_NICE,
) = range(16, 24)
(
    CAP_SYS_RESOURCE,
    CAP_SYS_TIME,
    CAP_SYS_TTY_CONFIG,
    CAP_MKNOD,
    CAP_LEASE,
    CAP_AUDIT_WRITE,
    CAP_AUDIT_CONTROL,
    CAP_SETFCAP,
) = range(24, 32)
(
    CAP_MAC_OVERRIDE,
    CAP_MAC_ADMIN,
    CAP_SYSLOG,
    CAP_WAKE_ALARM,
    CAP_BLOCK_SUSPEND,
    CAP_AUDIT_READ,
    CAP_PERFMON,
    CAP_BPF,
    CAP_CHECKPOINT_RESTORE,
) = range(32, 41)
CAP_LAST_CAP = CAP_CHECKPOINT_RESTORE
CAPABILITIES: dict[str, int] = {
    name: value for name, value in globals().items() if name.startswith("CAP_") and name != "CAP_LAST_CAP"
}
"""By name, e.g. ``CAP_CHOWN``."""
ALL_CAPS = (1 << CAP_LAST_CAP + 1) - 1
FS_CAPS = sum(
    1 << cap
    for cap in (
        CAP_CHOWN,
        CAP_MKNOD,
        CAP_DAC_OVERRIDE,
        CAP_DAC_READ_SEARCH,
        CAP_FOWNER,
        CAP_FSETID,
        CAP_LINUX_IMMUTABLE,
        CAP_MAC_OVERRIDE,
    )
)
"""What goes and comes with a file system user id of 0."""

SECBIT_NOROOT = 1 << 0
SECBIT_NO_SETUID_FIXUP = 1 << 2
SECBIT_KEEP_CAPS = 1 << 4
SECBIT_NO_CAP_AMBIENT_RAISE = 1 << 6
SECURE_ALL_BITS = 0x55
SECURE_ALL_LOCKS = SECURE_ALL_BITS << 1
NGROUPS_MAX = 65536


class Credentials:
    """Ids, groups and capability sets. Not to be changed while a task has it: see the module.

    Arguments:
        uid, gid: all four user and all four group ids.
        groups: the supplementary groups.
        permitted, bounding: capabilities as bit sets; ``permitted`` is effective as well.
    """

    __slots__ = (
        "ambient",
        "bounding",
        "effective",
        "egid",
        "euid",
        "fsgid",
        "fsuid",
        "gid",
        "groups",
        "inheritable",
        "permitted",
        "securebits",
        "sgid",
        "suid",
        "uid",
    )

    def __init__(
        self,
        uid: int = 0,
        gid: int = 0,
        groups: tuple[int, ...] = (),
        permitted: int | None = None,
        bounding: int = ALL_CAPS,
    ) -> None:
        self.uid = self.euid = self.suid = self.fsuid = uid
        self.gid = self.egid = self.sgid = self.fsgid = gid
        self.groups = groups
        if permitted is None:
            permitted = bounding if uid == 0 else 0
        self.permitted = self.effective = permitted
        self.inheritable = 0
        self.ambient = 0
        self.bounding = bounding
        self.securebits = 0

    def copy(self) -> Credentials:
        """One to change."""
        new = Credentials.__new__(Credentials)
        for name in Credentials.__slots__:
            setattr(new, name, getattr(self, name))
        return new

    def capable(self, cap: int) -> bool:
        """Whether the capability is effective."""
        return bool(self.effective >> cap & 1)

    def in_group(self, gid: int) -> bool:
        """Whether files of this group are one's group's, path_resolution(7)."""
        return gid == self.fsgid or gid in self.groups

    # Changes, to copies only.

    def set_uids(self, uid: int, euid: int, suid: int) -> None:
        """Take these user ids, and what goes with them: the file system id and capabilities(7), "Effect of user ID
        changes on capabilities"."""
        was_root = 0 in (self.uid, self.euid, self.suid)
        was_effective = self.euid == 0
        self.uid, self.euid, self.suid = uid, euid, suid
        self.fsuid = euid
        if self.securebits & SECBIT_NO_SETUID_FIXUP:
            return
        if was_root and 0 not in (uid, euid, suid):
            if not self.securebits & SECBIT_KEEP_CAPS:
                self.permitted = 0
                self.effective = 0
            self.ambient = 0
        if was_effective and euid != 0:
            self.effective = 0
        elif not was_effective and euid == 0:
            self.effective = self.permitted

    def set_fsuid(self, fsuid: int) -> None:
        """Take this file system user id, setfsuid(2)."""
        if not self.securebits & SECBIT_NO_SETUID_FIXUP:
            if self.fsuid == 0 and fsuid != 0:
                self.effective &= ~FS_CAPS
            elif self.fsuid != 0 and fsuid == 0:
                self.effective |= self.permitted & FS_CAPS
        self.fsuid = fsuid

    def set_gids(self, gid: int, egid: int, sgid: int) -> None:
        """Take these group ids; the file system id follows."""
        self.gid, self.egid, self.sgid = gid, egid, sgid
        self.fsgid = egid

    def drop_bounding(self, cap: int) -> None:
        """``PR_CAPBSET_DROP``: no exec can bring it back."""
        self.bounding &= ~(1 << cap)

    def limit_ambient(self) -> None:
        """Keep the ambient set within what is permitted and inheritable."""
        self.ambient &= self.permitted & self.inheritable

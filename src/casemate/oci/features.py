"""What ``casemate-runtime features`` says: features.md and features-linux.md of the OCI runtime specification.

It tells what a specification may ask, of whatever host; what is refused all the same is not in it.
"""

from __future__ import annotations

from typing import Any

from casemate import __version__
from casemate.oci import schema
from casemate.oci.spec import CAPABILITIES

VERSION_MIN = "1.0.0"
VERSION_MAX = "1.2.0"
"""Where everything is defined that is said here; later versions 1.x are taken too."""

ARCHITECTURES = schema.words(
    "AARCH64 ARM MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE RISCV64 S390 S390X X32 X86 X86_64",
    "SCMP_ARCH_",
)


def features() -> dict[str, Any]:
    """The features document."""
    flags = list(schema.SECCOMP_FLAGS)
    options = {*schema.MOUNT_FLAGS, *schema.PROPAGATION, "bind", "rbind", "defaults", "tmpcopyup"}
    return {
        "ociVersionMin": VERSION_MIN,
        "ociVersionMax": VERSION_MAX,
        "hooks": list(schema.HOOKS),
        "mountOptions": sorted(options),
        "linux": {
            "namespaces": [kind for kind in sorted(schema.NAMESPACES) if kind != "time"],
            "capabilities": list(CAPABILITIES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted(action for action in schema.SECCOMP_ACTIONS if action != "SCMP_ACT_NOTIFY"),
                "operators": sorted(schema.SECCOMP_OPERATORS),
                "archs": list(ARCHITECTURES),
                "knownFlags": flags,
                "supportedFlags": flags,
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {"io.casemate.version": __version__},
    }

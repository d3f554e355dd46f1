"""What a guest bundle is made of: one table per architecture, and the lists that trim it."""

from __future__ import annotations

from dataclasses import dataclass

from casemate.errors import HostError


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between architectures. Tuples of kernel arguments are for one accelerator each."""

    name: str
    """The kernel's word, as in ``uname -m``."""
    debian: str
    """Debian's word."""
    kernel: str
    """The metapackage that depends on the current kernel."""
    cmdline: dict[str, tuple[str, ...]]
    """Kernel arguments by accelerator, without those of the devices."""
    minimal_cmdline: dict[str, tuple[str, ...]]
    """The same for the minimal kernel, which needs no initial root."""


_X86_COMMON = (
    "console=ttyS0",
    "quiet",
    # An immediate restart, which the hypervisor turns into an exit: a guest that fails must not linger.
    "panic=-1",
    # Debian tests its cryptography at each start; a good idea, 0.2 s, and nothing that a sandbox of seconds needs.
    "cryptomgr.notests",
    "8250.nr_uarts=1",
)

# The first virtio disk is the root image, see casemate.vm.machine; the kernel mounts it and starts the agent by itself.
_X86_MINIMAL = (
    "console=ttyS0",
    "quiet",
    "panic=-1",
    "root=/dev/vda",
    "rootfstype=erofs",
    "ro",
    "init=/usr/lib/casemate/agent-init",
)

ARCHITECTURES = {
    "x86_64": Architecture(
        name="x86_64",
        debian="amd64",
        kernel="linux-image-cloud-amd64",
        cmdline={
            "tcg": (
                *_X86_COMMON,
                # Emulated code does not speculate: mitigations would only cost. Address randomisation needs the
                # kernel's own decompressor, which an ELF kernel does not have.
                "nokaslr", "mitigations=off",
                # A self-test of the timer interrupt, which real chipsets get wrong.
                "no_timer_check",
                # Start-up work of 10 to 80 ms each for what no sandbox has: kprobes in tracefs, certificates for
                # modules (ours come unsigned from a verified package), a self-test, a keyboard, a battery clock.
                "initcall_blacklist=init_kprobe_trace,load_system_certificate_list,crypto_kdf108_init,i8042_init,"
                "cmos_init",
            ),
            "kvm": _X86_COMMON,
        },
        minimal_cmdline={
            "tcg": (
                *_X86_MINIMAL, "nokaslr", "mitigations=off", "no_timer_check",
                "initcall_blacklist=crypto_kdf108_init",  # a self-test
            ),
            "kvm": _X86_MINIMAL,
        },
    ),
}

KERNEL_SOURCE = "linux-source-6.1"
"""The package that the minimal kernel is built from."""
KERNEL_FILES = 2000
"""About how many files of it are compiled; only people read this, to know how long it will take."""

BASE_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "erofs", "virtiofs")
"""Loaded at every start, with what they depend on."""

DEVICE_MODULES = {
    1: "virtio_net",
    4: "virtio-rng",
    5: "virtio_balloon",
    19: "vmw_vsock_virtio_transport",
    24: "virtio_mem",
}
"""Loaded when a virtio device of that number (virtio specification, section 5) is there at the start."""

EXTRA_MODULES = (
    "overlay", "tun", "veth", "bridge", "br_netfilter", "dummy", "loop",
    # What iptables, in both of its kinds, and nft need for what containers do: filter, rewrite, count connections.
    "nft_compat", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_ct", "nft_limit", "nft_log",
    "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nf_log_syslog",
    "iptable_filter", "iptable_nat", "iptable_mangle", "iptable_raw",
    "ip6table_filter", "ip6table_nat", "ip6table_mangle", "ip6table_raw",
    "xt_conntrack", "xt_MASQUERADE", "xt_nat", "xt_addrtype", "xt_comment", "xt_multiport", "xt_state", "xt_tcpudp",
    "xt_mark", "xt_connmark", "xt_REDIRECT", "xt_LOG", "xt_limit", "ipt_REJECT", "ip6t_REJECT", "xt_owner",
    "xt_TCPMSS", "xt_CT", "xt_statistic",
)  # fmt: skip
"""Not loaded at the start; in the root image for the agent, and for the kernel when a container asks for what they
bring. Three megabytes on disk, nothing in memory."""

ROOT_SERIAL = "casemate-root"
"""Serial number of the block device with the root image; any other is not touched."""

AGENT_HOME = "/usr/lib/casemate"
BUSYBOX = ("bin/busybox", "usr/bin/busybox")
"""Where the package may have the program."""

# Parts of Python's library that an agent which talks JSON over a file descriptor has no use for.
_DROP = """
    __phello__ _aix_support _compression _markupbase _osx_support _pydecimal aifc antigravity asynchat asyncio
    asyncore audioop bdb binhex bz2 calendar cgi cgitb chunk codeop code colorsys compileall concurrent crypt csv
    ctypes/macholib ctypes/test curses cProfile datetime dbm decimal difflib dis distutils doctest email ensurepip
    filecmp fileinput formatter fractions ftplib getopt getpass gettext graphlib gzip html http idlelib imaplib imghdr
    imp ipaddress lib2to3 lzma mailbox mailcap mimetypes modulefinder msilib multiprocessing netrc nntplib nturl2path
    numbers optparse pathlib pdb pickle pickletools pip pipes pkgutil plistlib poplib pprint profile pstats pyclbr pydoc
    pydoc_data quopri random rlcompleter sched shelve site-packages smtpd smtplib sndhdr sqlite3 sre_compile
    sre_constants sre_parse ssl statistics sunau symtable tabnanny tarfile telnetlib test this timeit tkinter tomllib
    trace tracemalloc turtle turtledemo unittest urllib uu uuid venv wave webbrowser wsgiref xdrlib xml xmlrpc zipapp
    zipfile zoneinfo
"""
PYTHON_DROP = frozenset(_DROP.split())

ENCODINGS_KEEP = ("__init__", "aliases", "ascii", "idna", "latin_1", "utf_8")

EXTENSIONS_KEEP = ("_ctypes", "_json", "_queue", "resource", "termios")
"""Extension modules that Debian does not link into the interpreter and the agent needs."""


def architecture(name: str) -> Architecture:
    """The table of an architecture.

    Raises:
        HostError: no guest can be built for it.
    """
    found = ARCHITECTURES.get(name)
    if found is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise HostError(f"no guest can be built for {name}", f"casemate knows guests for {known}")
    return found

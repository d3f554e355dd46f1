"""The leak check must find what it is for; a check that finds nothing would prove nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from casemate.host import firewall
from tests.vm.support import Environment, clear, environment, leaks


def test_a_clean_environment_has_no_leaks() -> None:
    with environment() as env:
        assert leaks(env, patience=5) == []


def test_two_environments_have_ranges_of_their_own() -> None:
    with environment() as one, environment() as two:
        assert one.network_number != two.network_number
        assert one.base != two.base


def test_everything_that_may_leak_is_found_and_cleared() -> None:
    with environment() as env:
        try:
            pid, expected = _leak(env)
            found = "\n".join(leaks(env, patience=0))
        finally:
            clear(env)
        assert f"process {pid}" in found
        for item in expected:
            assert item in found
        assert leaks(env, patience=5) == []


def _leak(env: Environment) -> tuple[int, list[str]]:
    """One of everything; gives the process's id and what the check has to say of the rest."""
    link = f"cmleak{env.network_number}"
    address = f"10.{env.network_number}.0.2"
    port = f"tcp . 19{env.network_number:03}"
    mounted = env.base / "mounted"
    left = [env.root / "containers" / "f00d", env.run / "abcdef012345", env.run / "ipam" / "a_16" / "10.0.0.2"]
    for path in (mounted, *left):
        path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    subprocess.run(["ip", "link", "add", link, "type", "veth", "peer", "name", link + "p"], check=True)
    subprocess.run(["ip", "address", "add", f"10.{env.network_number}.0.1/32", "dev", link], check=True)
    firewall.prepare(f"10.{env.network_number}.0.0/16", address, ())
    element = ["inet", "casemate", "ports", f"{{ {port} : {address} . 80 }}"]
    subprocess.run(["nft", "add", "element", *element], check=True)
    group = next(line.split()[4] for line in _cgroup_mounts())
    leaked = Path(group) / "casemate" / f"leak-{env.network_number}"
    leaked.mkdir(parents=True)
    # Double fork, so that it is nobody's child here, as a keeper is. Only its open file tells whose it is.
    code = (
        "import os, signal\n"
        "if os.fork(): os._exit(0)\n"
        "os.write(2, b'%d' % os.getpid()); os.close(2)\n"
        "signal.pause()\n"
    )
    with open(env.base / "held", "w") as held:
        done = subprocess.run([sys.executable, "-c", code], stdout=held, stderr=subprocess.PIPE, env={}, check=True)
    return int(done.stderr), [
        f" {mounted} ", f"link {link}", "packet filter inet casemate: ",
        f"control group {leaked}", *map(str, left),
    ]  # fmt: skip


def _cgroup_mounts() -> list[str]:
    """Lines of mountinfo for trees in which a group can be made; cpuset's would need more than a directory."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if " - cgroup2 " in line or (" - cgroup " in line and "cpuset" not in line)]

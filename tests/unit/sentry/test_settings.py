"""``net.*`` settings of a specification: what is refused before anything is made."""

from __future__ import annotations

import os

import pytest

from casemate.errors import BadBundle, Unsupported
from casemate.sentry import settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.ipv4.ip_unprivileged_port_start", "many"), ("net.ipv4.ip_unprivileged_port_start", "-1"),
        ("net/ipv4/ping_group_range", "0"), ("net.ipv4.ping_group_range", "0 all"), ("net.ipv4.ttl\0", "1"),
        ("net..ttl", "1"),
        ("net.ipv4.ping_group_range", "0 2147483648"), ("net.ipv4.ip_unprivileged_port_start", "65536"),
        ("net.ipv4.ttl", "1" * 5000),
    ],
)  # fmt: skip
def test_what_is_no_setting_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadBundle):
        settings.apply(-1, {name: value})


@pytest.mark.parametrize("value", ["1024", "0\n", " 80"])
def test_the_hosts_network_keeps_its_settings(value: str) -> None:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        with pytest.raises(Unsupported):
            settings.apply(fd, {"net.ipv4.ip_unprivileged_port_start": value})
    finally:
        os.close(fd)


def test_settings_of_others_are_none_of_the_networks() -> None:
    settings.apply(-1, {"kernel.shmmax": "1"})

"""What the runtime says of itself has to hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from casemate.errors import CasemateError
from casemate.oci import bundle
from casemate.oci.features import features
from casemate.pod.plan import plan
from tests.unit.oci import specs

KNOWN: dict[str, Any] = features()
LINUX: dict[str, Any] = KNOWN["linux"]


def taken(spec: dict[str, Any]) -> dict[str, Any]:
    bundle.check(spec)
    return plan(spec, "box", lambda kind, identity: None).spec


def plain(**linux: Any) -> dict[str, Any]:
    spec = specs.docker()
    return {**spec, "mounts": [], "linux": {**spec["linux"], **linux}}


def test_it_is_json_and_has_what_is_required() -> None:
    assert json.loads(json.dumps(KNOWN)) == KNOWN
    assert {"ociVersionMin", "ociVersionMax"} <= set(KNOWN)


@pytest.mark.parametrize("version", [KNOWN["ociVersionMin"], KNOWN["ociVersionMax"]])
def test_both_versions_are_taken(version: str) -> None:
    taken({**plain(), "ociVersion": version})


def test_every_hook_is_taken() -> None:
    taken({**plain(), "hooks": {kind: [{"path": "/bin/true"}] for kind in KNOWN["hooks"]}})


@pytest.mark.parametrize("option", KNOWN["mountOptions"])
def test_every_mount_option_is_taken(option: str) -> None:
    mount = {"destination": "/x", "type": "bind", "source": "/usr", "options": ["rbind", option]}
    made = taken({**plain(), "mounts": [mount]})["mounts"][0]["options"]
    if option not in ("bind", "rbind", "defaults", "tmpcopyup"):
        assert {option.replace("shared", "slave")} <= set(made)


@pytest.mark.parametrize("kind", LINUX["namespaces"])
def test_every_namespace_is_taken(kind: str) -> None:
    kinds = {"pid", "network", "ipc", "uts", "mount", kind}
    taken(plain(namespaces=[{"type": each} for each in kinds]))


def test_every_word_of_seccomp_is_taken() -> None:
    known = LINUX["seccomp"]
    rules = [
        {"names": ["read"], "action": action, "args": [{"index": 0, "value": 1, "op": op}]}
        for action in known["actions"] for op in known["operators"]
    ]  # fmt: skip
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": known["archs"], "flags": known["supportedFlags"],
               "syscalls": rules}  # fmt: skip
    assert taken(plain(seccomp=profile))["linux"]["seccomp"] == profile


def test_every_capability_is_taken() -> None:
    spec = plain()
    spec["process"]["capabilities"] = {"bounding": LINUX["capabilities"]}
    assert taken(spec)["process"]["capabilities"] == {"bounding": LINUX["capabilities"]}


@pytest.mark.parametrize(
    ("name", "linux"),
    [
        ("intelRdt", {"intelRdt": {"closID": "a"}}),
        ("selinux", {"mountLabel": "a:b:c"}),
    ],
)
def test_what_is_said_to_be_missing_is_refused(name: str, linux: dict[str, Any]) -> None:
    assert LINUX[name] == {"enabled": False}
    with pytest.raises(CasemateError):
        taken(plain(**linux))

"""``-info``: what this shim and the runtime behind it can do, for containerd's introspection service (2.0)."""

from __future__ import annotations

import json

from casemate import __version__
from casemate.shim import messages, options, wire

MAX_FEATURES = 4 << 20
FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def info(stdin: bytes) -> bytes:
    """A ``RuntimeInfo``.

    Arguments:
        stdin: the runtime's options, an Any; empty for none.
    """
    any_message = wire.decode(messages.ANY, stdin)
    chosen = options.read(any_message)
    answer = {
        "name": "io.containerd.casemate.v2",
        "version": {"version": __version__, "revision": ""},
        "options": any_message if any_message["type_url"] else None,
    }
    features = _features(options.binary(chosen))
    if features:
        answer["features"] = {"type_url": FEATURES_TYPE, "value": features}
    return wire.encode(messages.RUNTIME_INFO, answer)


def _features(binary: str) -> bytes:
    """What ``features`` of the runtime prints; empty when it does not know that command."""
    import subprocess

    try:
        done = subprocess.run([binary, "features"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        if done.returncode == 0 and len(done.stdout) <= MAX_FEATURES and isinstance(json.loads(done.stdout), dict):
            return done.stdout
    except (OSError, ValueError, subprocess.TimeoutExpired):
        pass
    return b""

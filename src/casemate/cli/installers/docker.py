"""Docker: an entry of ``runtimes`` in daemon.json."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from casemate.cli.installers import jsontext
from casemate.errors import ConfigError

FILE = Path("/etc/docker/daemon.json")
PROGRAMS = ("casemate-runtime",)
NEXT = (
    "sudo systemctl reload docker    (or send SIGHUP to dockerd)",
    "docker run --rm --runtime casemate busybox uname -r",
)
NEXT_UNDONE = ("sudo systemctl reload docker",)


def edit(text: str | None, path: Path, programs: dict[str, Path]) -> str:
    """The file with our runtime in it.

    Raises:
        ConfigError: it is damaged.
    """
    value: dict[str, Any] = {"path": str(programs["casemate-runtime"])}
    if text is None or not text.strip():
        return json.dumps({"runtimes": {"casemate": value}}, indent=4) + "\n"
    found = _runtimes(text, path).get("casemate")
    if isinstance(found, dict):
        value = {**found, **value}
    if found == value:
        return text
    made = jsontext.put(text, "runtimes", "casemate", value)
    expected = jsontext.read(text, str(path))
    expected.setdefault("runtimes", {})["casemate"] = value
    if jsontext.read(made, str(path)) != expected:  # pragma: no cover - a fault of ours, and no reason to write it
        raise ConfigError(f"{path} has a form that casemate cannot change", "add the runtime by hand")
    return made


def erase(text: str, path: Path) -> str:
    """The file without our runtime.

    Raises:
        ConfigError: it is damaged, or containers would have no runtime afterwards.
    """
    if not text.strip() or "casemate" not in _runtimes(text, path):
        return text
    if jsontext.read(text, str(path)).get("default-runtime") == "casemate":
        raise ConfigError(f"{path} names casemate as its default-runtime", "choose another default first")
    return jsontext.take(text, "runtimes", "casemate")


def check(path: Path) -> None:
    """Look for what would keep Docker from starting with the changed file.

    Raises:
        ConfigError: the daemon has its runtimes on its command line, which excludes those in the file.
    """
    for name in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            words = Path(name).read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue  # it has ended, or is not ours to look at
        if not words[0].endswith("dockerd") or not any(word.startswith("--add-runtime") for word in words):
            continue
        given = [word.removeprefix("--config-file=") for word in words if word.startswith("--config-file=")]
        given += [after for word, after in zip(words, words[1:], strict=False) if word == "--config-file"]
        if (given[-1] if given else str(FILE)) == str(path):
            raise ConfigError(
                "dockerd was started with --add-runtime, which it does not take together with runtimes in its file",
                "move those of the command line to the file first",
            )


def _runtimes(text: str, path: Path) -> dict[str, Any]:
    runtimes = jsontext.read(text, str(path)).get("runtimes", {})
    if not isinstance(runtimes, dict):
        raise ConfigError(f"{path} is damaged: runtimes is not an object", "mend it first")
    return runtimes

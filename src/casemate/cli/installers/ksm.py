"""systemd: a unit for the throttler of same-page merging, which is ours as a whole."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from casemate.errors import ConfigError

NAME = "casemate-ksm.service"
FILE = Path("/etc/systemd/system") / NAME
PROGRAMS = ("casemate",)
NEXT = (
    "sudo systemctl daemon-reload",
    f"sudo systemctl enable --now {NAME}",
    "casemate ksm --status",
)
NEXT_UNDONE = (f"sudo systemctl disable --now {NAME}", "sudo systemctl daemon-reload")
_HEAD = re.compile(r"# Written by 'casemate install ksm', sha256 ([0-9a-f]{64})\. Changes belong into a drop-in\.\n")
_UNIT = """\
[Unit]
Description=Merging of equal memory of casemate's machines
Documentation=https://docs.kernel.org/admin-guide/mm/ksm.html
ConditionPathExists=/sys/kernel/mm/ksm/run

[Service]
Type=notify
ExecStart={program} ksm
# For the case that the throttler and its guard were killed.
ExecStopPost={program} ksm --restore
Restart=on-failure
CapabilityBoundingSet=CAP_DAC_OVERRIDE
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX
PrivateNetwork=yes

[Install]
WantedBy=multi-user.target
"""


def edit(text: str | None, path: Path, programs: dict[str, Path]) -> str:
    """The unit.

    Raises:
        ConfigError: there is one that somebody else wrote, or has changed.
    """
    if text is not None and text.strip():
        _judge(text, path)
    body = _UNIT.format(program=quoted(str(programs["casemate"])))
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f"# Written by 'casemate install ksm', sha256 {digest}. Changes belong into a drop-in.\n{body}"


def erase(text: str, path: Path) -> str | None:
    """Nothing, if the unit is ours and as we wrote it.

    Raises:
        ConfigError: somebody has changed it.
    """
    if not _HEAD.match(text):
        return text
    _judge(text, path)
    return None


def quoted(path: str) -> str:
    """A program's path as systemd reads it in ``ExecStart=`` (systemd.service(5), "Command lines").

    Raises:
        ConfigError: it cannot be written there.
    """
    if not path.isprintable() or set(path) & set("\"'\\"):  # systemd takes no program of such a name
        raise ConfigError(f"{path!r} cannot be named in a unit", "name another directory for programs with --links")
    path = path.replace("%", "%%")  # no variable is looked for in the first word
    return path if re.fullmatch(r"[A-Za-z0-9/._+@%-]+", path) else f'"{path}"'


def _judge(text: str, path: Path) -> None:
    head = _HEAD.match(text)
    if head is None:
        raise ConfigError(f"{path} was not written by casemate", "name another file with --file")
    if hashlib.sha256(text[head.end() :].encode()).hexdigest() != head.group(1):
        raise ConfigError(
            f"{path} was changed after casemate wrote it",
            f"put changes into a drop-in ('systemctl edit {NAME}') and remove the file",
        )

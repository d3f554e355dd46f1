"""systemd: a unit for the pool of sandboxes that wait."""

from __future__ import annotations

from casemate.cli.installers.unit import Unit

PROGRAMS = ("casemate",)
_UNIT = Unit("pool", """\
[Unit]
Description=Sandboxes of casemate that are kept ready
After=network.target

[Service]
Type=notify
ExecStart={program} pool
# The pool ends those that wait, and nobody may end those that were handed out.
KillMode=process
Restart=on-failure
OOMPolicy=continue
LimitNOFILE=65536
TasksMax=infinity

[Install]
WantedBy=multi-user.target
""")  # fmt: skip
NAME = _UNIT.name
FILE = _UNIT.file
NEXT = (
    "sudo systemctl daemon-reload",
    f"sudo systemctl enable --now {NAME}",
    "sudo casemate pool --status",
)
NEXT_UNDONE = (f"sudo systemctl disable --now {NAME}", "sudo systemctl daemon-reload")
edit = _UNIT.edit
erase = _UNIT.erase

"""systemd: a unit for the throttler of same-page merging."""

from __future__ import annotations

from casemate.cli.installers.unit import Unit

PROGRAMS = ("casemate",)
_UNIT = Unit("ksm", """\
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
""")  # fmt: skip
NAME = _UNIT.name
FILE = _UNIT.file
NEXT = (
    "sudo systemctl daemon-reload",
    f"sudo systemctl enable --now {NAME}",
    "casemate ksm --status",
)
NEXT_UNDONE = (f"sudo systemctl disable --now {NAME}", "sudo systemctl daemon-reload")
edit = _UNIT.edit
erase = _UNIT.erase

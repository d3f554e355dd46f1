"""systemd units that are ours as a whole: written, recognised and taken back."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import ConfigError

DIRECTORY = Path("/etc/systemd/system")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of ours.

    Arguments:
        command: of ``casemate install``.
        text: the unit; ``{program}`` stands for our program.
    """

    command: str
    text: str

    @property
    def name(self) -> str:
        """The unit's."""
        return f"casemate-{self.command}.service"

    @property
    def file(self) -> Path:
        """Where it belongs."""
        return DIRECTORY / self.name

    def edit(self, text: str | None, path: Path, programs: dict[str, Path]) -> str:
        """The unit.

        Raises:
            ConfigError: there is one that somebody else wrote, or has changed.
        """
        if text is not None and text.strip():
            self._judge(text, path)
        body = self.text.format(program=quoted(str(programs["casemate"])))
        digest = hashlib.sha256(body.encode()).hexdigest()
        head = f"# Written by 'casemate install {self.command}', sha256 {digest}. Changes belong into a drop-in.\n"
        return head + body

    def erase(self, text: str, path: Path) -> str | None:
        """Nothing, if the unit is ours and as we wrote it.

        Raises:
            ConfigError: somebody has changed it.
        """
        if not self._head(text):
            return text
        self._judge(text, path)
        return None

    def _head(self, text: str) -> re.Match[str] | None:
        words = rf"# Written by 'casemate install {self.command}', sha256 ([0-9a-f]{{64}})\. "
        return re.match(words + r"Changes belong into a drop-in\.\n", text)

    def _judge(self, text: str, path: Path) -> None:
        head = self._head(text)
        if head is None:
            raise ConfigError(f"{path} was not written by casemate", "name another file with --file")
        if hashlib.sha256(text[head.end() :].encode()).hexdigest() != head.group(1):
            raise ConfigError(
                f"{path} was changed after casemate wrote it",
                f"put changes into a drop-in ('systemctl edit {self.name}') and remove the file",
            )


def quoted(path: str) -> str:
    """A program's path as systemd reads it in ``ExecStart=`` (systemd.service(5), "Command lines").

    Raises:
        ConfigError: it cannot be written there.
    """
    if not path.isprintable() or set(path) & set("\"'\\"):  # systemd takes no program of such a name
        raise ConfigError(f"{path!r} cannot be named in a unit", "name another directory for programs with --links")
    path = path.replace("%", "%%")  # no variable is looked for in the first word
    return path if re.fullmatch(r"[A-Za-z0-9/._+@%-]+", path) else f'"{path}"'

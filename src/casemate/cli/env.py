"""``casemate env``: the configuration in force, and where each value comes from."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.errors import UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS]"
ROOT = False
VARIABLES = {"root": "CASEMATE_ROOT", "run": "CASEMATE_RUN"}


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("--format", metavar="FORMAT", default="toml", help="toml (default, fit for config.toml) or json")


def run(config: Config, args: Any) -> int:
    """Print the configuration."""
    if args.format not in ("toml", "json"):
        raise UsageError(f"unknown value {args.format!r} for --format", "use toml or json")
    origins = sources(dict(os.environ))
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    if args.format == "json":
        print(json.dumps({key: {"value": value, "source": origins.get(key, "default")} for key, value in plain.items()},
                         indent=4))  # fmt: skip
        return 0
    # A JSON string or number is a TOML one as well.
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    width = max(map(len, lines))
    for line, key in zip(lines, plain, strict=True):
        print(f"{line:<{width}}  # {origins.get(key, 'default')}")
    return 0


def sources(environ: dict[str, str]) -> dict[str, str]:
    """For every setting that is not the default, the file or variable that it comes from."""
    import tomllib

    from casemate.config import DEFAULT_FILE

    first = Path(environ.get("CASEMATE_CONFIG") or DEFAULT_FILE)
    paths = [first] if first.exists() else []
    drop_ins = first.parent / "config.d"
    if drop_ins.is_dir():
        paths += sorted(drop_ins.glob("*.toml"))
    found: dict[str, str] = {}
    for path in paths:
        found.update(dict.fromkeys(tomllib.loads(path.read_text()), str(path)))
    found.update({key: variable for key, variable in VARIABLES.items() if environ.get(variable)})
    return found

"""``casemate install``: tell an engine or systemd of casemate, in its own configuration, and take that back."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.cli import output
from casemate.errors import ConfigError, HostError, UsageError

if TYPE_CHECKING:
    from casemate.cli.installers.changes import FileChange, LinkChange, Record
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] docker|podman|containerd|ksm|pool"
ROOT = False
ENGINES = ("docker", "podman", "containerd", "ksm", "pool")
"""The last two are no engines but units of systemd: what is written and taken back is a file there, too."""
LINKS = Path("/usr/local/bin")


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("--dry-run", help="change nothing; print what would change, as a diff")
    parser.flag("--undo", help="take out what an earlier installation wrote, and nothing else")
    parser.value("--file", metavar="FILE", default="", help="the configuration to change, not the usual one")
    parser.value("--links", metavar="DIR", default="", help=f"where programs are linked to ({LINKS})")
    parser.add_argument("engine", metavar="ENGINE")


def run(config: Config, args: Any) -> int:
    """Change the configuration, or print how."""
    if args.engine not in ENGINES:
        raise UsageError(f"unknown engine {args.engine!r}", f"known are {', '.join(ENGINES)}")
    if not args.dry_run and os.geteuid() != 0:
        raise HostError("casemate install needs root", f"try: sudo casemate install {args.engine}")
    engine = _engine(args.engine)
    book = config.root / "install" / f"{args.engine}.json"
    links = Path(os.path.abspath(args.links)) if args.links else LINKS
    named = Path(os.path.abspath(args.file)) if args.file else None
    if args.undo:
        return _undo(engine, args.engine, book, named or engine.FILE, bool(named), args.dry_run)
    return _install(engine, args.engine, book, named or engine.FILE, links, args.dry_run)


def _engine(name: str) -> Any:
    import importlib

    return importlib.import_module(f"casemate.cli.installers.{name}")


def _install(engine: Any, name: str, book: Path, path: Path, links: Path, dry_run: bool) -> int:
    from casemate.cli.installers import changes

    programs, wanted = _programs(engine.PROGRAMS, links)
    path = engine.place(path) if hasattr(engine, "place") else path
    if hasattr(engine, "check"):
        engine.check(path)
    before = changes.read(path)
    change = changes.FileChange(path, before, engine.edit(before, path, programs))
    if change.before == change.after and not wanted:
        print(f"{path}: casemate is there already")
        return 0
    if dry_run:
        return _show(change, wanted)
    # What undoing needs is written down first: whenever we die after that, it can be undone.
    _record(engine, changes.Record.load(book), change, wanted).save(book)
    for each in wanted:
        changes.link(each)
        print(f"linked {each.path} to {each.target}")
    if change.after is not None and change.before != change.after:
        changes.write(path, change.after)
        print(f"changed {path}")
    _say(engine.NEXT)
    return 0


def _record(engine: Any, old: Record | None, change: FileChange, wanted: list[LinkChange]) -> Record:
    """What is to be known for undoing; what an earlier installation had found stays what undoing goes back to."""
    from casemate.cli.installers import changes

    assert change.after is not None
    after = changes.digest(change.after) if change.after != change.before else ""
    before, links = change.before, tuple(str(each.path) for each in wanted)
    directories = tuple(changes.missing_directories(change.path))
    if old is not None:
        links = (*old.links, *(link for link in links if link not in old.links))
        if old.file == str(change.path) and before is not None:
            if changes.digest(before) == old.after:
                before, after, directories = old.before, changes.digest(change.after), old.directories
            else:
                with contextlib.suppress(ConfigError):  # it is the default runtime now, and undoing will tell
                    before = engine.erase(before, change.path)
    return changes.Record(str(change.path), before, after, directories, links)


def _undo(engine: Any, name: str, book: Path, path: Path, named: bool, dry_run: bool) -> int:
    from casemate.cli.installers import changes

    record = changes.Record.load(book)
    if record is not None and named and record.file != str(path):
        record = None
    if record is not None:
        path = Path(record.file)
    elif hasattr(engine, "place"):
        path = engine.place(path)
    before = changes.read(path)
    directories: list[str] = []
    if before is None:
        after = None
    else:
        after = engine.erase(before, path)  # judges the file in any case
        if record is not None and record.file == str(path) and changes.digest(before) == record.after:
            after, directories = record.before, list(record.directories)
    change = changes.FileChange(path, before, after)
    unwanted = _unwanted(record, book)
    if change.before == change.after and not unwanted:
        print(f"{path}: nothing of casemate is there")
        return 0
    if dry_run:
        return _show(change, unwanted)
    if change.before != change.after:
        if change.after is None:
            changes.remove(path, directories)
            print(f"removed {path}")
        else:
            changes.write(path, change.after)
            print(f"changed {path}")
    for each in unwanted:
        changes.link(each)
        print(f"removed {each.path}")
    if record is not None:
        _hand_over(record, book)
        book.unlink(missing_ok=True)
    _say(engine.NEXT_UNDONE)
    return 0


def _programs(names: tuple[str, ...], links: Path) -> tuple[dict[str, Path], list[LinkChange]]:
    """Where engines find our programs, and the links that are missing for it.

    Raises:
        HostError: a program is not installed, or something else has the link's name.
    """
    from casemate.cli.installers.changes import LinkChange

    found, wanted = {}, []
    for name in names:
        real = _find(name)
        place = links / name
        found[name] = place
        if os.path.realpath(place) == os.path.realpath(real):
            continue
        if os.path.lexists(place) and not _is_ours(place):
            raise HostError(f"{place} is there and is not casemate's", "remove it, or name another directory: --links")
        wanted.append(LinkChange(place, real))
    return found, wanted


def _is_ours(place: Path) -> bool:
    """A link to a program of the same name: one of ours, which may lead to where casemate was before."""
    return place.is_symlink() and os.path.basename(os.readlink(place)) == place.name


def _find(name: str) -> Path:
    """One of our programs: beside this one, beside its interpreter, or on the PATH.

    Raises:
        HostError: it is nowhere.
    """
    from casemate.host import commands

    for program in (sys.argv[0], sys.executable):
        place = Path(os.path.abspath(program)).parent / name
        if program and os.access(place, os.X_OK) and place.is_file():
            return place
    found = commands.which(name)
    if found is None:
        raise HostError(f"{name} is not installed beside casemate", "install casemate anew")
    return Path(os.path.realpath(found))


def _unwanted(record: Record | None, book: Path) -> list[LinkChange]:
    """The links that were made and that no other engine needs."""
    from casemate.cli.installers import changes

    if record is None:
        return []
    needed: set[str] = set()
    for other in ENGINES:
        if other != book.stem:
            theirs = changes.Record.load(book.with_name(f"{other}.json"))
            if theirs is not None:
                names = set(_engine(other).PROGRAMS)
                needed |= {link for link in record.links if Path(link).name in names}
    return [
        changes.LinkChange(Path(link), Path(os.readlink(link)), remove=True)
        for link in record.links if link not in needed and _is_ours(Path(link))
    ]  # fmt: skip


def _hand_over(record: Record, book: Path) -> None:
    """Leave the links that other engines need to these, so that the last one to be undone removes them."""
    from casemate.cli.installers import changes

    for other in ENGINES:
        place = book.with_name(f"{other}.json")
        theirs = changes.Record.load(place) if place != book else None
        if theirs is not None:
            names = set(_engine(other).PROGRAMS)
            more = tuple(link for link in record.links if Path(link).name in names and link not in theirs.links)
            replace(theirs, links=(*theirs.links, *more)).save(place)


def _show(change: FileChange, links: list[LinkChange]) -> int:
    from casemate.cli.installers import changes

    for each in links:
        print(f"remove {each.path}" if each.remove else f"link {each.path} -> {each.target}")
    text = changes.diff(change)
    for line in text.splitlines():
        colour = {"+": output.GREEN, "-": output.RED}.get(line[:1])
        print(output.paint(line, colour, sys.stdout) if colour else line)
    return 0


def _say(lines: tuple[str, ...]) -> None:
    for number, line in enumerate(lines):
        print(f"{'next: ' if not number else '      '}{line}")

"""``casemate template``: make, list, check and remove the saved guests that machines are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate import ids
from casemate.cli import output, values
from casemate.config import TEMPLATE_MIB
from casemate.errors import TemplateError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.vm.template.store import Template
    from casemate.vm.twins import Holder

USAGE = "create [--memory SIZE] [--cpus N] | list | verify [TEMPLATE...] | rm TEMPLATE..."
ACTIONS = ("create", "list", "verify", "rm")
HEAD = ("TEMPLATE", "GUEST", "KERNEL", "ACCELERATOR", "MEMORY", "CPUS", "SIZE", "ORIGINALS")


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("-m", "--memory", metavar="SIZE", help="create: memory of guests that it is for, such as 8g")
    parser.value("--cpus", metavar="N", help="create: their processors")
    parser.add_argument("action", metavar="ACTION", help="create, list, verify or rm")
    parser.add_argument("templates", metavar="TEMPLATE", nargs="*", help="verify, rm: the beginning is enough")


def run(config: Config, args: Any) -> int:
    """Do the action."""
    if args.action not in ACTIONS:
        raise UsageError(f"unknown action {args.action!r} for template", f"one of {', '.join(ACTIONS)}")
    if args.templates and args.action in ("create", "list"):
        raise UsageError(f"unexpected argument {args.templates[0]!r}", "see: casemate template --help")
    if (args.memory or args.cpus) and args.action != "create":
        raise UsageError("--memory and --cpus are for create", "see: casemate template --help")
    from casemate.vm import twins
    from casemate.vm.template import background, store

    if args.action == "create":
        print(_create(config, args).key)
    elif args.action == "list":
        holders = twins.holders(config)
        print(output.table(HEAD, [_row(template, holders) for template in store.list_all(config.root)]))
        for path, problem in store.damaged(config.root):
            output.error(TemplateError(problem, f"remove it: casemate template rm {path.name[:12]}"))
        for whom, problem in background.failures(config.run):
            output.error(TemplateError(f"none for {whom}: {problem}", "try again: casemate template create"))
        for problem in twins.failures(config):
            output.error(TemplateError(f"no machine to be copied: {problem}", "'casemate check' may know more"))
    elif args.action == "verify":
        from casemate.cli.common import each

        names = args.templates or sorted(path.name for path in store.directories(config.root))
        return each(names, lambda name: _verify(config, name))
    else:
        from casemate.cli.common import each

        if not args.templates:
            raise UsageError("missing TEMPLATE", "see: casemate template --help")
        return each(args.templates, lambda name: _remove(config, name))
    return 0


def _row(template: Template, holders: Sequence[Holder]) -> list[str]:
    manifest = template.manifest
    originals = [
        f"{holder.kind.memory_mib} MiB{'' if holder.ready else ' (comes up)'}"
        for holder in holders
        if holder.kind.key == template.key
    ]
    return [
        ids.short(template.key), ids.short(str(manifest["bundle"])), str(manifest["kernel_release"]),
        str(manifest["accelerator"]), f"up to {TEMPLATE_MIB + manifest['growth_mib']} MiB", str(manifest["vcpus"]),
        output.size(template.size()), ", ".join(originals) or "-",
    ]  # fmt: skip


def _find(config: Config, name: str) -> Any:
    from casemate.vm.template import store

    found = [path for path in store.directories(config.root) if name and path.name.startswith(name)]
    if len(found) != 1:
        what = "no template begins" if not found else f"{len(found)} templates begin"
        raise TemplateError(f"{what} with {name!r}", "'casemate template list' shows them")
    return found[0]


def _verify(config: Config, name: str) -> None:
    from casemate.vm.template import store

    path = _find(config, name)
    with output.Steps() as steps:
        steps(f"reading {ids.short(path.name)}")
        store.verify(store.load(path))
    print(f"{ids.short(path.name)}: as it was saved")


def _remove(config: Config, name: str) -> None:
    from casemate.vm import twins
    from casemate.vm.guest.lock import locked
    from casemate.vm.template import store

    path = _find(config, name)
    with locked(store.home(config.root)):
        store.remove(path)
    twins.end(config, path.name)
    print(ids.short(path.name))


def _create(config: Config, args: Any) -> Template:
    import time

    from casemate.vm.template import background

    memory = values.memory(args.memory, config.memory_minimum) if args.memory else config.memory
    vcpus = -int(-values.cpus(args.cpus) // 1) if args.cpus else config.vcpus
    begin = time.monotonic()
    with output.Steps() as steps:
        made = background.make(config, memory, vcpus, steps, wait=True)
        assert made is not None  # it was waited for
        steps(f"template {ids.short(made.key)}: {output.size(made.size())}, {time.monotonic() - begin:.1f} s")
        return made

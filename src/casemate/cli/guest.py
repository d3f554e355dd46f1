"""``casemate guest``: build, list and inspect guest bundles, the kernel and root image of every virtual machine.

``casemate guest kernel`` does the same for the minimal kernels that bundles can be built with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate import ids
from casemate.cli import output
from casemate.errors import GuestMissing, HostError, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

ROOT = False  # building a kernel needs nothing of it; the rest is checked below
USAGE = "build [--update] [--kernel KERNEL] | list | inspect [DIGEST] | prune | kernel build|list|config|rm ..."
ACTIONS = ("build", "list", "inspect", "prune", "kernel")
KERNEL_ACTIONS = ("build", "list", "config", "rm")
HEAD = ("DIGEST", "VERSION", "KERNEL", "SIZE", "IN USE")
KERNEL_HEAD = ("KEY", "RELEASE", "SOURCE", "SIZE", "BUILT IN", "NEXT BUILD")
CACHE = "/var/cache/casemate"
"""Where downloaded packages are kept; ``CASEMATE_CACHE`` names another directory."""


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("--update", help="build: look for newer packages, and build again when there are any")
    parser.value(
        "--kernel", metavar="KERNEL", default="auto",
        help="build: debian, minimal (see 'kernel build'), or auto: minimal where there is one (default auto)",
    )  # fmt: skip
    parser.values("--options", metavar="FILE", help="kernel build: more options, as in a kernel's .config; they win")
    parser.flag("--keep", help="kernel build: leave source and objects (3 GB) for a faster next build")
    parser.value("--jobs", metavar="N", type=int, default=0, help="kernel build: compilers at once (default: all)")
    parser.add_argument(
        "action", metavar="ACTION", help="build, list, inspect, prune (remove those not in use), or kernel with build, "
        "list, config (its options) or rm",
    )  # fmt: skip
    parser.add_argument("words", metavar="DIGEST", nargs="*", help="inspect, kernel: the beginning is enough")


def run(config: Config, args: Any) -> int:
    """Do the action."""
    if args.action not in ACTIONS:
        raise UsageError(f"unknown action {args.action!r} for guest", f"one of {', '.join(ACTIONS)}")
    if args.action == "kernel":
        return _kernel(config, args)
    if os.geteuid() != 0:
        raise HostError("casemate guest needs root", "try: sudo casemate guest ...")
    most = 1 if args.action == "inspect" else 0
    if len(args.words) > most:
        raise UsageError(f"unexpected argument {args.words[most]!r}", "see: casemate guest --help")
    from casemate.vm import guest

    if args.action == "build":
        with output.Steps() as steps:
            bundle = guest.build(config.root, cache(), steps, update=args.update, kernel=args.kernel)
        print(bundle.digest)
    elif args.action == "list":
        current = guest.current(config.root)
        rows = [
            [
                ids.short(bundle.digest), bundle.version, bundle.kernel_release,
                output.size(sum(path.stat().st_size for path in bundle.files)),
                "yes" if bundle.digest == current else "",
            ]
            for bundle in guest.list_bundles(config.root)
        ]  # fmt: skip
        print(output.table(HEAD, rows))
    elif args.action == "inspect":
        print(json.dumps(_find(config, args.words[0] if args.words else "").manifest, indent=4))
    else:
        for digest in guest.prune(config.root):
            print(digest)
    return 0


def cache() -> Path:
    """Where packages and kernels are kept."""
    return Path(os.environ.get("CASEMATE_CACHE") or CACHE)


def _kernel(config: Config, args: Any) -> int:
    action, *rest = args.words or [""]
    if action not in KERNEL_ACTIONS:
        raise UsageError(f"unknown action {action!r} for guest kernel", f"one of {', '.join(KERNEL_ACTIONS)}")
    most = {"config": 1, "rm": len(rest)}.get(action, 0)
    if len(rest) > most:
        raise UsageError(f"unexpected argument {rest[most]!r}", "see: casemate guest --help")
    from casemate.vm.guest import kernels

    if action == "build":
        from casemate.vm.guest.kernel_build import build

        with output.Steps() as steps:
            made = build(
                cache(), steps, update=args.update, more=[Path(name) for name in args.options], keep=args.keep,
                jobs=max(args.jobs, 0),
            )  # fmt: skip
        print(made.key)
    elif action == "list":
        from casemate.config import machine

        following = kernels.present(cache(), machine())
        rows = [
            [
                each.key, each.release, each.version, output.size(each.vmlinux.stat().st_size),
                output.ago(each.facts.get("seconds", 0)), "yes" if each == following else "",
            ]
            for each in kernels.list_kernels(cache())
        ]  # fmt: skip
        print(output.table(KERNEL_HEAD, rows))
    elif action == "config":
        print((kernels.find(cache(), rest[0] if rest else "").path / "config").read_text(), end="")
    else:
        if not rest:
            raise UsageError("missing KEY", "'casemate guest kernel list' shows them")
        for key in rest:
            kernels.remove(made := kernels.find(cache(), key))
            print(made.key)
    return 0


def _find(config: Config, digest: str) -> Any:
    from casemate.vm import guest

    if not digest:
        return guest.find(config.root, config.guest)
    found = [bundle for bundle in guest.list_bundles(config.root) if bundle.digest.startswith(digest)]
    if len(found) != 1:
        what = "no guest bundle begins" if not found else f"{len(found)} guest bundles begin"
        raise GuestMissing(f"{what} with {digest}", "'casemate guest list' shows them")
    return found[0]

"""``casemate do --rw`` on a tree that the sentry takes to be its own: run as ``python writable_do.py CWD CMD...``."""

from __future__ import annotations

import os
import sys
from typing import Any

from casemate.gofer import launch
from casemate.gofer.client import GoferClient
from casemate.gofer.launch import Tree
from casemate.sentry import foreground

start = launch.start_gofer


def start_exclusive(trees: list[Tree], **options: Any) -> GoferClient:
    """What containers have: a tree to write to that nobody else changes."""
    return start([Tree(tree.path, tree.read_only, True) for tree in trees], **options)


if __name__ == "__main__":
    launch.start_gofer = start_exclusive
    wanted = foreground.Wanted(sys.argv[2:], dict(os.environ), sys.argv[1], 54321, writable=True)
    sys.exit(foreground.run(wanted))

"""Modules of the standard library that are imported by others but seldom used: executed when somebody uses them.

Programs that start often pay for what their imports import: :mod:`dataclasses` brings :mod:`inspect`, and that the
whole of :mod:`ast`, :mod:`dis` and :mod:`tokenize`, for one case of a thousand. ``late()`` puts placeholders in their
places that become the real modules when the first attribute is asked for. It is for programs only: nothing that is
imported as a library calls it.
"""

from __future__ import annotations

import sys
from _thread import RLock
from types import ModuleType

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

SELDOM = ("inspect", "ipaddress", "linecache", "textwrap", "tokenize", "traceback")
"""What the light half of the standard library imports, and hardly ever calls."""
_plain = ModuleType.__getattribute__
_set = ModuleType.__setattr__


class _Placeholder(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        _set(self, "__late__", RLock())

    def __getattribute__(self, name: str) -> Any:
        # The import system asks for __spec__ on each import, to see whether another thread is still executing it.
        if name not in ("__spec__", "__class__"):
            _execute(self)
        return _plain(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _execute(self)
        _set(self, name, value)


def _execute(module: ModuleType) -> None:
    """Make it what it stands for. Other threads wait; what it imports itself may ask it for what there is already."""
    inside = _plain(module, "__dict__")
    lock = inside.get("__late__")
    if lock is None:
        return  # another thread was first
    with lock:
        if "__late__" not in inside or inside.get("__loader__") is not None:
            return
        name = inside["__name__"]
        for finder in sys.meta_path:
            spec = finder.find_spec(name, None)
            if spec is not None and spec.loader is not None:
                break
        else:
            sys.modules.pop(name, None)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        inside.update(__spec__=spec, __loader__=spec.loader, __file__=spec.origin)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        object.__setattr__(module, "__class__", ModuleType)
        del inside["__late__"]


def late(names: tuple[str, ...] = SELDOM) -> None:
    """Have these modules executed when they are used, where they are not imported already. Call it first of all.

    Arguments:
        names: modules without a package, of which nobody imports single names (``from inspect import …`` is a use).
    """
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = _Placeholder(name)


def now(names: tuple[str, ...] = SELDOM) -> None:
    """Execute them: there will be no files to execute them from."""
    for name in names:
        getattr(__import__(name), "__file__", None)


class Logger:
    """A logger of :mod:`logging`, which is imported when something is told for the first time.

    Arguments:
        name: the logger's.
    """

    muted = False
    """Of all of them: nobody listens."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        if Logger.muted:
            return _nothing
        import logging

        return getattr(logging.getLogger(self.name), name)


def _nothing(*_args: object, **_more: object) -> None:
    """What a muted logger does."""

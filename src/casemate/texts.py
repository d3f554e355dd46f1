"""What :mod:`dataclasses` and :mod:`re` compile when modules are imported, compiled before.

A class of data has half a dozen methods that are written as text and compiled when the class is made; an expression is
parsed and compiled when its module is imported. Both take a tenth of a millisecond and more each time. The result
depends on the text and on Python's version alone, so :mod:`casemate.bundle`, which is for one version, has it by the
text: whoever changes the text finds nothing there, and compiles. Where a version of Python has these two otherwise,
nothing is noted, and nothing found.
"""

from __future__ import annotations

import _imp

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    Find = Callable[[bytes], Any]
    Noted = dict[bytes, tuple[Any, Any]]
    """By digest: what was compiled, and the result: code, or the arguments of ``_sre.compile``."""

_KEY = 0x63617365


def _digest(what: Any) -> bytes:
    """Who finds something by it compares the text itself."""
    return _imp.source_hash(_KEY, repr(what).encode("utf-8", "surrogatepass"))


def give(module: ModuleType, find: Find) -> None:
    """Have one of the two modules find what was compiled before.

    Arguments:
        module: just executed.
        find: gives what was noted by a digest, or None.
    """
    if module.__name__ == "dataclasses":
        setattr(module, "exec", _executor(find))  # noqa: B010 - its own in place of the built-in one
    elif hasattr(module, "compile"):
        setattr(module, "compile", _compiler(find, module.compile))  # noqa: B010


def _executor(find: Find) -> Callable[..., None]:
    def execute(text: Any, *names: Any) -> None:
        found = find(_digest(text)) if isinstance(text, str) else None
        exec(found[1] if found is not None and found[0] == text else text, *names)

    return execute


def _compiler(find: Find, compile: Callable[..., Any]) -> Callable[..., Any]:
    def compile_(pattern: Any, flags: int = 0) -> Any:
        if type(pattern) in (str, bytes) and type(flags) is int:
            found = find(_digest((pattern, flags)))
            if found is not None and found[0] == (pattern, flags):
                import _sre  # type: ignore[import-not-found]  # of no public name

                return _sre.compile(*found[1])
        return compile(pattern, flags)

    compile_.__wrapped__ = compile  # type: ignore[attr-defined]  # for who notes
    return compile_


def note() -> Noted:
    """Note from now on what the two compile; to be called before anything imports them. Returns where it is noted."""
    import re

    noted: Noted = {}
    compiler = getattr(re, "_compiler", None)
    if hasattr(compiler, "compile") and hasattr(compiler, "_sre"):
        _note_expressions(compiler, noted)
    import dataclasses

    def execute(text: Any, *names: Any) -> None:
        code = compile(text, "<string>", "exec", dont_inherit=True)
        noted[_digest(text)] = text, code
        exec(code, *names)

    setattr(dataclasses, "exec", execute)  # noqa: B010 - its own in place of the built-in one
    return noted


def _note_expressions(compiler: Any, noted: Noted) -> None:
    plain, sre = getattr(compiler.compile, "__wrapped__", compiler.compile), compiler._sre
    arguments: list[Any] = []

    class Noting:
        """The module that makes an expression of its code."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sre, name)

        def compile(self, *given: Any) -> Any:
            arguments[:] = given
            return sre.compile(*given)

    def compile_(pattern: Any, flags: int = 0) -> Any:
        arguments.clear()
        made = plain(pattern, flags)
        if arguments and type(pattern) in (str, bytes):
            key = pattern, int(flags)
            code = list(map(int, arguments[2]))  # some are of a class of their own
            noted[_digest(key)] = key, (pattern, int(arguments[1]), code, *arguments[3:])
        return made

    compiler._sre, compiler.compile = Noting(), compile_

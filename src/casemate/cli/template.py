"""The part of Go's templates that people use with ``--format``: ``{{.Dotted.Paths}}`` and ``{{json .Path}}``."""

from __future__ import annotations

import re
from typing import Any

from casemate.errors import UsageError

_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"(json\s+)?(\.|(?:\.[A-Za-z0-9_-]+)+)\Z")
_ESCAPES = {"\\n": "\n", "\\t": "\t"}


def render(template: str, value: Any) -> str:
    """``template`` with every action replaced by what it names in ``value``.

    Arguments:
        template: text; an action is ``{{.A.B}}``, or ``{{json .A}}`` for JSON, and ``.`` alone is everything.
        value: objects, lists and plain values as JSON has them. Keys match regardless of case when none matches
            exactly; a number indexes a list.

    Raises:
        UsageError: an action is not of that form, or names what is not there.
    """
    result, end = [], 0
    for match in _ACTION.finditer(template):
        result += [_unescape(template[end : match.start()]), _evaluate(match.group(1).strip(), value)]
        end = match.end()
    rest = template[end:]
    if "{{" in rest:
        raise UsageError(f"the template {template!r} does not close its braces", "such as {{.State.Status}}")
    return "".join([*result, _unescape(rest)])


def _unescape(text: str) -> str:
    for escape, char in _ESCAPES.items():
        text = text.replace(escape, char)
    return text


def _evaluate(action: str, value: Any) -> str:
    match = _PATH.match(action)
    if match is None:
        raise UsageError(f"cannot read {{{{{action}}}}}", "write {{.A.B}} or {{json .A}}")
    for key in match.group(2).split(".")[1:]:
        if key:
            value = _member(value, key, action)
    if match.group(1) or isinstance(value, (dict, list)):
        import json

        return json.dumps(value)
    if value is None:
        return "<no value>"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _member(value: Any, key: str, action: str) -> Any:
    if isinstance(value, dict):
        if key in value:
            return value[key]
        for name in value:
            if name.lower() == key.lower():
                return value[name]
        known = ", ".join(map(str, list(value)[:20]))
        raise UsageError(f"{{{{{action}}}}} names nothing: there is no {key}", f"there are {known}" if known else "")
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    raise UsageError(f"{{{{{action}}}}} names nothing: no {key} there")

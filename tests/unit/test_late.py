"""Modules that are executed when they are used."""

from __future__ import annotations

import subprocess
import sys

BEGIN = "import sys\nfrom casemate import late\nlate.late()\n"


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-P", "-c", BEGIN + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kinds(code: str) -> set[str]:
    """Which of the modules are placeholders still, after this code."""
    told = python(code + "\nprint(*(n for n in late.SELDOM if type(sys.modules[n]) is late._Placeholder))")
    return set(told.split())


def test_what_imports_them_does_not_execute_them() -> None:
    assert kinds("import dataclasses, logging, pathlib, argparse, threading") >= {"inspect", "ipaddress", "tokenize"}


def test_a_use_makes_it_the_module() -> None:
    assert python("import inspect\nprint(inspect.signature(lambda a, b: 0))\nprint(type(inspect))").splitlines() == [
        "(a, b)", "<class 'module'>"
    ]
    assert "inspect" not in kinds("import inspect; inspect.signature")


def test_single_names_can_be_imported() -> None:
    code = "from traceback import format_exc\nfrom ipaddress import IPv4Address\nprint(IPv4Address(1))"
    assert python(code) == "0.0.0.1\n"


def test_what_was_imported_before_stays() -> None:
    code = "import inspect\nold = inspect\n" + BEGIN + "print(sys.modules['inspect'] is old)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def test_setting_an_attribute_is_a_use() -> None:
    assert python("import textwrap\ntextwrap.mine = 1\nprint(textwrap.mine, textwrap.dedent('  a'))") == "1 a\n"


def test_a_dataclass_without_a_docstring_gets_its_signature() -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\nprint(A.__doc__)"
    assert python(code) == "A(x: int = 1)\n"


def test_threads_see_it_whole() -> None:
    code = """
import threading, inspect
gate, seen = threading.Barrier(8), []
def use():
    gate.wait()
    seen.append(inspect.Signature.empty is not None and inspect.getmembers is not None)
threads = [threading.Thread(target=use) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(seen == [True] * 8)
"""
    assert python(code) == "True\n"


def test_a_module_that_is_not_there_says_so() -> None:
    code = "late.late(('no_such_module',))\nimport no_such_module\ntry:\n    no_such_module.x\n"
    code += "except ModuleNotFoundError as error:\n    print(error.name)"
    assert python(code) == "no_such_module\n"


def test_now_executes_all() -> None:
    assert kinds("late.now()") == set()


def test_a_logger_imports_logging_when_something_is_told() -> None:
    code = (
        "import sys\nfrom casemate.late import Logger\nlog = Logger('one.two')\nassert 'logging' not in sys.modules\n"
        "log.error('%s was told', 'this')\nLogger.muted = True\nlog.error('not this')\n"
        "assert log.name == 'one.two' and 'logging' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "this was told\n")

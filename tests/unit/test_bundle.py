"""The file with the compiled code of all modules, made for a package of its own that the tests may change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import casemate

SOURCES = ("__init__.py", "__main__.py", "bundle.py", "late.py", "texts.py", "programs.py", "errors.py", "ids.py")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a small casemate in it, that is not bundled yet."""
    package = tmp_path / "casemate"
    package.mkdir()
    for name in SOURCES:
        shutil.copy2(Path(casemate.__file__).parent / name, package / name)
    (package / "part").mkdir()
    (package / "part" / "__init__.py").write_text('"""A part."""\n')
    (package / "part" / "one.py").write_text("value = 1\n")
    return tmp_path


def python(home: Path, *words: str, check: bool = True, write: bool = True) -> str:
    """What a fresh interpreter prints that finds casemate there."""
    environment = {"PYTHONPATH": str(home), "PATH": os.environ["PATH"]}
    if not write:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, "-P", *words], capture_output=True, text=True, timeout=60, env=environment, cwd="/"
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def make(home: Path) -> Path:
    python(home, "-m", "casemate.bundle")
    (found,) = (home / "casemate" / "__pycache__").glob("modules.*")
    return found


USE = """
import sys
from casemate import bundle
found = bundle.use()
from casemate.part import one
import casemate.part, casemate.ids
print(type(casemate.ids.__spec__.loader).__name__, type(one.__spec__.loader).__name__, one.value,
      bool(found and found.stale))
"""


def test_modules_come_from_it(home: Path) -> None:
    assert python(home, "-c", USE).split() == ["SourceFileLoader", "SourceFileLoader", "1", "False"]
    make(home)
    assert python(home, "-c", USE).split() == ["Bundle", "Bundle", "1", "False"]


def test_a_changed_module_is_imported_anew(home: Path) -> None:
    make(home)
    (home / "casemate" / "part" / "one.py").write_text("value = 1 + 1\n")
    assert python(home, "-c", USE).split() == ["Bundle", "SourceFileLoader", "2", "True"]
    make(home)
    assert python(home, "-c", USE).split() == ["Bundle", "Bundle", "2", "False"]


def test_a_new_module_is_found(home: Path) -> None:
    make(home)
    ask = "from casemate import bundle\nprint(*bundle.below('casemate.part'))"
    assert python(home, "-c", ask).split() == ["casemate.part.one"]
    (home / "casemate" / "part" / "two.py").write_text("value = 2\n")
    assert python(home, "-c", ask).split() == ["casemate.part.one", "casemate.part.two"]
    make(home)
    assert python(home, "-c", ask).split() == ["casemate.part.one", "casemate.part.two"]


def test_making_it_does_not_make_it_stale(home: Path) -> None:
    """The code that is left beside it changes the times of directories, also where nobody has imported from them."""
    (home / "casemate" / "other").mkdir()
    (home / "casemate" / "other" / "__init__.py").write_text("")
    make(home)
    ask = "from casemate import bundle\nprint(*bundle.below('casemate.part'), bundle.use().stale)"
    assert python(home, "-c", ask).split() == ["casemate.part.one", "False"]


def test_all_can_be_compared_with_the_files_at_once(home: Path) -> None:
    make(home)
    ask = "from casemate import bundle\nprint(bundle.use().fresh(['casemate.part', 'casemate.part.one']))"
    assert python(home, "-c", ask).split() == ["True"]
    (home / "casemate" / "part" / "one.py").write_text("value = 1 + 1\n")
    assert python(home, "-c", ask).split() == ["False"]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other python", "index"])
def test_a_damaged_file_is_of_no_use_and_does_no_harm(home: Path, damage: str) -> None:
    file = make(home)
    data = file.read_bytes()
    head = data.index(b"\n") + 1
    file.write_bytes(
        {
            "cut": data[: head + 100], "empty": b"", "garbage": os.urandom(5000),
            "other python": data.replace(b"casemate modules ", b"casemate modulez ", 1),
            "index": data[: head + 8] + bytes(len(data) - head - 8),
        }[damage]
    )  # fmt: skip
    assert python(home, "-c", USE).split() == ["SourceFileLoader", "SourceFileLoader", "1", "False"]


def test_sealed_it_serves_what_has_no_file_any_more(home: Path) -> None:
    make(home)
    code = "from casemate import bundle\nimport shutil, casemate.part, os\nb = bundle.use()\nb.sealed = True\n"
    code += "shutil.rmtree(os.path.dirname(casemate.part.__file__))\nfrom casemate.part import one\nprint(one.value)"
    assert python(home, "-c", code) == "1\n"


def test_no_standard_descriptor_becomes_its(home: Path) -> None:
    make(home)
    code = "import os\nos.close(0)\nfrom casemate import bundle\nprint(bundle.use())\n"
    code += "try:\n    os.fstat(0)\nexcept OSError:\n    print('free')"
    assert python(home, "-c", code) == "None\nfree\n"


def test_the_program_says_where_it_cannot_write(home: Path) -> None:
    (home / "casemate" / "__pycache__").write_text("in the way\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "casemate.bundle"], capture_output=True, text=True, timeout=60, cwd="/",
        env={"PYTHONPATH": str(home), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1 and "cannot be written" in done.stderr


def test_it_is_wanted_only_where_python_may_leave_code(home: Path) -> None:
    ask = "from casemate import bundle\nprint(bundle.wanted())"
    assert python(home, "-c", ask) == "True\n"
    assert python(home, "-c", ask, write=False) == "False\n"
    make(home)
    assert python(home, "-c", ask) == "False\n"


def test_a_program_of_the_package_can_be_run_from_it(home: Path) -> None:
    program = "from casemate.programs import begin\nbegin()\nprint(__name__)\n"
    (home / "casemate" / "part" / "__main__.py").write_text(program)
    make(home)
    code = "from casemate import bundle\nbundle.use()\nimport runpy\n"
    code += "runpy.run_module('casemate.part', run_name='__main__')"
    assert python(home, "-c", code) == "__main__\n"


def test_a_copy_of_the_package_has_its_own_code(home: Path, tmp_path: Path) -> None:
    make(home)
    copy = tmp_path / "copy"
    shutil.copytree(home / "casemate", copy / "casemate", copy_function=shutil.copy2)
    (copy / "casemate" / "part" / "one.py").write_text("value = 1 + 2\n")
    assert python(copy, "-c", USE).split() == ["SourceFileLoader", "SourceFileLoader", "3", "False"]

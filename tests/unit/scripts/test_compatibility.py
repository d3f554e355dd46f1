"""The table of what works with engines: it has what the tests name, and the document is made of it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.engines import compatibility

TOP = Path(__file__).resolve().parents[3]


def test_document_is_current() -> None:
    assert (TOP / "docs" / "compatibility.md").read_text() == compatibility.document(), "run scripts/compatibility"


def test_table_and_tests_name_the_same_features() -> None:
    text = "".join(path.read_text() for path in (TOP / "tests" / "engines").glob("test_*.py"))
    assert set(re.findall(r'mark\.feature\("(.+?)"\)', text)) == set(compatibility.features())


def test_reasons() -> None:
    for feature in compatibility.features().values():
        for verdict in feature.verdicts.values():
            assert verdict.word in ("works", "differs", "cannot")
            assert bool(verdict.why) == (verdict.word != "works"), feature.name


def test_results_are_held_against_the_table() -> None:
    def result(test: str, client: str, outcome: str, *names: str) -> dict[str, object]:
        return {"test": test, "client": client, "features": list(names), "outcome": outcome}

    complete = [
        result(f"{name}[{engine}-{runtime}]", f"{engine}-{runtime}", "passed", name)
        for name, feature in compatibility.features().items()
        for engine in feature.verdicts
        for runtime in ("control", "casemate")
    ]
    assert compatibility.unproven(complete) == []
    assert compatibility.unproven(complete[1:]) == ["exit status: docker, control: not run"]
    failed = result("exit status[docker-control]", "docker-control", "failed", "exit status")
    assert compatibility.unproven([*complete, failed]) == ["exit status: docker, control: failed"]
    assert compatibility.unproven([failed, *complete]) == []
    more = result("x", "cri-casemate", "passed", "nothing known")
    assert compatibility.unproven([*complete, more]) == ["nothing known: cri: not in the table"]

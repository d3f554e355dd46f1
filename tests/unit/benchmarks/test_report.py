from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.io_program import main


def test_table_has_a_row_for_each_measurement_and_plain_quotients() -> None:
    text = report.table(
        {"casemate": {"cold": 3000.0, "stdout": 50.0}, "runc": {"cold": 30.0, "stdout": 100.0}},
        {"casemate": {"QEMU": 100.0, "keeper": 20.0}, "runc": {"sleep": 1.0}},
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["cold run of `true`, no network, ms ↓"] == ["3,000", "30", "100"]
    assert rows["stdout, MB/s ↑"] == ["50", "100", "0.5"]
    assert rows["memory of an idle sandbox, MiB ↓"] == ["120", "1", "120"]
    assert "| casemate | QEMU " in text


def test_a_runtime_without_a_number_has_a_dash() -> None:
    text = report.table({"casemate": {"cold_network": 5.0}, "runc": {}}, {})
    line = next(line for line in text.splitlines() if "with its network" in line)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["5", "–", "–"]


def test_put_into_replaces_only_what_is_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.put_into(document, "new\n")
    report.put_into(document, "newer\n")
    assert document.read_text() == f"before\n{report.BEGIN}\nnewer\n{report.END}\nafter\n"


def test_rows_behind_engines_are_a_table_of_their_own(tmp_path: Path) -> None:
    text = report.table(
        {"casemate": {"docker_run": 900.0}, "runc": {"docker_run": 300.0}, "runsc": {}},
        {"casemate": {"stand-in": 3.0}, "runc": {"shim": 6.0}},
        report.ENGINE_ROWS,
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["`docker run --rm busybox true`, ms ↓"] == ["900", "300", "–", "3", "–"]
    assert rows["memory of an idle container, `ctr run`, MiB ↓"] == ["3", "6", "–", "0.5", "–"]
    document = tmp_path / "a.md"
    document.write_text(f"{report.BEGIN}{report.END}{report.ENGINES_BEGIN}{report.ENGINES_END}")
    report.put_into(document, text, (report.ENGINES_BEGIN, report.ENGINES_END))
    assert document.read_text() == f"{report.BEGIN}{report.END}{report.ENGINES_BEGIN}\n{text}{report.ENGINES_END}"


def test_put_into_refuses_a_document_without_marks(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("nothing here\n")
    with pytest.raises(ValueError, match="no place"):
        report.put_into(document, "new\n")
    assert document.read_text() == "nothing here\n"


def test_io_program_measures_and_leaves_nothing(tmp_path: Path) -> None:
    result = main(str(tmp_path), 1, 0.01)
    assert set(result) == {"write", "read", "random_read", "random_write"}
    assert all(value > 0 for value in result.values())
    assert list(tmp_path.iterdir()) == []

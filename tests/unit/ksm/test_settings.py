"""The kernel's files: what is read, what is refused, and in which order they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import HostError, StateError
from casemate.ksm import settings
from casemate.ksm.settings import Settings
from tests.unit.ksm import kernel

NUMBER = st.integers(0, (1 << 32) - 1)
SETTINGS = st.builds(
    Settings, st.integers(0, 2), NUMBER, NUMBER, st.sampled_from(("", "none", "scan-time"))
)  # fmt: skip


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    directory = kernel.make(tmp_path / "ksm")
    assert settings.read(directory) == kernel.FOUND
    settings.write(Settings(1, 7, 1), directory)
    assert settings.read(directory) == Settings(1, 7, 1)
    assert kernel.values(directory) == {"run": "1", "pages_to_scan": "7", "sleep_millisecs": "1"}


@given(SETTINGS)
def test_settings_survive_being_kept(made: Settings) -> None:
    assert Settings.from_json(made.to_json()) == made


@given(st.dictionaries(st.sampled_from(("run", "pages_to_scan", "sleep_millisecs", "advisor_mode")),
                       st.none() | st.booleans() | st.integers() | st.text(max_size=40)))  # fmt: skip
def test_nothing_else_is_taken_for_settings(value: dict[str, object]) -> None:
    try:
        made = Settings.from_json(value)
    except StateError:
        return
    assert made.to_json() == value


@pytest.mark.parametrize("advisor", ["none", "scan-time"])
def test_the_advisor_gives_way_while_pages_are_written(tmp_path: Path, advisor: str) -> None:
    """A kernel whose advisor is at work refuses pages_to_scan: this one takes everything, so the order is looked at."""
    directory = kernel.make(tmp_path / "ksm", Settings(0, 1, 2, advisor))
    assert settings.read(directory).advisor_mode == advisor
    order: list[tuple[str, str]] = []
    real = os.open

    def opened(path: os.PathLike[str], *rest: int) -> int:
        order.append((Path(path).name, (directory / "advisor_mode").read_text()))
        return real(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        settings.write(Settings(1, 5, 6, advisor), directory)
    assert ("pages_to_scan", "none") in order
    assert (directory / "advisor_mode").read_text() == advisor


@pytest.mark.parametrize("name", ["run", "pages_to_scan", "sleep_millisecs"])
@pytest.mark.parametrize("text", ["", "many", "-1", "1e3", "9" * 30, "4294967296", "1\n2", "\xff", "3 "])
def test_bad_values_are_told_and_not_guessed(tmp_path: Path, name: str, text: str) -> None:
    directory = kernel.make(tmp_path / "ksm")
    (directory / name).write_text(text)
    if text == "3 " and name != "run":
        assert settings.read(directory)
        return
    with pytest.raises(HostError, match=name):
        settings.read(directory)


@pytest.mark.parametrize("text", ["", "none", "[none] [scan-time]", "[]", "[no ne]", "[../x]"])
def test_a_bad_advisor_is_told(tmp_path: Path, text: str) -> None:
    directory = kernel.make(tmp_path / "ksm", advisor_mode=text)
    with pytest.raises(HostError, match="advisor_mode"):
        settings.read(directory)


def test_a_kernel_without_merging_is_told_in_a_line(tmp_path: Path) -> None:
    for what in (settings.require, settings.read, settings.figures):
        with pytest.raises(HostError, match="does not merge equal pages") as caught:
            what(tmp_path / "ksm")
        assert "CONFIG_KSM" in str(caught.value) and "\n" not in str(caught.value)


def test_one_that_cannot_be_written_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    directory = kernel.make(tmp_path / "ksm")
    (directory / "pages_to_scan").unlink()
    with pytest.raises(HostError, match="pages_to_scan"):
        settings.write(Settings(1, 7, 1), directory)
    assert kernel.values(directory) == {"run": "1", "sleep_millisecs": "1"}, "and none is made"


def test_figures_are_what_the_kernel_tells(tmp_path: Path) -> None:
    directory = kernel.make(tmp_path / "ksm", pages_sharing="10\n", ksm_zero_pages="2\n", general_profit="-640\n",
                            pages_shared="odd\n")  # fmt: skip
    figures = settings.figures(directory)
    assert figures == {"pages_sharing": 10, "ksm_zero_pages": 2, "general_profit": -640}
    assert settings.saved(figures) == 12 * os.sysconf("SC_PAGE_SIZE")
    assert settings.saved({}) == 0


def test_anonymous_pages_of_either_file(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nAnonPages:   {page} kB\n")
    assert settings.anonymous_pages(tmp_path) == 1024
    (tmp_path / "vmstat").write_text("nr_free_pages 5\nnr_anon_pages 77\nnr_anon_transparent_hugepages 1\n")
    assert settings.anonymous_pages(tmp_path) == 77
    (tmp_path / "vmstat").write_text("nr_anon_pages many\n")
    assert settings.anonymous_pages(tmp_path) == 1024
    (tmp_path / "meminfo").write_text("AnonPages: 5\n")
    with pytest.raises(HostError, match="anonymous"):
        settings.anonymous_pages(tmp_path)


def test_anonymous_pages_of_this_machine() -> None:
    """Both files tell about the same number."""
    before, after = 0, 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("AnonPages:"):
            before = int(line.split()[1]) * 1024
    after = settings.anonymous_pages() * os.sysconf("SC_PAGE_SIZE")
    assert before > 0 and 0.25 < after / before < 4

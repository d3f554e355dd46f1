"""The minimal kernel's fragments, what is built when, and what a bundle takes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from casemate import config
from casemate.errors import GuestError, GuestMissing, HostError, UsageError
from casemate.vm.guest import kernel_build, kernel_config, kernels, packages
from casemate.vm.guest.builder import _needed
from casemate.vm.guest.kernel_config import Fragment, check, merge, parse, text
from casemate.vm.guest.packages import Package

SOURCE = Package("linux-source-6.1", "6.1.9-1", "a" * 64, 10, "linux-source-6.1_6.1.9-1_all.deb")


# ---- fragments


def test_a_fragment_is_read() -> None:
    lines = ["# why", "CONFIG_A=y", "", "CONFIG_B=m", "# CONFIG_C is not set", 'CONFIG_D="a b"', "CONFIG_E=-3"]
    made = parse("x", "\n".join([*lines, "CONFIG_F=0x1f"]))
    assert made.options == {"A": "y", "B": "m", "C": "n", "D": '"a b"', "E": "-3", "F": "0x1f"}


@pytest.mark.parametrize(
    "line", ["CONFIG_A", "CONFIG_A=n", "CONFIG_A=yes", "A=y", "CONFIG_A=y # why", "# CONFIG_A is off", 'CONFIG_A="']
)
def test_a_line_that_is_no_option_is_an_error_with_its_place(line: str) -> None:
    with pytest.raises(GuestError, match="fragment virtio, line 2: "):
        parse("virtio", f"CONFIG_B=y\n{line}\n")


def test_an_option_that_is_there_twice_is_an_error() -> None:
    with pytest.raises(GuestError, match="line 2: CONFIG_A is there twice"):
        parse("x", "CONFIG_A=y\nCONFIG_A=y\n")


def test_fragments_may_agree_and_not_disagree() -> None:
    one, same, other = Fragment("one", {"A": "y"}), Fragment("same", {"A": "y"}), Fragment("other", {"A": "m"})
    assert merge([one, same]) == {"A": ("y", "one")}
    with pytest.raises(GuestError, match="one and other disagree: CONFIG_A is y in one and m in the other"):
        merge([one, other])


def test_the_users_own_options_win() -> None:
    merged = merge([Fragment("one", {"A": "y", "B": "y"}), Fragment("mine", {"A": "n"}, own=True)])
    assert merged == {"A": ("n", "mine"), "B": ("y", "one")}
    assert text(merged) == "# CONFIG_A is not set\nCONFIG_B=y\n"


def test_options_that_were_taken_pass() -> None:
    merged = merge([parse("x", '# CONFIG_A is not set\nCONFIG_B=m\nCONFIG_C="t"\nCONFIG_D=4\n')])
    check(merged, '# CONFIG_A is not set\nCONFIG_B=m\nCONFIG_C="t"\nCONFIG_D=4\nCONFIG_E=y\n')
    check(merged, 'CONFIG_B=m\nCONFIG_C="t"\nCONFIG_D=4\n')


@pytest.mark.parametrize(
    ("asked", "got", "message"),
    [
        ("CONFIG_A=y", "", "CONFIG_A=y of net is n"),
        ("CONFIG_A=y", "CONFIG_A=m", "CONFIG_A=y of net is m"),
        ("# CONFIG_A is not set", "CONFIG_A=y", "CONFIG_A=n of net is y"),
        ('CONFIG_A="x"', 'CONFIG_A=""', 'CONFIG_A="x" of net is ""'),
    ],
)
def test_an_option_that_was_not_taken_is_an_error_with_its_fragment(asked: str, got: str, message: str) -> None:
    with pytest.raises(GuestError) as caught:
        check(merge([parse("net", asked)]), got)
    assert caught.value.message == f"the kernel did not take {message}"


def test_our_fragments_agree_and_have_what_a_guest_needs() -> None:
    merged = merge(kernel_config.load())
    names = {fragment.name for fragment in kernel_config.load()}
    assert {"base", "virtio", "filesystems", "network", "containers", "security", "dax", "late-binding"} == names
    for option in ("VIRTIO_PCI", "VIRTIO_BLK", "VIRTIO_CONSOLE", "EROFS_FS", "VIRTIO_FS", "DEVTMPFS_MOUNT", "SECCOMP"):
        assert merged[option][0] == "y", option  # nothing could be loaded before they are there


def test_remarks_do_not_make_another_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.config").write_text("CONFIG_A=y\n")
    monkeypatch.setattr(kernel_config, "DIRECTORY", tmp_path)
    first = kernel_config.digest(kernel_config.load())
    (tmp_path / "a.config").write_text("# because\nCONFIG_A=y\n")
    assert kernel_config.digest(kernel_config.load()) == first
    (tmp_path / "a.config").write_text("CONFIG_A=m\n")
    assert kernel_config.digest(kernel_config.load()) != first


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        kernel_config.load([tmp_path / "missing"])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no text"):
        kernel_config.load([tmp_path / "binary"])


# ---- building


class Bench:
    """A cache with a kernel's source that is one makefile, which does what the kernel's does, in a moment."""

    MAKEFILE = """
allnoconfig:
\t@cp $(KCONFIG_ALLCONFIG) $(O)/.config
\t@test ! -e $(CURDIR)/refuse || sed -i /CONFIG_A=/d $(O)/.config
modules:
vmlinux:
\t@echo '  CC      main.o'; test ! -e $(CURDIR)/break || { echo 'main.c:1:1: error: broken'; exit 2; }
\t@cp /bin/true $(O)/vmlinux
modules_install:
\t@mkdir -p $(INSTALL_MOD_PATH)/lib/modules/6.1.9-test
\t@touch $(INSTALL_MOD_PATH)/lib/modules/6.1.9-test/modules.builtin
"""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = top / "cache"
        self.fragments = top / "fragments"
        self.fragments.mkdir()
        self.said: list[str] = []
        self.source = SOURCE
        self.extra: list[str] = []
        self.compiler = "gcc 12"
        self.write("CONFIG_A=y\n")
        monkeypatch.setattr(config, "machine", lambda: "x86_64")
        monkeypatch.setattr(kernel_config, "DIRECTORY", self.fragments)
        monkeypatch.setattr(kernel_build, "check_host", lambda: None)
        monkeypatch.setattr(kernel_build, "_compiler", lambda: self.compiler)
        monkeypatch.setattr(kernel_build, "_source", lambda *_: self.source)
        monkeypatch.setattr(packages, "unpack", self._unpack)

    def write(self, options: str) -> None:
        (self.fragments / "base.config").write_text(options)

    def _unpack(self, listed: object, store: Path, into: Path) -> None:
        tree = into / "tree" / "linux"
        tree.mkdir(parents=True)
        (tree / "Makefile").write_text(self.MAKEFILE)
        for name in self.extra:
            (tree / name).touch()
        (into / "usr" / "src").mkdir(parents=True)
        archive = into / "usr" / "src" / "linux-source-6.1.tar.xz"
        subprocess.run(["tar", "-cJf", archive, "-C", into / "tree", "linux"], check=True)

    def build(self, **rest: Any) -> kernels.BuiltKernel:
        self.said.clear()
        return kernel_build.build(self.cache, self.said.append, **rest)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_kernel_is_built_once(bench: Bench) -> None:
    made = bench.build()
    assert made.release == "6.1.9-test" and made.version == "6.1.9-1" and made.modules.is_dir()
    assert made.vmlinux.read_bytes()[:4] == b"\x7fELF" and (made.path / "config").read_text() == "CONFIG_A=y\n"
    assert any("compiling" in line for line in bench.said)
    work = bench.cache / "guest" / "kernel-work"
    assert not (work / "source").exists() and not (work / "objects").exists()
    assert bench.build() == made and bench.said == []
    assert kernels.list_kernels(bench.cache) == [made] and kernels.present(bench.cache, "x86_64") == made


def test_what_makes_another_kernel(bench: Bench, tmp_path: Path) -> None:
    keys = [bench.build().key]
    bench.write("CONFIG_A=m\n")
    keys.append(bench.build().key)
    bench.compiler = "gcc 13"
    keys.append(bench.build().key)
    bench.source = Package(SOURCE.name, "6.1.10-1", "b" * 64, 10, SOURCE.file)
    keys.append(bench.build().key)
    (tmp_path / "mine").write_text("CONFIG_B=y\n")
    keys.append(bench.build(more=[tmp_path / "mine"]).key)
    assert len(set(keys)) == 5
    assert kernels.list_kernels(bench.cache)[0].key == keys[4]
    assert bench.build().key == keys[3] and bench.said == []  # it is there, and from now on the one in use
    found = kernels.present(bench.cache, "x86_64")
    assert found is not None and found.key == keys[3]


def test_an_option_that_the_kernel_does_not_take_stops_the_build(bench: Bench) -> None:
    bench.extra = ["refuse"]
    with pytest.raises(GuestError, match="did not take CONFIG_A=y of base is n"):
        bench.build()
    assert kernels.list_kernels(bench.cache) == []


def test_a_kernel_that_cannot_be_compiled_says_why_and_goes_on_later(bench: Bench) -> None:
    bench.extra = ["break"]
    with pytest.raises(GuestError, match="main.c:1:1: error: broken") as caught:
        bench.build()
    log = bench.cache / "guest" / "kernel-work" / "build.log"
    assert str(log) in caught.value.hint and "broken" in log.read_text()
    (bench.cache / "guest" / "kernel-work" / "source" / "break").unlink()
    assert bench.build().release == "6.1.9-test"
    assert "unpacking the kernel's source" not in bench.said


def test_source_and_objects_can_be_kept(bench: Bench) -> None:
    bench.build(keep=True)
    bench.write("CONFIG_A=m\n")
    bench.build()
    assert "unpacking the kernel's source" not in bench.said


def test_a_damaged_kernel_is_built_again(bench: Bench) -> None:
    made = bench.build()
    made.vmlinux.unlink()
    assert kernels.list_kernels(bench.cache) == [] and kernels.present(bench.cache, "x86_64") is None
    assert bench.build() == made and made.vmlinux.exists()


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("apt-get", "apt-cache", "dpkg-deb", "ld", "make", "perl", "xz", "tar", "bc"):
        (tmp_path / name).symlink_to("/bin/true")
    (tmp_path / "gcc").write_text("#!/bin/sh\n! read -r line || [ \"$line\" != '#include <gelf.h>' ]\n")
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        kernel_build.check_host()
    assert caught.value.message == "building a kernel needs flex, bison, gelf.h"
    assert caught.value.hint == "apt-get install --no-install-recommends flex bison libelf-dev"


# ---- what a bundle takes


def test_the_choice(bench: Bench) -> None:
    with pytest.raises(GuestMissing, match="casemate guest kernel build"):
        kernels.choose(bench.cache, "x86_64", "minimal")
    with pytest.raises(UsageError, match="no kernel is called 'newest'"):
        kernels.choose(bench.cache, "x86_64", "newest")
    assert kernels.choose(bench.cache, "x86_64", "auto") is None
    made = bench.build()
    assert kernels.choose(bench.cache, "x86_64", "auto") == made == kernels.choose(bench.cache, "x86_64", "minimal")
    assert kernels.choose(bench.cache, "x86_64", "debian") is None
    assert kernels.choose(bench.cache, "aarch64", "auto") is None


def test_a_kernel_of_other_fragments_is_not_taken_by_itself(bench: Bench, tmp_path: Path) -> None:
    bench.build()
    bench.write("CONFIG_A=m\n")
    assert kernels.choose(bench.cache, "x86_64", "auto") is None
    (tmp_path / "mine").write_text("CONFIG_A=y\n")  # the user's own options are his choice
    made = bench.build(more=[tmp_path / "mine"])
    assert kernels.choose(bench.cache, "x86_64", "auto") == made


def test_kernels_by_their_keys(bench: Bench) -> None:
    with pytest.raises(GuestMissing, match="there is no kernel"):
        kernels.find(bench.cache, "")
    first = bench.build()
    bench.write("CONFIG_A=m\n")
    second = bench.build()
    assert kernels.find(bench.cache, "") == second and kernels.find(bench.cache, first.key[:12]) == first
    with pytest.raises(GuestMissing, match="begins with zz"):
        kernels.find(bench.cache, "zz")
    kernels.remove(second)
    assert kernels.list_kernels(bench.cache) == [first]
    assert sorted(os.listdir(kernels.home(bench.cache))) == [first.key]


@pytest.mark.parametrize("facts", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "key": "other", "release": "r"}'])
def test_a_bad_description_is_no_kernel(tmp_path: Path, facts: str) -> None:
    made = kernels.home(tmp_path) / ("a" * 32)
    (made / "modules" / "r").mkdir(parents=True)
    (made / "vmlinux").touch()
    (made / kernels.FILE).write_text(facts)
    assert kernels.load(made) is None and kernels.list_kernels(tmp_path) == []


def test_debians_kernel_is_not_fetched_where_another_takes_its_place(bench: Bench) -> None:
    listed = [Package("crun", "1", "a" * 64, 1, "c.deb"), Package("linux-image-6.1", "1", "a" * 64, 1, "l.deb")]
    assert _needed(listed, None) == listed
    assert _needed(listed, bench.build()) == listed[:1]


def test_facts_are_plain_json(bench: Bench) -> None:
    made = bench.build()
    facts = json.loads((made.path / kernels.FILE).read_text())
    assert facts == made.facts and facts["files"] == 1 and facts["compiler"] == "gcc 12"

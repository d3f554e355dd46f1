"""Finding, listing, building and pruning bundles, with a stand-in for the packages and for the image's maker."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from casemate import config
from casemate.errors import GuestError, GuestMissing, HostError
from casemate.vm import guest
from casemate.vm.guest import builder as building
from casemate.vm.guest import bundle as bundles
from casemate.vm.guest import packages, rootfs
from casemate.vm.guest.lock import locked
from casemate.vm.guest.packages import Package
from casemate.vm.guest.recipe import Architecture, architecture
from casemate.vm.guest.tools import require, run

LISTED = [Package("linux-image-1-cloud", "6.1-1", "a" * 64, 10, "linux-image-1-cloud_6.1-1_amd64.deb")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(config, "machine", lambda: "x86_64")
    return Place(tmp_path, monkeypatch)


class Place:
    """A root, a cache, an agent, and a build in which everything that takes time is replaced."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.cache, self.package = top / "root", top / "cache", top / "casemate"
        for part in ("agent", "protocol"):
            (self.package / part).mkdir(parents=True)
        (self.package / "__init__.py").write_text("")
        self.agent("one")
        self.images = 0
        self.failure: BaseException | None = None
        self.cmdline = ("quiet",)
        monkeypatch.setattr(building, "_staged", self._staged)
        monkeypatch.setattr(rootfs, "image", self._image)
        monkeypatch.setattr(building, "require", lambda *_: "")
        monkeypatch.setattr(packages, "check_host", lambda: None)

    def agent(self, text: str) -> None:
        (self.package / "agent" / "main.py").write_text(f"# {text}\n")

    def build(self) -> guest.GuestBundle:
        return building.build(self.root, self.cache, lambda _: None, sources=self.package)

    def _staged(self, cache: Path, *_: object) -> tuple[Path, list[Package]]:
        staged = cache / "staged" / "x"
        (staged / "root").mkdir(parents=True, exist_ok=True)
        for name in ("vmlinux", "initrd.cpio"):
            (staged / name).write_text(name)
        (staged / "release").write_text("6.1.0")
        listed = [package.as_json() for package in LISTED]
        (cache / "packages.json").write_text(json.dumps({"architecture": "x86_64", "packages": listed}))
        return staged, LISTED

    def _image(self, staged: Path, sources: list[tuple[str, bytes]], work: Path, output: Path) -> None:
        self.images += 1
        output.write_bytes(b"half")
        if self.failure:
            raise self.failure
        output.write_bytes(b"".join(content for _, content in sources))


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_build_find_list(place: Place) -> None:
    made = place.build()
    assert guest.find(place.root) == made == guest.list_bundles(place.root)[0]
    assert guest.find(place.root, made.digest[:12]) == made
    assert made.kernel.read_text() == "vmlinux" and made.kernel_release == "6.1.0"
    assert names(place.root / "guest") == [".lock", made.digest, "current"]
    assert "mitigations=off" in made.cmdline("tcg")
    assert "mitigations=off" not in made.cmdline("kvm")
    assert made.manifest["packages"] == [LISTED[0].as_json()]


def test_unchanged_is_not_built_again(place: Place) -> None:
    first = place.build()
    assert place.build() == first
    assert place.images == 1


def test_a_changed_agent_makes_another_bundle_and_going_back_finds_the_first(place: Place) -> None:
    first = place.build()
    place.agent("two")
    second = place.build()
    assert second.digest != first.digest and guest.find(place.root) == second
    place.agent("one")
    assert place.build() == first and guest.find(place.root) == first
    assert place.images == 2


def test_same_files_from_other_inputs_keep_the_digest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.build()
    monkeypatch.setattr(building, "_recipe_hash", lambda: "another recipe")
    second = place.build()
    assert second.digest == first.digest and second.manifest["key"] != first.manifest["key"]
    assert place.build() == second and place.images == 2


def test_a_damaged_bundle_is_not_found_and_made_again(place: Place) -> None:
    made = place.build()
    made.root.chmod(0o644)
    os.truncate(made.root, 1)
    with pytest.raises(GuestError, match="root.erofs has 1 bytes"):
        guest.find(place.root)
    assert guest.list_bundles(place.root) == []
    assert place.build() == made and guest.find(place.root) == made
    assert names(place.root / "guest") == [".lock", made.digest, "current"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}', "{", '{"format": 1, "digest": 5}'])
def test_a_bad_manifest_is_an_error(place: Place, text: str) -> None:
    made = place.build()
    (made.path / "manifest.json").write_text(text)
    with pytest.raises(GuestError, match="damaged"):
        guest.find(place.root)


def test_a_manifest_cannot_name_a_file_elsewhere(place: Place) -> None:
    made = place.build()
    manifest = json.loads((made.path / "manifest.json").read_text())
    manifest["files"]["root"]["name"] = "../../../etc/passwd"
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GuestError, match="no name of a root"):
        guest.find(place.root)


def test_nothing_built(tmp_path: Path, place: Place) -> None:
    with pytest.raises(GuestMissing, match="casemate guest build"):
        guest.find(tmp_path)
    assert guest.list_bundles(tmp_path) == []
    made = place.build()
    with pytest.raises(GuestMissing):
        guest.find(place.root, "0" * 64)
    with pytest.raises(GuestMissing):
        guest.find(place.root, made.digest[:4])


def test_a_bundle_of_another_architecture(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.build()
    monkeypatch.setattr(config, "machine", lambda: "aarch64")
    with pytest.raises(GuestMissing, match="aarch64"):
        guest.find(place.root)
    with pytest.raises(HostError, match="aarch64"):
        place.build()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_build_leaves_nothing(place: Place, failure: BaseException) -> None:
    first = place.build()
    place.agent("two")
    place.failure = failure
    with pytest.raises(HostError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        place.build()
    if isinstance(failure, OSError):
        assert "no space is left" in str(caught.value)
    assert guest.find(place.root) == first
    assert names(place.root / "guest") == [".lock", first.digest, "current"]
    assert names(place.cache / "guest" / "staged") == ["x"]


def test_what_a_killed_build_left_is_swept(place: Place) -> None:
    (place.root / "guest" / ".build-left").mkdir(parents=True)
    (place.cache / "guest" / "staged" / ".stage-left").mkdir(parents=True)
    made = place.build()
    assert names(place.root / "guest") == [".lock", made.digest, "current"]
    assert names(place.cache / "guest" / "staged") == ["x"]


def test_builds_at_once_agree(place: Place) -> None:
    found: list[guest.GuestBundle] = []
    threads = [threading.Thread(target=lambda: found.append(place.build())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len({bundle.digest for bundle in found}) == 1
    assert place.images == 1


def test_the_lock_waits_for_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from casemate.vm.guest.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    waited: list[bool] = []

    def let_go() -> None:
        waited.append(True)
        assert other.stdin is not None
        other.stdin.close()

    with locked(tmp_path, let_go):
        assert waited == [True]
    assert other.wait(10) == 0
    other.stdout.close()


def test_prune_keeps_the_current_and_the_newest(place: Place) -> None:
    made = []
    for number, text in enumerate(("one", "two", "three", "four")):
        place.agent(text)
        made.append(place.build())
        os.utime(made[-1].path, (number, number))
    assert [bundle.digest for bundle in guest.list_bundles(place.root)] == [b.digest for b in reversed(made)]
    bundles.select(place.root, made[0].digest)
    assert set(guest.prune(place.root, keep=1)) == {made[1].digest, made[2].digest}
    assert guest.prune(place.root) == [made[3].digest]
    assert names(place.root / "guest") == sorted([".lock", made[0].digest, "current"])


def test_no_agent_is_an_error(place: Place) -> None:
    shutil.rmtree(place.package / "agent")
    with pytest.raises(GuestError, match="no agent"):
        place.build()


# ---- packages


class FakeApt(packages.Apt):
    """Gives out the content it was told, and counts."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[str] = []

    def download(self, packages: object, directory: Path) -> None:
        for package in packages:  # type: ignore[attr-defined]
            self.asked.append(package.name)
            (directory / package.file).write_bytes(self.content)


def package(content: bytes) -> Package:
    import hashlib

    return Package("crun", "1", hashlib.sha256(content).hexdigest(), len(content), "crun_1_amd64.deb")


@pytest.mark.parametrize("present", [None, b"", b"cont", b"CONTENT", b"content and more"])
def test_a_package_that_is_not_whole_is_fetched_again(tmp_path: Path, present: bytes | None) -> None:
    if present is not None:
        (tmp_path / "crun_1_amd64.deb").write_bytes(present)
    apt, wanted = FakeApt(b"content"), package(b"content")
    for _ in range(2):
        packages.fetch([wanted], tmp_path, apt, lambda _: None)
    assert apt.asked == ["crun"] and names(tmp_path) == [wanted.file] and packages.good(wanted, tmp_path)


def test_a_package_that_arrives_changed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="wrong checksum"):
        packages.fetch([package(b"content")], tmp_path, FakeApt(b"CONTENT"), lambda _: None)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "change", [{"file": "../x"}, {"size": "1"}, {"sha256": "zz"}, {"more": 1}, {"name": None}], ids=lambda c: str(c)
)
def test_a_bad_package_list_is_not_read(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "packages.json").write_text(
        json.dumps({"architecture": "x86_64", "packages": [{**LISTED[0].as_json(), **change}]})
    )
    assert building._read_list(tmp_path, architecture("x86_64")) is None


def test_resolve_takes_libraries_and_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depends = {
        "linux-image-cloud-amd64": "linux-image-6.1.0-9-cloud-amd64 (= 6.1.9)",
        "python3": "python3.11 (>= 3.11.2-1~), libpython3-stdlib (= 3.11.2-1)",
    }

    def answer(command: list[str], package: str) -> str:
        assert package == "apt"
        if command[0] == "apt-get":
            return (
                "'http://x/libz9.deb' libz9_1%3a2-1_amd64.deb 10 \n'http://x/dpkg.deb' dpkg_1_amd64.deb 10 MD5Sum:x\n"
                "'http://x/crun.deb' crun_1_amd64.deb 10 \n"
            )
        text = ""
        for word in command[command.index("Acquire::Retries=3") + 1 :]:
            name, _, version = word.partition("=")
            if name in depends:
                text += f"Package: {name}\nVersion: 1\nDepends: {depends[name]}\n\n"
            elif version or name.startswith("linux-image"):
                text += (
                    f"Package: {name}\nVersion: {version or '6.1.9'}\nArchitecture: amd64\nSize: 10\n"
                    f"SHA256: {'a' * 64}\nDescription-en: text\n more text\n\n"
                )
        return text

    monkeypatch.setattr(packages, "run", answer)
    arch: Architecture = architecture("x86_64")
    found = packages.Apt(tmp_path, arch, own_lists=False).resolve()
    assert [(p.name, p.version, p.file) for p in found] == [
        ("crun", "1", "crun_1_amd64.deb"),
        ("libz9", "1:2-1", "libz9_1%3a2-1_amd64.deb"),
        ("linux-image-6.1.0-9-cloud-amd64", "6.1.9", "linux-image-6.1.0-9-cloud-amd64_6.1.9_amd64.deb"),
    ]


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(HostError, match="apt-get install the-package"):
        require("casemate-no-such-program", "the-package")


def test_a_failing_program_says_why() -> None:
    with pytest.raises(GuestError, match="sh failed: it broke"):
        run(["sh", "-c", "echo first >&2; echo it broke >&2; exit 3"], "dash")

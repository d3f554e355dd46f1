"""The parsers and writers of a guest build: ELF, cpio, bzImage, kernel modules."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import GuestError
from casemate.vm.guest import initrd
from casemate.vm.guest.cpio import Archive
from casemate.vm.guest.elf import Elf, Links
from casemate.vm.guest.kernel import extract
from casemate.vm.guest.modules import ModuleTree, depends, unsigned

SIGNED = b"~Module signature appended~\n"


def elf(sections: dict[str, bytes], order: str = "<") -> bytes:
    """An ELF file with nothing but sections."""
    names = b"\0"
    body = b""
    headers = [bytes(64)]
    for name, content in {**sections, ".shstrtab": b""}.items():
        at = len(names)
        names += name.encode() + b"\0"
        if name == ".shstrtab":
            content = names
        headers.append(struct.pack(order + "IIQQQQIIQQ", at, 1, 0, 0, 64 + len(body), len(content), 0, 0, 1, 0))
        body += content
    ident = b"\x7fELF\x02" + (b"\x01" if order == "<" else b"\x02") + b"\x01" + bytes(9)
    head = struct.pack(
        order + "HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 56, 0, 64, len(headers), len(headers) - 1
    )
    return ident + head + body + b"".join(headers)


def module(*needs: str, aliases: tuple[str, ...] = ()) -> bytes:
    info = ["license=GPL", "depends=" + ",".join(needs), "name=x", *(f"alias={alias}" for alias in aliases)]
    return elf({".text": b"code", ".modinfo": "".join(f"{text}\0" for text in info).encode()})


def test_elf_section_in_both_byte_orders() -> None:
    for order in "<>":
        made = Elf(elf({".a": b"first", ".b": b"second"}, order), "x")
        assert made.section(".b") == b"second"
        assert made.section(".c") is None


def test_elf_links_of_a_program_of_the_host() -> None:
    found = Elf(Path("/bin/sh").resolve().read_bytes(), "sh").links()
    assert isinstance(found, Links)
    assert "libc.so.6" in found.needed
    assert found.interpreter.startswith("/lib")


def test_elf_without_dynamic_segment_has_no_links() -> None:
    assert Elf(module(), "x").links() is None


@given(st.data())
def test_elf_of_hostile_bytes_is_an_error_or_an_answer(data: st.DataObject) -> None:
    whole = bytearray(elf({".modinfo": b"depends=a\0"}))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(5, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        made = Elf(cut, "x")
        made.section(".modinfo")
        made.links()
    except GuestError:
        pass


def test_elf_with_a_table_beyond_every_index() -> None:
    whole = bytearray(elf({".modinfo": b"depends=a\0"}))
    whole[47] = 0x80  # the highest byte of e_shoff
    with pytest.raises(GuestError, match="damaged"):
        Elf(bytes(whole), "x").section(".modinfo")


def test_cpio_is_read_by_cpio(tmp_path: Path) -> None:
    archive = Archive()
    archive.directory("bin")
    archive.file("bin/x", b"content", 0o755)
    archive.file("empty", b"")
    archive.symlink("bin/y", "x")
    archive.character_device("console", 5, 1)
    data = archive.finish()
    assert len(data) % 512 == 0
    program = shutil.which("cpio")
    if program is None:
        pytest.skip("cpio is not installed")
    listing = subprocess.run([program, "-itv", "--numeric-uid-gid"], input=data, capture_output=True, check=True)
    lines = [line.split() for line in listing.stdout.decode().splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "bin"), ("-rwxr-xr-x", "bin/x"), ("-rw-r--r--", "empty"), ("lrwxrwxrwx", "x"),
        ("crw-------", "console"),
    ]  # fmt: skip
    subprocess.run([program, "-id", "--quiet", "bin/x", "bin"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/x").read_bytes() == b"content"


def test_cpio_depends_on_nothing_but_the_content() -> None:
    def make() -> bytes:
        archive = Archive()
        archive.file("a", b"1")
        return archive.finish()

    assert make() == make()


def bzimage(payload: bytes, version: int = 0x020F) -> bytes:
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload


KERNEL = b"\x7fELF" + bytes(range(256)) * 40
SIZE = struct.pack("<I", len(KERNEL))


@pytest.mark.parametrize("form", ["gzip", "xz", "lz4", "zstd", "plain"])
def test_kernel_of_each_compression(form: str) -> None:
    if form == "plain":
        payload = KERNEL
    elif form == "gzip":
        payload = gzip.compress(KERNEL)
    elif form == "xz":
        payload = lzma.compress(KERNEL) + SIZE
    else:
        if shutil.which(form) is None:
            pytest.skip(f"{form} is not installed")
        flags = ["-l"] if form == "lz4" else []
        payload = subprocess.run([form, "-c", *flags], input=KERNEL, capture_output=True, check=True).stdout + SIZE
    assert extract(bzimage(payload)) == KERNEL


def test_kernel_of_unknown_compression_is_left_to_the_boot_protocol() -> None:
    assert extract(bzimage(b"BZh9" + bytes(100))) is None
    assert extract(bzimage(KERNEL, version=0x0207)) is None


@pytest.mark.parametrize(
    "image",
    [
        b"", bytes(4096), bzimage(gzip.compress(KERNEL))[:-1], bzimage(lzma.compress(KERNEL)[:-40] + SIZE),
        bzimage(lzma.compress(KERNEL) + struct.pack("<I", len(KERNEL) - 1)),
        bzimage(lzma.compress(KERNEL) + b"\xff\xff\xff\xff"), bzimage(gzip.compress(b"no ELF file at all")),
    ],
)  # fmt: skip
def test_damaged_kernel_is_an_error(image: bytes) -> None:
    with pytest.raises(GuestError):
        extract(image)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "kernel/drivers").mkdir(parents=True)
    (tmp_path / "modules.builtin").write_text("kernel/lib/crc32.ko\n")
    return tmp_path


def put(tree: Path, name: str, *needs: str) -> None:
    (tree / "kernel/drivers" / name).write_bytes(module(*needs))


def test_modules_come_after_what_they_need(tree: Path) -> None:
    put(tree, "virtio-blk.ko", "virtio_ring", "virtio", "crc32")
    put(tree, "virtio.ko", "virtio_ring")
    put(tree, "virtio_ring.ko")
    put(tree, "unused.ko")
    modules = ModuleTree(tree)
    assert modules.order(["virtio_blk", "virtio"]) == ["virtio_ring", "virtio", "virtio_blk"]
    assert modules.has("virtio_blk") and modules.has("crc32") and not modules.has("other")


def test_tables_for_modprobe(tree: Path) -> None:
    put(tree, "top.ko", "mid", "low", "crc32")
    put(tree, "mid.ko", "low")
    (tree / "kernel/drivers/low.ko").write_bytes(module(aliases=("net-pf-9", "block-major-7-*", "a b", "fs-low")))
    modules = ModuleTree(tree)
    assert modules.release == tree.name
    assert modules.tables(modules.order(["top"])) == {
        "modules.dep": "low.ko:\nmid.ko: low.ko\ntop.ko: mid.ko low.ko\n",
        "modules.alias": "alias block-major-7-* low\nalias fs-low low\nalias net-pf-9 low\n",
    }


def test_compressed_module_is_read(tree: Path) -> None:
    (tree / "kernel/drivers/a.ko.xz").write_bytes(lzma.compress(module("b")))
    put(tree, "b.ko")
    assert ModuleTree(tree).order(["a"]) == ["b", "a"]


def test_modules_in_a_circle_or_missing_are_errors(tree: Path) -> None:
    put(tree, "a.ko", "b")
    put(tree, "b.ko", "a")
    put(tree, "c.ko", "gone")
    with pytest.raises(GuestError, match="circle"):
        ModuleTree(tree).order(["a"])
    with pytest.raises(GuestError, match="no module gone"):
        ModuleTree(tree).order(["c"])


def test_module_without_needs() -> None:
    assert depends(module(), "x") == []
    assert depends(elf({".text": b""}), "x") == []


def test_signature_is_taken_off() -> None:
    plain = module("a")
    signature = b"s" * 300
    signed = plain + signature + bytes(8) + struct.pack(">I", len(signature)) + SIGNED
    assert unsigned(signed) == plain
    assert unsigned(plain) == plain
    with pytest.raises(GuestError):
        unsigned(b"x" * 20 + struct.pack(">I", 1000) + SIGNED)


def test_init_loads_a_device_only_where_it_is() -> None:
    text = initrd.script(["virtio", "erofs"], {1: ["failover", "virtio_net"], 5: []})
    assert "load virtio erofs\n" in text
    assert "0x0001) load failover virtio_net;;\n" in text
    assert "0x0005" not in text
    assert subprocess.run(["sh", "-n"], input=text.encode(), check=False).returncode == 0

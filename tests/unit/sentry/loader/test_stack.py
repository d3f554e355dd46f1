"""What lies on a new program's stack."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.loader.stack import AT_EXECFN, AT_NULL, AT_PAGESZ, AT_PLATFORM, AT_RANDOM, build, processor_entries

TOP = 0x7FFF_0000_0000
strings = st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"x")), max_size=12)


@given(strings.filter(bool), strings, st.binary(min_size=1, max_size=60).map(lambda text: text.replace(b"\0", b"/")))
def test_everything_is_where_the_program_looks(argv: list[bytes], env: list[bytes], name: bytes) -> None:
    image = build(TOP, argv, env, name, [(AT_PAGESZ, 4096)])
    assert image.pointer % 16 == 0
    assert image.pointer + len(image.data) == TOP

    def word(address: int) -> int:
        return int(struct.unpack_from("<Q", image.data, address - image.pointer)[0])

    def string(address: int) -> bytes:
        at = address - image.pointer
        return image.data[at : image.data.index(b"\0", at)]

    assert word(image.pointer) == len(argv)
    at = image.pointer + 8
    assert [string(word(at + 8 * n)) for n in range(len(argv))] == argv
    at += 8 * len(argv)
    assert word(at) == 0
    at += 8
    assert [string(word(at + 8 * n)) for n in range(len(env))] == env
    at += 8 * len(env)
    assert word(at) == 0
    at += 8
    vector = {}
    start = at
    while word(at) != AT_NULL:
        vector[word(at)] = word(at + 8)
        at += 16
    assert image.auxv == image.data[start - image.pointer : at + 16 - image.pointer]
    assert vector[AT_PAGESZ] == 4096
    assert string(vector[AT_EXECFN]) == name
    assert string(vector[AT_PLATFORM]) == b"x86_64"
    assert image.pointer < vector[AT_RANDOM] <= TOP - 16
    between = image.data[image.arg_start - image.pointer : image.arg_end - image.pointer]
    assert between == b"".join(text + b"\0" for text in argv)
    between = image.data[image.env_start - image.pointer : image.env_end - image.pointer]
    assert between == b"".join(text + b"\0" for text in env)


def test_random_bytes_differ() -> None:
    first, second = (build(TOP, [b"a"], [], b"a", []) for _ in range(2))
    assert first.pointer == second.pointer
    assert first.data != second.data


def test_the_processor_is_told() -> None:
    kinds = [kind for kind, _ in processor_entries()]
    assert 16 in kinds  # AT_HWCAP

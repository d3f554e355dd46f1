"""What becomes of capabilities when user ids change, capabilities(7)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.creds import (
    ALL_CAPS,
    CAP_CHOWN,
    CAP_SETUID,
    CAPABILITIES,
    FS_CAPS,
    SECBIT_KEEP_CAPS,
    SECBIT_NO_SETUID_FIXUP,
    Credentials,
)


def test_root_has_all_and_others_none() -> None:
    assert Credentials().permitted == Credentials().effective == ALL_CAPS
    assert Credentials(1000, 1000).permitted == 0
    assert Credentials(0, 0, bounding=5).permitted == 5
    assert len(CAPABILITIES) == 41


def test_effective_ones_go_and_come_back_with_the_effective_id() -> None:
    creds = Credentials()
    creds.set_uids(0, 1000, 0)
    assert (creds.effective, creds.permitted) == (0, ALL_CAPS)
    creds.set_uids(0, 0, 0)
    assert creds.effective == ALL_CAPS


def test_all_go_with_the_last_zero() -> None:
    creds = Credentials()
    creds.ambient = creds.inheritable = 1
    creds.set_uids(1000, 1000, 1000)
    assert (creds.permitted, creds.effective, creds.ambient) == (0, 0, 0)
    creds.set_uids(0, 0, 0)  # a change that the caller would not be allowed, and that brings nothing
    assert creds.effective == 0


def test_kept_on_request() -> None:
    creds = Credentials()
    creds.securebits = SECBIT_KEEP_CAPS
    creds.set_uids(1000, 1000, 1000)
    assert (creds.permitted, creds.effective) == (ALL_CAPS, 0)
    creds = Credentials()
    creds.securebits = SECBIT_NO_SETUID_FIXUP
    creds.set_uids(1000, 1000, 1000)
    assert creds.effective == ALL_CAPS


def test_those_of_files_go_with_the_file_system_id() -> None:
    creds = Credentials()
    creds.set_fsuid(1000)
    assert creds.effective == ALL_CAPS & ~FS_CAPS
    assert creds.capable(CAP_SETUID)
    assert not creds.capable(CAP_CHOWN)
    creds.set_fsuid(0)
    assert creds.effective == ALL_CAPS


def test_a_copy_is_another_one() -> None:
    creds = Credentials(5, 6, (7,))
    copy = creds.copy()
    copy.set_uids(1, 2, 3)
    assert (creds.uid, creds.euid) == (5, 5)
    assert (copy.groups, copy.gid) == ((7,), 6)


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 2])] * 3), max_size=6), st.sampled_from([0, SECBIT_KEEP_CAPS]))
def test_never_more_than_permitted(changes: list[tuple[int, int, int]], bits: int) -> None:
    creds = Credentials()
    creds.securebits = bits
    permitted = creds.permitted
    for change in changes:
        creds.set_uids(*change)
        assert creds.effective & ~creds.permitted == 0
        assert creds.permitted & ~permitted == 0
        assert creds.fsuid == creds.euid
        permitted = creds.permitted

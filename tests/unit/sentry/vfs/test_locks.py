"""Record locks against a model that keeps a note for each byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.vfs.locks import F_RDLCK, F_UNLCK, F_WRLCK, Locks

SIZE = 24
step = st.tuples(
    st.integers(0, 2), st.integers(0, SIZE - 1), st.integers(1, SIZE), st.sampled_from([F_RDLCK, F_WRLCK, F_UNLCK])
)


class Counter:
    """Counts how often it is woken."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self, mask: int) -> None:
        self.woken += 1


@given(st.lists(step, max_size=40))
def test_as_byte_by_byte(steps: list[tuple[int, int, int, int]]) -> None:
    owners = [object(), object(), object()]
    locks = Locks()
    # For each owner and byte: None, or whether it is exclusive.
    model: list[list[bool | None]] = [[None] * SIZE for _ in owners]
    for who, start, length, kind in steps:
        end = min(start + length, SIZE)
        exclusive = kind == F_WRLCK
        if kind != F_UNLCK:
            blocked = any(
                held is not None and (held or exclusive)
                for other in range(3) if other != who for held in model[other][start:end]
            )
            found = locks.conflict(owners[who], start, end, exclusive)
            assert (found is not None) == blocked
            if found is not None:
                assert found.owner is not owners[who]
                assert found.start < end and start < found.end
                continue
        waiter = Counter()
        locks.queue.add(waiter)
        before = model[who][start:end]
        locks.put(owners[who], start, end, kind, 1)
        locks.queue.remove(waiter)
        model[who][start:end] = [None if kind == F_UNLCK else exclusive] * (end - start)
        if any(held and not now for held, now in zip(before, model[who][start:end], strict=True)):
            assert waiter.woken, "what gets less than it had must wake those who wait"
        for index, owner in enumerate(owners):
            shown: list[bool | None] = [None] * SIZE
            mine = [one for one in locks.ranges if one.owner is owner]
            for one in mine:
                assert shown[one.start : one.end] == [None] * (one.end - one.start), "ranges of one owner overlap"
                shown[one.start : one.end] = [one.exclusive] * (one.end - one.start)
            assert shown == model[index]
            edges = sorted((one.start, one.end, one.exclusive) for one in mine)
            for (_, left, first), (right, _, second) in zip(edges, edges[1:], strict=False):
                assert left < right or first != second, "neighbours of one kind are one lock"
    locks.drop(owners[0])
    assert all(one.owner is not owners[0] for one in locks.ranges)

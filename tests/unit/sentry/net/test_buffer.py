"""A queue of bytes gives what was put, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.net.buffer import SMALL, ByteQueue

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([1, 2, 100, SMALL - 1, SMALL, SMALL + 1, 20000])),
        st.tuples(st.sampled_from(["take", "peek"]), st.sampled_from([1, 3, 99, SMALL, 5000, 1 << 20])),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_is_a_queue(steps: list[tuple[str, int]]) -> None:
    queue = ByteQueue()
    model = bytearray()
    count = 0
    for what, size in steps:
        if what == "put":
            data = bytes((count + at) % 251 for at in range(size))
            count += size
            queue.put(data)
            model += data
        elif what == "peek":
            assert queue.peek(size) == model[:size]
        elif model:
            assert queue.take(size) == model[:size]
            del model[:size]
        assert queue.size == len(model)


def test_small_writes_are_joined() -> None:
    queue = ByteQueue()
    for _ in range(3 * SMALL):
        queue.put(b"x")
    assert len(queue._chunks) <= 4
    queue.clear()
    assert queue.size == 0 and queue.peek(10) == b""

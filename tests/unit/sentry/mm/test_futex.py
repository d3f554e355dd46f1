"""The queues of futexes, against a plain list of who waits in which order."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.sentry.mm.futex import Futexes, Waiter


class Sleeper:
    """A task, as far as futexes know one."""

    def __init__(self) -> None:
        self.blocked: dict[str, Any] = {}
        self.thread = object()
        self.woken = 0

    def wake(self, mask: int) -> None:
        self.woken += 1


words = st.integers(0, 2)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(0, 5), words, st.integers(1, 3)),
        st.tuples(st.just("waits for many"), st.integers(0, 5)),
        st.tuples(st.just("wake"), words, st.integers(0, 3), st.integers(1, 3)),
        st.tuples(st.just("move"), words, words),
        st.tuples(st.just("signal"), st.integers(0, 5)),
        st.tuples(st.just("end"), st.integers(0, 5)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(actions)
def test_as_a_plain_list(steps: list[Any]) -> None:
    table = Futexes()
    tasks = [Sleeper() for _ in range(6)]
    owner = object()
    waiting: list[tuple[int, int, int]] = []  # task, word, bits; in the order of coming

    def sleep(number: int, entries: list[tuple[int, int]]) -> None:
        task: Any = tasks[number]
        waiters = [Waiter(task, word * 4, (owner, word), bits) for word, bits in entries]
        table.add(task, waiters)
        task.blocked = {"futex": waiters}
        for waiter in waiters:
            waiter.queue.add(task)
        waiting.extend((number, word, bits) for word, bits in entries)

    def goes_on(number: int) -> None:
        """What the call does when it is made again."""
        table.forget(tasks[number])  # type: ignore[arg-type]
        tasks[number].blocked = {}
        waiting[:] = [entry for entry in waiting if entry[0] != number]

    for step in steps:
        name, *rest = step
        busy = {number for number, _, _ in waiting}
        if name == "wait" and rest[0] not in busy:
            sleep(rest[0], [(rest[1], rest[2])])
        elif name == "waits for many" and rest[0] not in busy:
            sleep(rest[0], [(word, 3) for word in range(3)])
        elif name == "wake":
            word, count, bits = rest
            due = [entry for entry in waiting if entry[1] == word and entry[2] & bits][:count]
            before = [task.woken for task in tasks]
            assert table.wake((owner, word), count, bits) == len(due)
            for number, task in enumerate(tasks):
                assert task.woken - before[number] == sum(entry[0] == number for entry in due)
            for number, _, _ in due:
                goes_on(number)
        elif name == "move":
            source, target = rest
            if source != target:
                moved = [entry for entry in waiting if entry[1] == source]
                for waiter in table.live((owner, source)):
                    table.move(waiter, target * 4, (owner, target))
                waiting[:] = [entry for entry in waiting if entry[1] != source]
                waiting.extend((number, target, bits) for number, _, bits in moved)
        elif name == "signal":
            # The call ends without a word to the table.
            tasks[rest[0]].blocked = {}
            waiting[:] = [entry for entry in waiting if entry[0] != rest[0]]
        elif name == "end":
            goes_on(rest[0])
        for word in range(3):
            here: list[Any] = [(waiter.task, waiter.bitset) for waiter in table.live((owner, word))]
            assert here == [(tasks[number], bits) for number, at, bits in waiting if at == word]
    for number in range(6):
        goes_on(number)
    assert len(table) == 0
    assert not table._queues

"""The list of mappings, against pages in a dictionary."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.sentry.mm.vma import VM_DONTCOPY, VM_LOCKED, VM_SEALED, VM_SHARED, Regions, Vma

PAGE = 4096
TOP = 64


class Counted:
    """A file that only counts who holds it."""

    def __init__(self) -> None:
        self.refs = 1

    def incref(self) -> Counted:
        self.refs += 1
        return self

    def decref(self) -> None:
        self.refs -= 1
        assert self.refs > 0


Page = tuple[int, int, int | None, int]
"""Rights, flags, which file, and which page of it."""


def pages_of(regions: Regions, files: list[Any]) -> dict[int, Page]:
    """What the list says, page by page; and that the list is in order."""
    found: dict[int, Page] = {}
    last = 0
    assert regions.starts == [vma.start for vma in regions]
    for vma in regions:
        assert last <= vma.start < vma.end
        last = vma.end
        for at in range(vma.start, vma.end, PAGE):
            which = files.index(vma.file) if vma.file is not None else None
            page = (vma.offset + at - vma.start) // PAGE if which is not None else 0
            found[at // PAGE] = (vma.prot, vma.flags, which, page)
    return found


def longest(model: dict[int, Page]) -> int:
    """Of how few mappings these pages can be made."""
    count = 0
    for page, (prot, flags, which, offset) in model.items():
        before = model.get(page - 1)
        count += before != (prot, flags, which, offset - 1 if which is not None else 0)
    return count


spans = st.tuples(st.integers(0, TOP - 1), st.integers(1, 16)).map(lambda span: (span[0], min(sum(span), TOP)))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), spans, st.integers(0, 3), st.sampled_from([0, VM_SHARED]), st.integers(-1, 1)),
        st.tuples(st.just("remove"), spans),
        st.tuples(st.just("protect"), spans, st.integers(0, 3)),
        st.tuples(st.just("room"), st.integers(1, 20), st.integers(1, 4)),
        st.tuples(st.just("take"), st.integers(1, 6)),
        st.tuples(st.just("take"), st.integers(1, 6)),
        st.tuples(st.just("free"), st.integers(0, TOP), st.integers(1, 3)),
        st.tuples(st.just("copy")),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(steps)
def test_as_single_pages(actions: list[Any]) -> None:
    files: list[Any] = [Counted(), Counted()]
    regions = Regions()
    others: list[Regions] = []
    model: dict[int, Page] = {}
    for action in actions:
        if action[0] == "put":
            _, (start, end), prot, flags, which = action
            file = files[which] if which >= 0 else None
            vma = Vma(start * PAGE, end * PAGE, prot, flags, file, start * PAGE * 2 if file else 0)
            regions.put(vma)
            for page in range(start, end):
                model[page] = (prot, flags, which, start * 2 + page - start) if which >= 0 else (prot, flags, None, 0)
        elif action[0] == "remove":
            _, (start, end) = action
            regions.remove(start * PAGE, end * PAGE)
            for page in range(start, end):
                model.pop(page, None)
        elif action[0] == "protect":
            _, (start, end), prot = action
            for vma in regions.within(start * PAGE, end * PAGE):
                regions.change(max(vma.start, start * PAGE), min(vma.end, end * PAGE), prot, vma.flags)
            for page in range(start, end):
                if page in model:
                    model[page] = (prot, *model[page][1:])
        elif action[0] == "room":
            _, size, align = action
            found = regions.room_below(size * PAGE, 0, TOP * PAGE, align * PAGE if align & (align - 1) == 0 else PAGE)
            align = align if align & (align - 1) == 0 else 1
            places = [
                page
                for page in range(0, TOP - size + 1, 1)
                if page % align == 0 and not any(page + more in model for more in range(size))
            ]
            assert found == (places[-1] * PAGE if places else None)
            low = regions.room_above(size * PAGE, 0, TOP * PAGE)
            first = [page for page in range(TOP - size + 1) if not any(page + more in model for more in range(size))]
            assert low == (first[0] * PAGE if first else None)
        elif action[0] == "take":
            # As mmap does it, again and again: each search begins with what the last ones have learnt.
            found = regions.room_below(action[1] * PAGE, 0, TOP * PAGE)
            free = [at for at in range(TOP - action[1] + 1) if not any(at + more in model for more in range(action[1]))]
            assert found == (free[-1] * PAGE if free else None)
            if found is not None:
                prot = found // PAGE % 3
                regions.add(Vma(found, found + action[1] * PAGE, prot, 0))
                model.update({found // PAGE + more: (prot, 0, None, 0) for more in range(action[1])})
        elif action[0] == "free":
            taken = sorted(model)
            if taken:
                start = taken[action[1] % len(taken)]
                regions.remove(start * PAGE, (start + action[2]) * PAGE)
                for page in range(start, start + action[2]):
                    model.pop(page, None)
        else:
            others.append(regions.copy())
            assert pages_of(others[-1], files) == model
        assert pages_of(regions, files) == model
        # In order, each as long as it can be.
        assert len(regions) == longest(dict(sorted(model.items())))
        assert regions.bytes == len(model) * PAGE
        assert regions.data == sum(1 for prot, flags, *_ in model.values() if prot & 2 and not flags) * PAGE
        for start in range(0, TOP, 7):
            vma_there = regions.find(start * PAGE + 5)
            assert (vma_there is not None) == (start in model)
            covered = start
            while covered in model and covered < TOP:
                covered += 1
            assert regions.covered(start * PAGE, TOP * PAGE) == covered * PAGE
            assert regions.free(start * PAGE, (start + 3) * PAGE) == (not {start, start + 1, start + 2} & set(model))
    for number, file in enumerate(files):
        held = sum(1 for each in (regions, *others) for vma in each if vma.file is file)
        assert file.refs == 1 + held, number
    for each in (regions, *others):
        each.clear()
        assert (each.bytes, each.data, len(each)) == (0, 0, 0)
    assert [file.refs for file in files] == [1, 1]


def test_copies_leave_out_what_is_not_for_children() -> None:
    regions = Regions()
    regions.add(Vma(0, PAGE, 3, VM_LOCKED))
    regions.add(Vma(PAGE, 2 * PAGE, 3, VM_DONTCOPY))
    copy = regions.copy()
    assert [(vma.start, vma.end, vma.flags) for vma in copy] == [(0, PAGE, 0)]
    assert (copy.bytes, regions.bytes) == (PAGE, 2 * PAGE)


def test_the_platforms_pages_stay_apart() -> None:
    regions = Regions()
    regions.add(Vma(0, PAGE, 1, VM_SEALED))
    regions.add(Vma(PAGE, 2 * PAGE, 1, VM_SEALED))
    assert len(regions) == 2


def test_shared_memory_joins_only_where_it_goes_on() -> None:
    regions = Regions()
    memory, other = object(), object()
    regions.add(Vma(0, PAGE, 3, VM_SHARED, shared=memory))
    regions.add(Vma(PAGE, 2 * PAGE, 3, VM_SHARED, offset=PAGE, shared=memory))
    regions.add(Vma(2 * PAGE, 3 * PAGE, 3, VM_SHARED, offset=0, shared=memory))
    regions.add(Vma(3 * PAGE, 4 * PAGE, 3, VM_SHARED, offset=PAGE, shared=other))
    assert [(vma.start, vma.end, vma.offset) for vma in regions] == [
        (0, 2 * PAGE, 0),
        (2 * PAGE, 3 * PAGE, 0),
        (3 * PAGE, 4 * PAGE, PAGE),
    ]

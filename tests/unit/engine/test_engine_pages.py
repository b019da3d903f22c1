import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_engine.pages import PageAllocator, pages_for


@given(st.lists(st.one_of(st.integers(0, 6), st.none())))
def test_no_page_has_two_holders_and_all_come_back(steps):
    allocator = PageAllocator(range(3, 13))
    held = []
    for step in steps:
        if step is None:
            if held:
                allocator.give_back(held.pop(0))
            continue
        free = allocator.free
        pages = allocator.take(step)
        assert (pages is None) == (step > free)
        if pages is not None:
            held.append(pages)
        flat = [page for pages in held for page in pages]
        assert len(flat) == len(set(flat)) == allocator.used
        assert set(flat) <= set(range(3, 13))
    for pages in held:
        allocator.give_back(pages)
    assert allocator.free == allocator.total == 10


def test_a_page_that_nobody_holds_cannot_be_given_back():
    allocator = PageAllocator(range(2))
    (page,) = allocator.take(1)
    allocator.give_back([page])
    with pytest.raises(ValueError, match="not held"):
        allocator.give_back([page])


@pytest.mark.parametrize(("positions", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_pages_are_counted_up(positions, pages):
    assert pages_for(positions, 16) == pages

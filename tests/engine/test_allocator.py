"""Pages: held, shared, kept, evicted."""

from __future__ import annotations

import pytest

from afnext.engine.allocator import PageAllocator


def test_pages_come_and_go() -> None:
    allocator = PageAllocator(3)
    pages = allocator.take(2)
    assert len(set(pages)) == 2
    assert allocator.available == 1
    with pytest.raises(MemoryError, match="1 free pages, 2 are needed"):
        allocator.take(2)
    assert allocator.available == 1  # or none at all
    allocator.release(pages)
    assert allocator.available == 3
    with pytest.raises(ValueError, match="held by nobody"):
        allocator.release([pages[0]])


def test_pages_used_before_are_used_again() -> None:
    """So that memory that was never touched stays untouched."""
    allocator = PageAllocator(1000)
    pages = allocator.take(3)
    allocator.release(pages)
    assert set(allocator.take(3)) == set(pages)


def test_a_published_page_is_found_until_it_is_needed() -> None:
    allocator = PageAllocator(2)
    [page] = allocator.take(1)
    allocator.publish(page, b"a")
    assert allocator.share([b"a", b"b"]) == [page]
    allocator.release([page])
    assert allocator.available == 1  # one holder is left
    allocator.release([page])
    assert (allocator.available, allocator.kept) == (2, 1)
    assert allocator.share([b"a"]) == [page]
    allocator.release([page])
    allocator.take(2)
    assert allocator.share([b"a"]) == []
    assert allocator.evictions == 1


def test_the_page_unused_for_longest_goes_first_and_ends_before_beginnings() -> None:
    allocator = PageAllocator(4)
    first = allocator.take(2)
    for page, digest in zip(first, (b"1", b"2"), strict=True):
        allocator.publish(page, digest)
    second = allocator.take(2)
    for page, digest in zip(second, (b"3", b"4"), strict=True):
        allocator.publish(page, digest)
    allocator.release(second)
    allocator.release(first)
    allocator.take(1)
    assert allocator.share([b"3", b"4"]) == second[:1]
    allocator.take(1)
    assert allocator.share([b"1", b"2"]) == first[:1]


def test_of_two_equal_pages_one_is_found() -> None:
    allocator = PageAllocator(2)
    one, two = allocator.take(2)
    allocator.publish(one, b"a")
    allocator.publish(two, b"a")
    allocator.release([two])
    assert allocator.kept == 0
    assert allocator.share([b"a"]) == [one]
    with pytest.raises(ValueError, match="held by nobody"):
        allocator.publish(two, b"b")


def test_what_is_forgotten_is_free() -> None:
    allocator = PageAllocator(2)
    one, two = allocator.take(2)
    allocator.publish(one, b"a")
    allocator.publish(two, b"b")
    allocator.release([one])
    allocator.forget()
    assert allocator.share([b"a"]) == allocator.share([b"b"]) == []
    assert (allocator.available, allocator.kept) == (1, 0)
    allocator.release([two])
    assert (allocator.available, allocator.kept) == (2, 0)

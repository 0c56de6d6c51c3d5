"""Which pages are whose: reference counts, and pages that are kept for what they hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PageAllocator:
    """Hands out the pages of a pool; one page may be held by several sequences.

    A page whose contents were published under a digest stays findable after its last holder let go of it,
    until it is needed for something else: the one unused for longest goes first.

    Args:
        num_pages: of the pool; pages are 0 to ``num_pages - 1``.

    Attributes:
        evictions: pages that were taken from what was kept.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.evictions = 0
        # Pages used before come first, so that memory is not touched before it is needed.
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._digests: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that nobody holds."""
        return len(self._free) + len(self._kept)

    @property
    def kept(self) -> int:
        """Of these, pages that hold something findable."""
        return len(self._kept)

    def take(self, count: int) -> list[int]:
        """``count`` pages with unknown contents; raises ``MemoryError`` where there are not so many."""
        if count > self.available:
            raise MemoryError(f"the cache has {self.available} free pages, {count} are needed")
        taken = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._kept.popitem(last=False)
                self._unpublish(page)
                self.evictions += 1
            self._holders[page] = 1
            taken.append(page)
        return taken

    def share(self, digests: Iterable[bytes]) -> list[int]:
        """Hold the pages published under the first of ``digests``, up to the first unknown one."""
        shared = []
        for digest in digests:
            page = self._pages.get(digest)
            if page is None:
                break
            if self._holders[page] == 0:
                del self._kept[page]
            self._holders[page] += 1
            shared.append(page)
        return shared

    def find(self, digest: bytes) -> int | None:
        """The page published under ``digest``, or None."""
        return self._pages.get(digest)

    def publish(self, page: int, digest: bytes) -> None:
        """Make a held page findable; where another one holds the same, that one stays the one found."""
        if self._holders[page] == 0:
            raise ValueError(f"page: {page} is held by nobody")
        if page not in self._digests and digest not in self._pages:
            self._digests[page] = digest
            self._pages[digest] = page

    def release(self, pages: Sequence[int]) -> None:
        """Let go of a sequence's pages, in its order: of what is kept the end will go first."""
        for page in reversed(pages):
            if self._holders[page] == 0:
                raise ValueError(f"pages: {page} is held by nobody")
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._digests:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def forget(self) -> None:
        """Nothing published is findable any more: it is no longer true."""
        self._free.extend(self._kept)
        self._kept.clear()
        self._digests.clear()
        self._pages.clear()

    def _unpublish(self, page: int) -> None:
        del self._pages[self._digests.pop(page)]

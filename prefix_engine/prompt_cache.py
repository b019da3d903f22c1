"""Keys and values of texts that are kept for the same caller's next request. Plain Python: knows pages by
number, never touches their content.

A kept page is found by whom it is for (`Request.reuse`), by its prefix version, and by every token from the
text's first to the page's last: the tokens themselves are compared, so nothing can collide. Only pages that
are full are kept, and only of rows whose logits were finite. A page that no row reads is as good as free:
the one that was used longest ago makes room first, the end of a text before its beginning.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice, takewhile

from prefix_engine.beginnings import Beginnings
from prefix_engine.gone import Gone
from prefix_engine.pages import PageAllocator, pages_for
from prefix_engine.request import Request
from prefix_engine.sequence import Sequence

_EXPIRED_AT_ONCE = 64  # pages: zeroing them holds up the step behind it
_Key = tuple[tuple[str, ...], str | None]  # Request.reuse and prefix_id


@dataclass(slots=True, eq=False)
class _Kept:
    """One page behind its `parent`; a root, which has none, stands before the first page of all texts of a key."""

    key: _Key
    parent: "_Kept | None" = None
    tokens: tuple[int, ...] = ()
    page: int = 0
    readers: int = 0
    idle_since: float = 0.0
    dropped: bool = False
    children: dict[tuple[int, ...], "_Kept"] = field(default_factory=dict)


class PromptCache:
    """Gives rows their pages, and keeps some of them when a row ends.

    Args:
        pages: whose pages these are.
        page: positions of each.
        zero: erases the content of pages; called before they become free.
        keep_s: seconds that a page is kept after its last reader; 0 keeps none.
        named: ids that requests under way have in `Request.reuse`.
    """

    def __init__(
        self,
        pages: PageAllocator,
        page: int,
        zero: Callable[[Collection[int]], None],
        keep_s: float,
        named: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._pages, self._page, self._zero, self._keep_s = pages, page, zero, keep_s
        self._now = 0.0
        self._roots: dict[_Key, _Kept] = {}
        self._prefixes: Counter[str | None] = Counter()  # of the roots
        self._paths: dict[int, list[_Kept]] = {}  # by row: what it reads, or has given
        # Every page behind one of these, if it is kept, stands before it: its readers read this one too.
        self._idle: OrderedDict[_Kept, None] = OrderedDict()
        self._beginnings = Beginnings(page)
        self._gone = Gone(named)
        self.hits = self.tokens_saved = 0

    @property
    def idle(self) -> int:
        """Kept pages that no row reads: they count as free."""
        return len(self._idle)

    def holds(self, prefix_id: str) -> bool:
        """Whether a text behind this prefix is kept; may be asked from any thread."""
        return prefix_id in self._prefixes

    def fits(self, sequence: Sequence) -> bool:
        """Whether a row's pages exist at all, free or not."""
        return pages_for(sequence.slots_needed, self._page) <= self._pages.total

    @property
    def total(self) -> int:
        """All pages, free or not."""
        return self._pages.total

    def lacks(self, sequence: Sequence, spare: int = 0) -> bool:
        """Whether a row's pages cannot be had now, or only by leaving fewer than `spare` of all."""
        path = self._found(sequence.request)
        own = pages_for(sequence.slots_needed, self._page) - len(path)
        idle = len(self._idle) - sum(not kept.readers for kept in path)
        return own + spare > self._pages.free + idle

    def awaits(self, sequence: Sequence) -> bool:
        """Whether a request should wait, because a row computes the same prompt or half of it."""
        if self.is_forgotten(sequence.request):  # such a row's prompt will not be kept
            return False
        most = self._most(sequence.request)
        return most > 0 and self._beginnings.awaited(
            sequence.request, len(self._found(sequence.request)), most
        )

    def claim(self, sequence: Sequence) -> bool:
        """Give a row its pages, those first that hold the beginning of its prompt; False if there are too few."""
        if self.lacks(sequence):  # asked before anything is read: what nobody gets to read grows old
            return False
        path = self._found(sequence.request)
        for kept in path:
            self._read(kept)
        own = self._take(pages_for(sequence.slots_needed, self._page) - len(path))
        self._paths[sequence.number] = path
        if self._keeps(sequence.request):
            self._beginnings.add(sequence)
        sequence.pages = (*(kept.page for kept in path), *own)
        sequence.computed = sequence.cached = len(path) * self._page
        self.hits += bool(path)
        self.tokens_saved += sequence.cached
        return True

    def keep(self, sequence: Sequence) -> None:
        """Let others read the full pages that a row has computed; its logits must have been finite."""
        request, path = sequence.request, self._paths[sequence.number]
        full = sequence.computed // self._page
        if full <= len(path) or not self._keeps(request) or (path and path[-1].dropped):
            return
        key = (request.reuse or (), request.prefix_id)
        behind = path[-1] if path else self._root(key)
        tokens = (*request.prompt, *sequence.generated)
        for at in range(len(path), full):
            of_page = tokens[at * self._page : (at + 1) * self._page]
            kept = behind.children.get(of_page)
            if kept is None:
                kept = behind.children[of_page] = _Kept(key, behind, of_page, sequence.pages[at])
            self._read(kept)  # where another row was first, this row's own page goes when it ends
            path.append(kept)
            behind = kept

    def release(self, sequence: Sequence) -> None:
        """Take a row's pages back, if it has any; what is not kept is zeroed."""
        path = self._paths.pop(sequence.number, [])
        self._beginnings.remove(sequence)
        kept = {one.page for one in path}
        self._free([page for page in sequence.pages if page not in kept])
        sequence.pages = ()
        self._unread(path)

    def expire(self, now: float) -> bool:
        """Zero what nobody has read for `keep_s`, some pages a call; whether those were as many as a call may take.

        `now` is the time until the next call, which should follow at once if there may be more.
        """
        self._now = now
        old = takewhile(lambda kept: kept.idle_since + self._keep_s <= now, self._idle)
        first = list(islice(old, _EXPIRED_AT_ONCE))
        self._evict(first)
        return len(first) == _EXPIRED_AT_ONCE

    def drop(self, prefix_ids: Collection[str | None]) -> None:
        """Zero what stands behind these prefixes; a page that a row still reads, when it ends."""
        self._drop([key for key in self._roots if key[1] in prefix_ids])

    def forget(self, ids: Collection[str]) -> None:
        """Zero what is kept for one of these ids of `Request.reuse`, and keep nothing for it any more."""
        self._gone.add(ids)
        self._drop([key for key in self._roots if self._gone.any_of(key[0])])

    def is_forgotten(self, request: Request) -> bool:
        """Whether nothing of this request may be kept any more, see `forget`."""
        return self._gone.any_of(request.reuse or ())

    def clear(self) -> None:
        """Zero everything that no row reads, the rest when its rows end."""
        self._drop(list(self._roots))

    def _keeps(self, request: Request) -> bool:
        """Whether others may read what this request computes, once it has a token."""
        kept = request.reuse is not None and not self.is_forgotten(request)
        return kept and self._keep_s > 0 and request.max_tokens > 0

    def _found(self, request: Request) -> list[_Kept]:
        """The pages that hold the beginning of a prompt, in their order."""
        path: list[_Kept] = []
        kept = None if request.reuse is None else self._roots.get((request.reuse, request.prefix_id))
        for at in range(self._most(request)):
            kept = kept and kept.children.get(request.prompt[at * self._page : (at + 1) * self._page])
            if kept is None:
                break
            path.append(kept)
        return path

    def _most(self, request: Request) -> int:
        """Pages of a prompt that need not be computed."""
        # Scores of the prompt need its hidden states, and its first answer needs the last token's.
        scored = request.echo and request.logprobs is not None
        return 0 if scored or request.reuse is None else (len(request.prompt) - 1) // self._page

    def _root(self, key: _Key) -> _Kept:
        if key not in self._roots:
            self._roots[key] = _Kept(key)
            self._prefixes[key[1]] += 1
        return self._roots[key]

    def _uproot(self, key: _Key) -> _Kept:
        self._prefixes[key[1]] -= 1
        if not self._prefixes[key[1]]:
            del self._prefixes[key[1]]
        return self._roots.pop(key)

    def _read(self, kept: _Kept) -> None:
        kept.readers += 1
        self._idle.pop(kept, None)

    def _unread(self, path: list[_Kept]) -> None:
        for kept in reversed(path):
            kept.readers -= 1
            if kept.readers:
                continue
            if kept.dropped:
                self._free([kept.page])
            else:
                kept.idle_since = self._now
                self._idle[kept] = None

    def _take(self, count: int) -> tuple[int, ...]:
        """Pages that `lacks` found to be there."""
        self._evict(list(islice(self._idle, max(0, count - self._pages.free))))
        return self._pages.take(count) or ()

    def _evict(self, first: list[_Kept]) -> None:
        """Zero and free the first of the idle pages."""
        for kept in first:
            del self._idle[kept]
            if kept.parent is not None:
                del kept.parent.children[kept.tokens]
                if kept.parent.parent is None and not kept.parent.children:
                    self._uproot(kept.key)
        self._free([kept.page for kept in first])

    def _drop(self, keys: Iterable[_Key]) -> None:
        unread: list[int] = []
        for key in keys:
            left = list(self._uproot(key).children.values())
            while left:
                kept = left.pop()
                left += kept.children.values()
                kept.dropped = True
                if kept in self._idle:
                    del self._idle[kept]
                    unread.append(kept.page)
        self._free(unread)

    def _free(self, pages: Collection[int]) -> None:
        if pages:
            self._zero(pages)
            self._pages.give_back(pages)

"""What a serving process does once, before its first request."""

import gc
import weakref

from service.start import keep_for_ever


class Ring:
    """Something that only the garbage collector can end."""

    def __init__(self):
        self.itself = self


def test_the_collector_walks_what_was_made_later_and_nothing_else():
    old = Ring()
    kept, gone = weakref.ref(old), weakref.ref(Ring())
    keep_for_ever()
    try:
        assert gone() is None
        assert gc.get_freeze_count() > 10_000
        assert all(found is not old for found in gc.get_objects())
        del old
        new = weakref.ref(Ring())
        gc.collect()
        assert kept() is not None
        assert new() is None
    finally:
        gc.unfreeze()
    gc.collect()
    assert kept() is None

"""Jobs that could not be given back while the store was away."""

from structlog.testing import capture_logs

from prefix_store.errors import LeaseLost, Unavailable
from trainer_worker.owed import Owed


class Store:
    def __init__(self):
        self.away, self.given = True, []

    def give_back(self, job, error=None):
        def act():
            if self.away:
                raise Unavailable("away")
            if error is not None:
                raise error
            self.given.append(job)

        return act


def test_what_is_owed_is_given_back_once_when_the_store_is_there_again():
    owed, store = Owed(), Store()
    assert owed.settle()
    for job, error in (("a", None), ("b", LeaseLost("another's")), ("c", None)):
        owed.add(job, store.give_back(job, error))
    assert not owed.settle()
    store.away = False
    with capture_logs() as told:
        assert owed.settle()
    assert owed.settle()
    assert store.given == ["a", "c"]
    assert [(line["job"], line["error"]) for line in told] == [("b", "LeaseLost")]


def test_what_is_left_at_last_is_told_of():
    owed, store = Owed(), Store()
    owed.add("a", store.give_back("a"))
    with capture_logs() as told:
        owed.settle_at_last(0.0)
    assert [line["jobs"] for line in told] == [["a"]]
    store.away = False
    owed.settle_at_last(0.0)
    assert store.given == ["a"]

"""Who may ask a server that was away, without a server."""

import pytest

from prefix_store.breaker import Breaker, Shut


def fail(breaker):
    with pytest.raises(OSError, match="away"), breaker.asking(OSError):
        raise OSError("away")


def test_nobody_asks_for_a_while_after_a_failure():
    breaker = Breaker(3600.0, 3600.0)
    with breaker.asking(OSError):
        pass
    fail(breaker)
    assert breaker.shut
    with pytest.raises(Shut), breaker.asking(OSError):
        pytest.fail("asked")


def test_one_at_a_time_tries_again_and_an_answer_opens_it():
    breaker = Breaker(0.0, 0.0)
    fail(breaker)
    with breaker.asking(OSError), pytest.raises(Shut), breaker.asking(OSError):
        pytest.fail("asked beside the one that tries")
    assert not breaker.shut
    with breaker.asking(OSError), breaker.asking(OSError):
        pass


def test_who_fails_while_trying_lets_another_try_later():
    breaker = Breaker(0.0, 0.0)
    for _ in range(3):
        fail(breaker)
    with breaker.asking(OSError):
        pass
    assert not breaker.shut


def test_an_error_of_another_kind_is_an_answer():
    breaker = Breaker(3600.0, 3600.0)
    with pytest.raises(KeyError), breaker.asking(OSError):
        raise KeyError("asked for nothing")
    assert not breaker.shut


def test_a_burst_of_failures_shuts_it_no_longer_than_one():
    breaker = Breaker(3600.0, 1e9)
    asking = [breaker.asking(OSError) for _ in range(3)]
    for one in asking:
        one.__enter__()
    shut_until = set()
    for one in asking:
        assert one.__exit__(OSError, OSError("away"), None) is False
        shut_until.add(breaker._again_at)
    assert len(shut_until) == 1

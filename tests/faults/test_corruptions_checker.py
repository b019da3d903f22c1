"""The checker of `corruptions`, fed with answers that a broken service could give, and a Redis that takes nothing."""

from collections import Counter
from types import SimpleNamespace

import httpx2
import pytest

from faults import SCENARIOS
from faults.answering import person
from faults.corruptions import AGAIN, _Spoiling
from faults.streams import LOST_SIGHT


def spoiling(ask=None):
    made = _Spoiling.__new__(_Spoiling)
    made._store = SimpleNamespace(_core=SimpleNamespace(link=SimpleNamespace(ask=ask, key=lambda *ids: ids)))
    return made


def refusal(code):
    return httpx2.Response(500, json={"error": {"code": code}})


def test_a_copy_in_redis_that_costs_the_request_is_no_catch():
    judge, voice = spoiling()._judge, person(3, None)
    assert judge(refusal("corrupt"), voice, in_redis=True) in SCENARIOS["corruptions"].nothing
    assert judge(refusal("internal"), voice, in_redis=True) in SCENARIOS["corruptions"].nothing
    assert judge(refusal("corrupt"), voice, in_redis=False) == "refused as corrupt"
    whole = httpx2.Response(200, json={"choices": [{"text": "hm"}]})
    assert judge(whole, voice, in_redis=True) == "served right from the bucket"


PLACE = SimpleNamespace(tenant_id="t", owner_id="o", object_id="v")


@pytest.mark.parametrize("data", [b"spoilt", None])
def test_a_copy_that_redis_did_not_take_is_no_damage(monkeypatch, data):
    monkeypatch.setattr("faults.corruptions.PATIENCE_S", 0.0, raising=False)
    with pytest.raises(AssertionError, match="Redis"):
        spoiling(lambda _act, otherwise: otherwise)._cache(PLACE, data)


@pytest.mark.parametrize("data", [b"spoilt", None])
def test_a_copy_that_redis_takes_later_is_waited_for(monkeypatch, data):
    monkeypatch.setattr("faults.corruptions.AGAIN_S", 0.0, raising=False)
    answers = iter([None, None, 0])
    spoiling(lambda _act, _otherwise: next(answers))._cache(PLACE, data)
    assert list(answers) == []


@pytest.mark.parametrize(
    ("status", "text", "again"), [(503, LOST_SIGHT, 1), (503, "corrupt", 0), (500, LOST_SIGHT, 0)]
)
def test_only_a_service_that_saw_no_database_is_asked_again_and_that_is_counted(
    monkeypatch, status, text, again
):
    monkeypatch.setattr("faults.corruptions.AGAIN_S", 0.0)
    made, last = spoiling(), httpx2.Response(200)
    made.counts, made._service = Counter(), "one"
    made._voices = SimpleNamespace(asked=lambda *_, **__: {})
    answers = iter([httpx2.Response(status, text=text), last])
    voice = SimpleNamespace(model="voice", user=SimpleNamespace(once=lambda *_, **__: next(answers)))
    assert (made._ask(voice) is last) == bool(again)
    assert made.counts[AGAIN] == again

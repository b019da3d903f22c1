"""The checker of `requests`, fed with answers that a broken service could give: each is counted as what it is."""

import random
from types import SimpleNamespace

import pytest

from faults.answering import broken, person
from faults.requests import _Asking


def sound(voice):
    """What the service says to this one when all is well."""
    shown = {
        "/v1/files": [voice.file],
        "/v1/fine_tuning/jobs": [voice.job],
        "/v1/models": ["base", voice.model],
        "/v1/prefixes": [voice.model],
        "/v1/users": [voice.label],
    }
    lists = {path: {"data": [{"id": one} for one in ids]} for path, ids in shown.items()}
    return lists | {f"/v1/files/{voice.file}/content": voice.canary.encode()}


def nobodys(path):
    return 404, {"error": {"message": path.rpartition("/")[2]}}


def counted(act, answers, tries=200):
    """What 200 looks or pryings of one user come to, and the checker's own counts; `answers` changes what is well."""
    voices = SimpleNamespace(
        base_name="base", prompts=[[1]], whose=lambda _: None, asked=lambda *_, **more: more
    )
    asking = _Asking(voices, random.Random(3))
    other = person(4, None)
    own = person(3, lambda path: answers(own, other, path))
    for _ in range(tries):
        asking.counts[getattr(asking, act)(own, other)] += 1
    asking.counts["answered otherwise than absent ones"] = asking.counts["told apart"]
    return asking.counts


def changed(path, change):
    """Answers as they should be, but for one list's ids, or its status."""

    def answer(own, other, asked):
        well = sound(own)[asked]
        return change(well, own, other) if asked == path else well

    return answer


LISTS = sorted(path for path in sound(person(3, None)) if "content" not in path)


def test_what_is_well_is_right():
    found = counted("_look", lambda own, _, path: sound(own)[path])
    assert found["right"] == 200
    assert 100 < found["lists"] < 200
    assert broken("requests", found) == set()


@pytest.mark.parametrize("path", LISTS)
def test_a_list_that_holds_what_is_anothers_is_foreign(path):
    found = counted(
        "_look", changed(path, lambda well, *_: {"data": well["data"] + [{"id": "file-4zzz"}] * 500})
    )
    assert found["foreign"] > 5
    assert found["right"] + found["foreign"] == 200
    assert broken("requests", found) == {"foreign"}


@pytest.mark.parametrize("path", LISTS)
def test_a_list_of_another_tenant_is_foreign(path):
    found = counted("_look", changed(path, lambda _well, _own, other: sound(other)[path]))
    assert broken("requests", found) == {"foreign"}


def test_ones_own_name_twice_is_foreign_for_it_may_be_a_namesakes():
    found = counted(
        "_look", changed("/v1/models", lambda well, *_: {"data": well["data"] + well["data"][1:]})
    )
    assert broken("requests", found) == {"foreign"}


def test_another_tenants_word_in_a_field_of_ones_own_line_is_foreign():
    def shown(well, _own, other):
        return {"data": [well["data"][0] | {"training_file": other.file}]}

    assert broken("requests", counted("_look", changed("/v1/fine_tuning/jobs", shown))) == {"foreign"}


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("said", [{"data": []}, (404, {"error": {"message": "no such list"}})])
def test_a_list_that_lacks_ones_own_or_is_absent_is_wrong(path, said):
    found = counted("_look", changed(path, lambda *_: said))
    assert found["wrong"] > 5
    assert broken("requests", found) == {"wrong"}


def test_a_list_that_goes_on_where_nobody_looked_is_wrong():
    found = counted("_look", changed("/v1/files", lambda well, *_: well | {"has_more": True}))
    assert broken("requests", found) == {"wrong"}


def test_a_refusal_of_a_list_is_no_harm():
    found = counted("_look", lambda *_: (503, {"error": {"code": "overloaded"}}))
    assert found["refused"] == 200
    assert broken("requests", found) == set()


def test_ones_own_prefix_that_is_answered_as_absent_is_wrong():
    assert broken("requests", counted("_complete", lambda _o, _t, path: nobodys(path))) == {"wrong"}


def test_an_id_that_is_nobodys_is_well():
    found = counted("_pry", lambda _own, _other, path: nobodys(path))
    assert found["right"] == found["foreign ids"] == 200
    assert broken("requests", found) == set()


@pytest.mark.parametrize("kind", ["file", "job", "label"])
def test_an_id_that_opens_what_is_anothers_is_foreign(kind):
    def answer(_own, other, path):
        return {"object": "it"} if getattr(other, kind) in path else nobodys(path)

    found = counted("_pry", answer)
    assert found["foreign"] > 5
    assert broken("requests", found) >= {"foreign"}


@pytest.mark.parametrize("kind", ["file", "job", "label"])
def test_an_id_that_is_refused_otherwise_than_an_absent_one_is_told_apart(kind):
    def answer(_own, other, path):
        return (404, {"error": {"message": "not yours"}}) if getattr(other, kind) in path else nobodys(path)

    assert "answered otherwise than absent ones" in broken("requests", counted("_pry", answer))

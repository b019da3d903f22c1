"""What a process notes of versions stays bounded, keeps what is in use, and is not looked through for each new one."""

from dataclasses import dataclass

from prefix_engine.testing import tiny_base
from service import residency
from service.residency import Residency


@dataclass(frozen=True)
class Named:
    version_id: str


def test_of_very_many_versions_those_in_use_are_kept_and_the_rest_goes(monkeypatch):
    monkeypatch.setattr(residency, "_KEPT", 20)
    looks = []

    def in_use(known):
        looks.append(len(known))
        return {one for one in known if int(one) < 5}

    found = Residency(None, tiny_base(), in_use)
    for number in range(1000):
        found.note(Named(str(number)))
        assert len(found._known) <= 20
    assert set(found._known) >= set("01234")
    assert "999" in found._known
    assert len(looks) < 1000 / 10


def test_where_more_are_in_use_than_are_kept_not_each_new_one_has_all_looked_at(monkeypatch):
    monkeypatch.setattr(residency, "_KEPT", 20)
    looks = []
    found = Residency(None, tiny_base(), lambda known: looks.append(len(known)) or known)
    for number in range(1000):
        found.note(Named(str(number)))
    assert len(found._known) == 1000
    assert len(looks) <= 7

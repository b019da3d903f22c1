"""For whom a prompt is kept."""

from prefix_store.scope import Scope
from service.reuse import Reuse

KEY = Scope("tenant", None, "key", frozenset())


def test_what_a_client_calls_its_user_is_kept_as_a_digest_of_it():
    reuse = Reuse()
    one, other, nobody = (reuse.ids(KEY, user) for user in ("x" * 4_000_000, "x" * 3_999_999, None))
    assert len({one, other, nobody}) == 3
    assert sum(map(len, one)) < 200
    assert reuse.ids(KEY, "x" * 4_000_000) == one

"""Engines for whoever asks, closed behind the test."""

import pytest

from prefix_engine import Engine, EngineConfig


@pytest.fixture
def started():
    """Makes started engines and closes them."""
    made = []

    def make(base, loader=None, *, sampler=None, **limits):
        limits = {"kv_bytes": 64 << 20, "pool_bytes": 4 << 20, **limits}
        made.append(Engine(base, EngineConfig(**limits), loader, sampler=sampler))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()

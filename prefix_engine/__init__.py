"""The frozen GPT-2, its prefixes and continuous batching. Knows no HTTP and no SQL.

Names are loaded on first use (PEP 562), so that the scheduler and its tests start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefix_engine.base import Base, load_base
    from prefix_engine.config import EngineConfig
    from prefix_engine.engine import Engine
    from prefix_engine.generation import Generation
    from prefix_engine.gone import Gone
    from prefix_engine.pool import LoadRefused
    from prefix_engine.prefix import Prefix, PrefixError
    from prefix_engine.request import (
        Delta,
        Event,
        Failed,
        Finished,
        QueueFullError,
        Request,
        RequestError,
        Sampling,
        TokenInfo,
    )
    from prefix_engine.stats import EngineStats

_HOMES = {
    "Base": "base",
    "Delta": "request",
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineStats": "stats",
    "Event": "request",
    "Failed": "request",
    "Finished": "request",
    "Generation": "generation",
    "Gone": "gone",
    "LoadRefused": "pool",
    "Prefix": "prefix",
    "PrefixError": "prefix",
    "QueueFullError": "request",
    "Request": "request",
    "RequestError": "request",
    "Sampling": "request",
    "TokenInfo": "request",
    "load_base": "base",
}

__all__ = [
    "Base",
    "Delta",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Event",
    "Failed",
    "Finished",
    "Generation",
    "Gone",
    "LoadRefused",
    "Prefix",
    "PrefixError",
    "QueueFullError",
    "Request",
    "RequestError",
    "Sampling",
    "TokenInfo",
    "load_base",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

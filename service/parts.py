"""The parts of one service process, built once and passed by hand."""

import time
from dataclasses import dataclass, field
from threading import Semaphore
from typing import Self
from wsgiref.simple_server import WSGIServer

import torch
from anyio import CapacityLimiter

from prefix_engine import Base, Engine
from prefix_store import ScopedStore, Store
from prefix_store.scope import Admin, Scope
from service.admission import Admission
from service.connections import Connections
from service.door import Door
from service.errors import CROWDED, raw
from service.fields import MOST_ROWS
from service.json_weight import MOST_PARTS, JsonWeight
from service.lookups import Lookups
from service.meter import Meter
from service.readiness import Readiness
from service.receiving import Receiving
from service.residency import Residency
from service.reuse import Reuse
from service.revocation import Revocation
from service.settings import ServiceSettings
from service.telemetry import Telemetry
from service.tickets import Tickets
from service.tracing import Traces
from service.turns import MOST, Turns
from service.upkeep import Upkeep
from service.watchdog import Watchdog

_PLANNERS = 2
_PURGERS = 4
_STORERS = 16
_COUNTERS = 8
_UNREADY = 0.5  # of the time after which the engine counts as stuck: others are asked first


@dataclass(slots=True)
class Parts:
    """Everything that routes use.

    `store` takes scopes; what looks over all tenants, to follow deletions, to tidy up and to know callers, is kept
    from routes. `draining` is set by SIGTERM: nothing new is taken.
    """

    settings: ServiceSettings
    store: ScopedStore
    _system: Store
    base: Base
    engine: Engine
    tickets: Tickets
    connections: Connections
    residency: Residency
    reuse: Reuse
    revocation: Revocation
    admission: Admission
    door: Door
    most_values: int  # of a JSON body
    meter: Meter
    upkeep: Upkeep
    telemetry: Telemetry
    watchdog: Watchdog
    readiness: Readiness
    lookups: Lookups
    turns: Turns
    counting: CapacityLimiter  # threads that wait for Redis to count a request
    purging: CapacityLimiter  # requests that wait for bytes to be removed
    removing: Semaphore  # threads that remove them, which a storage may keep for longer than requests wait
    storing: CapacityLimiter  # threads that read and write files, so that a slow storage never holds up authentication
    planning: Turns  # threads that encode prompts, so that they never hold up authentication; one of them a tenant's
    receiving: Receiving
    traces: Traces | None = None  # None: nobody collects them
    draining: bool = False
    started: bool = False
    _metrics: WSGIServer | None = field(default=None)

    @classmethod
    def build(cls, settings: ServiceSettings, store: Store, base: Base) -> Self:
        """Put the parts together; nothing runs yet."""
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        sent_bytes = max(settings.sent_bytes, 4 * store.settings.max_upload_bytes)
        tickets = Tickets(settings.queue_requests, settings.queue_tokens, sent_bytes)
        telemetry, meter = Telemetry(), Meter(store.scoped)
        connections = Connections(
            settings.connections,
            raw(CROWDED),
            lambda seconds: telemetry.refusal("connections", seconds),
            settings.stall_seconds,
        )
        most_values = MOST_ROWS * base.config.positions + MOST_PARTS
        heaviest = settings.max_body_bytes + JsonWeight.most_bytes(most_values, settings.max_body_bytes)
        held_bytes = max(settings.held_bytes, 2 * heaviest)
        door = Door(tickets, settings.tenant_requests, held_bytes)
        reuse = Reuse()

        def in_use(version_ids: set[str]) -> set[str]:
            return engine.holds(version_ids) | tickets.in_use()

        # The engine packs the blocks; nobody else needs them, so that they are not in memory twice.
        whole, base = base, base.emptied()
        residency = Residency(store.scoped, base, in_use)
        engine = Engine(whole, settings.engine_config(), residency.load)
        parts = cls(
            settings=settings,
            store=store.scoped,
            _system=store,
            base=base,
            engine=engine,
            tickets=tickets,
            connections=connections,
            residency=residency,
            reuse=reuse,
            revocation=Revocation(store, engine, residency, reuse, tickets, connections),
            admission=Admission(engine, tickets, store.rates, door, lambda: telemetry.token_seconds),
            door=door,
            most_values=most_values,
            meter=meter,
            upkeep=Upkeep(store, meter),
            telemetry=telemetry,
            watchdog=Watchdog(
                engine,
                tickets,
                settings.stuck_seconds,
                blind=lambda: parts.revocation.broken,
                refuse=lambda: parts.drain(),  # noqa: PLW0108 - not there yet
            ),
            readiness=Readiness(store.ping),
            lookups=Lookups(store.settings.waits),
            turns=Turns(MOST),
            counting=CapacityLimiter(_COUNTERS),
            purging=CapacityLimiter(_PURGERS),
            removing=Semaphore(_PURGERS),
            storing=CapacityLimiter(_STORERS),
            planning=Turns(1, CapacityLimiter(_PLANNERS)),
            receiving=Receiving(),
        )
        return parts

    def start(self) -> None:
        """Begin to serve."""
        self.engine.start()
        self.watchdog.start()
        self.revocation.start()
        self.upkeep.start()
        self.started = True

    def open_metrics(self) -> None:
        """Answer `/metrics` from now on, if it has a port.

        Raises:
            OSError: the port cannot be listened on.
        """
        self.telemetry.watch(self.engine, self._system, self.revocation)
        self.telemetry.watch_load(self.tickets, self.door, self.connections)
        if self.settings.metrics_port:
            self._metrics = self.telemetry.serve(self.settings.host, self.settings.metrics_port)

    def stop(self) -> None:
        """End everything; rows still running fail."""
        self.drain()
        self.engine.close()
        self.watchdog.stop()
        self.upkeep.stop()
        self.revocation.stop()
        if self._metrics is not None:
            self._metrics.shutdown()
            self._metrics.server_close()
        if self.traces is not None:
            self.traces.close()
        self._system.close()

    def authenticate(self, token: str) -> Scope | Admin | None:
        """Whose a key is; None for anything that is no live key."""
        return self._system.keys.verify(token)

    def drain(self) -> None:
        """Take nothing new."""
        self.draining = True

    @property
    def alive(self) -> bool:
        """Whether the engine gets on with its work, or waits for some, and deletions are followed."""
        return self.engine.beat_age() < self.settings.stuck_seconds and not self.revocation.broken

    def not_ready(self) -> str | None:
        """Why no request can be taken now; None if one can. May ask the database."""
        return self.not_ready_here() or self.readiness.ask()

    def not_ready_here(self) -> str | None:
        """The same as far as this process alone can tell."""
        if not self.started:
            return "starting"
        if self.draining:
            return "draining"
        if self.engine.beat_age() > self.settings.stuck_seconds * _UNREADY or not self.alive:
            return "the engine does not turn"
        if self.revocation.stale:
            return "the change feed is not followed"
        return None

    def now(self) -> int:
        """Unix time in whole seconds, for `created`."""
        return int(time.time())  # noqa: TID251 - shown only; nothing is decided by it

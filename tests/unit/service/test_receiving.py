"""What a drain that is over does to bodies: refused is what has not come, not what lies there."""

import asyncio

import pytest

from service.errors import ApiError
from service.receiving import Receiving


def asked(receiving, receive, sent):
    """A request whose app reads its whole body, then answers."""

    async def app(_, take, send):
        while (await take()).get("more_body"):
            pass
        await send({"type": "http.response.start"})

    async def send(message):
        sent.append(message)

    return receiving.around(app)({"type": "http"}, receive, send)


def piece(*, more):
    return {"type": "http.request", "body": b"x", "more_body": more}


def test_what_has_arrived_when_the_drain_is_over_is_read():
    async def told():
        receiving, sent = Receiving(), []
        ready = iter([piece(more=True), piece(more=True), piece(more=False)])

        async def receive():
            await asyncio.sleep(0)  # as where the transport has to be told to go on first
            return next(ready)

        receiving.cut()
        await asked(receiving, receive, sent)
        return sent

    assert asyncio.run(told())


def test_what_has_not_come_is_refused():
    async def told():
        receiving = Receiving()

        async def receive():
            await asyncio.Event().wait()

        waiting = asyncio.ensure_future(asked(receiving, receive, []))
        await asyncio.sleep(0)
        receiving.cut()
        await waiting

    with pytest.raises(ApiError) as refused:
        asyncio.run(told())
    assert refused.value.code == "draining"

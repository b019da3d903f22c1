"""Restarts are invisible: services are told to stop one after the other, and no stream that began is broken."""

import random
import threading
import time

from faults.clients import make_tenant
from faults.history import History
from faults.site import PATIENCE_S, Site
from faults.streams import Stream

CLIENTS, TOKENS = 8, 120


def measure(home, say, *, restarts=50, seed=1):
    """Stream from both services while they are stopped with SIGTERM in turn; what was counted, by name."""
    with Site(home, workers=0) as site:
        history = History(home / "restarts.jsonl")
        key = make_tenant(site, history, "acme").key
        stop = threading.Event()
        clients = [_Streaming(site, key, stop, random.Random(seed + n)) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        stopped_well, took = 0, []
        for n in range(restarts):
            name = site.services[n % len(site.services)]
            process = site.processes[name]
            began = time.monotonic()
            process.terminate()
            stopped_well += process.wait(PATIENCE_S) == 0
            took.append(time.monotonic() - began)
            site.start(name)
            site.ready(name)
            history.note("restart", began, "ok", service=name)
            if n % 10 == 9:
                say(
                    f"{n + 1} of {restarts} restarts, {sum(c.counts['whole'] for c in clients)} streams whole"
                )
        stop.set()
        for client in clients:
            client.join(PATIENCE_S)
        history.close()
        errors = [client.error for client in clients if client.error]
        assert not errors, errors
    counts = {kind: sum(client.counts[kind] for client in clients) for kind in clients[0].counts}
    return {
        "restarts": restarts,
        "ended with status 0": stopped_well,
        "streams whole": counts["whole"],
        "streams broken": counts["broken"],
        "ended by a service that saw no database for 2 s": counts["blind"],
        "refused with 503 and sent again": counts["refused"],
        "not connected and sent again": counts["unreachable"],
        "other 5xx": counts["other"],
        "median seconds of a stop": round(sorted(took)[len(took) // 2], 2),
    }


class _Streaming(threading.Thread):
    """One client that streams again and again, from the other service where one refuses."""

    def __init__(self, site, key, stop, chosen):
        super().__init__(daemon=True)
        self._site, self._key, self._stop_event, self._random = site, key, stop, chosen
        self.counts = dict.fromkeys(("whole", "broken", "blind", "refused", "unreachable", "other"), 0)
        self.error = None

    def run(self):
        try:
            while not self._stop_event.is_set():
                self.counts[self._one()] += 1
        except Exception as error:  # noqa: BLE001 - the harness's own fault, told where it is looked at
            self.error = repr(error)

    def _one(self):
        body = {"model": "base", "prompt": "x", "max_tokens": TOKENS, "min_tokens": TOKENS}
        port = self._site.ports[self._random.choice(self._site.services)]
        try:
            stream = Stream(port, self._key, body)
        except OSError:
            time.sleep(0.02)
            return "unreachable"
        stream.join(PATIENCE_S)
        if stream.status is None:  # nothing was sent, so it can be sent again
            return "unreachable"
        if stream.status == 503:
            return "refused"
        if stream.status != 200:
            return "other"
        if stream.whole:
            return "whole"
        return "blind" if stream.blind else "broken"

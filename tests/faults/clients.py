"""A client that does not give up: it asks any service, and again with the same idempotency key, until it is told."""

import random
import threading
import time

import httpx2

AGAIN_S = 0.2
LIMITS = {
    "max_queued": 100_000,
    "max_jobs": 100_000,
    "requests_per_minute": 1_000_000,
    "tokens_per_day": 1 << 40,
}


_OWN = threading.local()  # the site that this thread asks, and its connections


class Lost(Exception):
    """No answer came within the client's patience."""


class Client:
    """One key's client of all services.

    Args:
        site: whose services are asked.
        key: the API key.
        history: that every try is noted in.
        patience_s: how long one operation is tried.
    """

    def __init__(self, site, key, history, patience_s=120.0):
        self.site, self.key, self.history, self.patience_s = site, key, history, patience_s
        self._headers = {"Authorization": f"Bearer {key}"}

    def once(self, method, path, *, service=None, **options):
        """One try with one service; None if no whole answer came."""
        name = service or random.choice(self.site.services)
        headers = self._headers | options.pop("headers", {})
        try:
            return self._connections().request(method, self.site.url(name) + path, headers=headers, **options)
        except httpx2.TransportError:
            return None

    def sure(self, op, method, path, *, accept=(200,), **options):
        """Try until the answer is one of `accept`; every other answer but 429, 503 and no answer at all is an error.

        Raises:
            Lost: patience is over.
            AssertionError: an answer that no client should get.
        """
        began = time.monotonic()
        while time.monotonic() < began + self.patience_s:
            tried = time.monotonic()
            answer = self.once(method, path, **options)
            status = "lost" if answer is None else answer.status_code
            self.history.note(op, tried, "ok" if status in accept else status)
            if status in accept:
                return answer
            assert answer is None or status in {429, 503}, (op, status, answer.text)
            time.sleep(AGAIN_S)
        raise Lost(op)

    def _connections(self):
        """This thread's own, for a client of httpx is asked by one thread at a time; all keys share it, which
        would be thousands of sockets else.
        """
        if getattr(_OWN, "site", None) is not self.site:
            _OWN.site, _OWN.client = self.site, httpx2.Client(timeout=30, trust_env=False)
            self.site.at_exit(_OWN.client.close)
        return _OWN.client


def make_tenant(site, history, name, *, joint=False):
    """A new tenant's client, with limits that no scenario meets."""
    admin = Client(site, site.admin_key, history)
    asked = {"name": name, "limits": LIMITS, "joint_training": joint}
    return Client(site, admin.sure("tenant", "POST", "/v1/tenants", json=asked).json()["api_key"], history)


def make_user(site, history, tenant, name):
    """A new user's client. An answer that was lost may have made it, hence 409."""
    tenant.sure("user", "POST", "/v1/users", json={"id": name}, accept=(200, 409))
    made = tenant.sure("key", "POST", "/v1/keys", json={"user": name})
    return Client(site, made.json()["api_key"], history)

"""The trial's object storage answers one request after another, whatever the senders do."""

import io
import threading

from deploy.storage_server import one_at_a_time


def test_calls_wait_for_each_other_and_keep_their_bodies():
    inside = threading.Lock()
    overlaps = []

    def app(environ, start):
        overlaps.append(not inside.acquire(blocking=False))
        body = environ["wsgi.input"].read()
        threading.Event().wait(0.01)
        inside.release()
        start("200 OK", [])
        yield body

    serial, answers = one_at_a_time(app), {}

    def call(number):
        body = str(number).encode()
        environ = {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        answers[number] = serial(environ, lambda *_: None)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert answers == {number: [str(number).encode()] for number in range(8)}
    assert overlaps == [False] * 8

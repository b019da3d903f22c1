"""A stream as the bytes that came: so that what was sent before a moment and what after can be told apart exactly."""

import array
import fcntl
import json
import re
import socket
import termios
import threading
import time

TEXT = re.compile(rb'"text":\s*"[^"]')
PATIENCE_S = 120.0
LOST_SIGHT = "lost sight of the database"  # what a service says that has not seen it for two seconds


class Stream(threading.Thread):
    """One streaming completion over a socket of its own.

    Args:
        port: of the service.
        key: the API key.
        body: what is asked.
    """

    def __init__(self, port, key, body):
        super().__init__(daemon=True)
        data = json.dumps(body | {"stream": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self._lock = threading.Lock()
        self._data = b""
        self.begun = threading.Event()  # two tokens are there, or it has ended
        self.ended = False
        self.ended_at = None  # on the monotonic clock
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._socket.sendall(head.encode() + data)
        self.start()

    def run(self):
        while True:
            try:
                self._socket.recv(1, socket.MSG_PEEK)  # waits without taking
                with self._lock:
                    piece = self._socket.recv(1 << 16)
                    self._data += piece
            except OSError:
                piece = b""
            if not piece:
                break
            if not self.begun.is_set() and len(TEXT.findall(self._data)) > 1:
                self.begun.set()
        with self._lock:
            self.ended, self.ended_at = True, time.monotonic()
            self._socket.close()
        self.begun.set()

    def arrived(self):
        """Bytes that have come to this machine by now, read or not."""
        with self._lock:
            if self.ended:
                return len(self._data)
            waiting = array.array("i", [0])
            fcntl.ioctl(self._socket, termios.FIONREAD, waiting)
            return len(self._data) + waiting[0]

    def tokens(self, since=0):
        """Pieces of text after the first `since` bytes; call when it has ended."""
        return len(TEXT.findall(self._data[since:]))

    @property
    def status(self):
        return int(self._data.split(b" ", 2)[1]) if self._data.startswith(b"HTTP") else None

    @property
    def whole(self):
        """Whether it came to its own end."""
        return b"data: [DONE]" in self._data

    @property
    def told_to_retry(self):
        """Whether it ended with an error that says that the request can be sent again."""
        return b'"code": "overloaded"' in self._data or b'"code":"overloaded"' in self._data

    @property
    def blind(self):
        """Whether the error says that its service had not seen the database for two seconds: a busy machine does that."""
        return LOST_SIGHT.encode() in self._data

    @property
    def data(self):
        return self._data


def opened(asked):
    """Streams that have begun, all at once; one that is refused with 503 is sent again, as its client should.

    Args:
        asked: port, key and body of each.
    """
    asked, give_up = list(asked), time.monotonic() + PATIENCE_S
    streams = [Stream(*one) for one in asked]
    for n, one in enumerate(asked):
        while True:
            assert streams[n].begun.wait(PATIENCE_S)
            if streams[n].status == 200:
                break
            assert streams[n].status == 503, streams[n].data
            assert time.monotonic() < give_up
            time.sleep(0.1)
            streams[n] = Stream(*one)
    return streams

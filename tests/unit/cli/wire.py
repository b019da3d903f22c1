"""A small HTTP server that answers as scripted: the wire's other side for tests of the command alone."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Wire:
    """Answers by (method, path); a list of answers is given out one by one, the last one for ever."""

    def __init__(self):
        self.answers = {}
        self.requests = []
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                wire.requests.append((self.command, self.path, dict(self.headers), body))
                found = wire.answers.get((self.command, self.path.split("?")[0]), (404, {"error": {}}))
                if isinstance(found, list):
                    found = found.pop(0) if len(found) > 1 else found[0]
                status, content, *headers = found
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in dict(*headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def sse(*chunks, done=True):
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([": ping\n\n", *lines, "data: [DONE]\n\n" if done else ""]).encode()


def piece(index, text, reason=None):
    return {"choices": [{"index": index, "text": text, "finish_reason": reason}]}

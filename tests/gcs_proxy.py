"""A proxy before the tests' server of buckets that answers late, not at all or with an error, as networks and servers do."""

import collections
import contextlib
import http.client
import http.server
import json
import random
import threading
import time
from typing import Any

LOST = 0  # in place of a status: the request is not passed on and never answered
UNHEARD = -503  # the request is passed on, and its answer replaced by 503
WRITES = ("POST", "PUT", "DELETE", "PATCH")
MESSAGES = {
    403: "me@jaxdiff does not have storage.objects.create access to the Google Cloud Storage object.",
    404: "The specified bucket does not exist.",
    503: "We encountered an internal error. Please try again.",
}


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to the server at `behind`, HOST:PORT, and counts them.

    `fault` is a function of a method and a path; the request waits for it, and is answered with the status that it returns.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.behind, self.fault, self.over = "", passed_on, threading.Event()
        self.counts = collections.Counter()

    def handle_error(self, request, client_address):
        """Clients that were killed are no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server_behind = http.client.HTTPConnection(self.server.behind)

    def finish(self):
        super().finish()
        self.server_behind.close()

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.counts[self.command] += 1
        status = self.server.fault(self.command, self.path)
        if status in (None, UNHEARD):
            self.server_behind.request(self.command, self.path, body, dict(self.headers))
            with self.server_behind.getresponse() as answer:
                code, headers, text = answer.status, answer.getheaders(), answer.read()
            if status is None:
                self.answer(code, headers, text)
                return
            status = 503
        if status == LOST:
            self.server.over.wait()
            self.close_connection = True
        else:
            text = json.dumps({"error": {"code": status, "message": MESSAGES[status]}}).encode()
            self.answer(status, [("Content-Type", "application/json")], text)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = pass_on

    def answer(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def passed_on(method, path):
    """No fault."""


def slow(seconds):
    """That many seconds more for each request."""

    def fault(method, path):
        time.sleep(seconds)

    return fault


def outage(seconds, status=None):
    """From now on as many seconds in which requests wait for the end, or have that status: `LOST`, or an error's."""
    end = time.monotonic() + seconds

    def fault(method, path):
        left = end - time.monotonic()
        if left > 0 and status is not None:
            return status
        time.sleep(max(left, 0))
        return None

    return fault


def failing(share, seed=0):
    """503 to that share of the requests."""
    chance = random.Random(seed)
    return lambda method, path: 503 if chance.random() < share else None


def unheard(share, seed=0):
    """503 to that share of the requests, after they have been carried out; not of uploads in parts, which the server forgets."""
    chance = random.Random(seed)
    return lambda method, path: UNHEARD if chance.random() < share and "upload_id" not in path else None


def read_only(method, path):
    """403 on writing."""
    return 403 if method in WRITES else None


def gone(method, path):
    """The bucket is not there any more."""
    return 404


@contextlib.contextmanager
def proxy():
    """A proxy in threads of this process, until the end of the block."""
    server = Proxy()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()

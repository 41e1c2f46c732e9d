"""A server in front of MLflow's, that answers slowly and breaks uploads off."""

import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Proxy(ThreadingHTTPServer):
    """Hands every request on to the server at `target`.

    Args:
        target: http://HOST:PORT.
        host: where it listens.
    """

    daemon_threads = True

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        self.target = urlsplit(target).netloc
        self.delay_s = 0.0
        """Before every answer."""
        self.uploads_to_break = 0
        """So many of the next PUT requests reach the server by half, and are never answered."""
        super().__init__((host, 0), Handler)
        self.uri = f"http://{host}:{self.server_port}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one(self) -> None:
        """Hands a request on, and its answer back."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        behind = HTTPConnection(self.server.target, timeout=60)
        if self.command == "PUT" and self.server.uploads_to_break > 0:
            self.server.uploads_to_break -= 1
            behind.putrequest("PUT", self.path, skip_accept_encoding=True)
            for name, value in headers.items():
                behind.putheader(name, value)
            behind.endheaders(body[: len(body) // 2])
            behind.close()
            self.close_connection = True
            return
        behind.request(self.command, self.path, body, headers)
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        time.sleep(self.server.delay_s)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815 the names that http.server asks for

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are not worth a line each."""

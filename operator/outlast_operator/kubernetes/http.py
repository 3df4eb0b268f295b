"""The operator's two small HTTP endpoints: health for the kubelet, metrics for Prometheus."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

log = logging.getLogger("outlast.serving")

Answer = tuple[int, str]  # status, text


def serve(port: int, answers: Mapping[str, Callable[[], Answer]]) -> ThreadingHTTPServer:
    """Answer GET for each path, in threads of their own, until `shutdown`. Raises `OSError` when the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            code, text = answer() if answer is not None else (404, f"no such path; paths: {', '.join(answers)}\n")
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format, *args)

    server = ThreadingHTTPServer(("", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name=f"http-{port}", daemon=True).start()
    return server

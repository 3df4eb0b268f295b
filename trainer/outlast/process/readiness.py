"""Whether others may count on this server, told over HTTP: `GET /readyz` answers 200 or 503.

Ready means: a member of the installed view that holds its state. A kubelet asks, and disruption budgets count the
answer, so it comes from the server alone: it is true while no operator runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

log = logging.getLogger("outlast.readiness")

PATH = "/readyz"
PORT_EXTRA = "readiness_port"  # in a server's ProcessConfig.extras; without it nothing is served


def serve_readiness(port: int, why_not: Callable[[], str]) -> ThreadingHTTPServer | None:
    """Answer on `port` (0: any that is free) from now on. `why_not`: what is missing, "" when the server is ready.

    A port that is taken is a warning, and the pod stays unready.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0  # for a client that connects and asks nothing

        def do_GET(self) -> None:
            missing = why_not() if self.path == PATH else f"only {PATH} is served"
            body = (missing or "ready").encode() + b"\n"
            self.send_response(200 if not missing else 404 if self.path != PATH else 503)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format, *args)

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        log.warning("readiness cannot be asked: port %d cannot be listened on (%s)", port, error)
        return None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="readiness", daemon=True).start()
    return server

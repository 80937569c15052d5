"""Serves one report page and nothing else: ``python -m deploy.serve PAGE PORT``.

The page shows training images: it is published on this machine's loopback address only.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def report_server(page: Path, port: int, *, host: str = "0.0.0.0") -> ThreadingHTTPServer:
    """A server that answers ``/`` with the page, ``/health`` with ``ok`` and everything else with 404.

    Raises:
        FileNotFoundError: If there is no page.
        OSError: If the port is taken.
    """
    content = page.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "report", ""

        def do_GET(self) -> None:
            answers = {"/": (content, "text/html; charset=utf-8"), "/health": (b"ok\n", "text/plain")}
            found = answers.get(self.path)
            body, kind = found or (b"not found\n", "text/plain")
            self.send_response(200 if found else 404)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "X-Frame-Options": "DENY",
                "Referrer-Policy": "no-referrer",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)


if __name__ == "__main__":
    with report_server(Path(sys.argv[1]), int(sys.argv[2])) as server:
        server.serve_forever()

"""Health check of a Flower process: ``python -m deploy.health URL``. TLS trusts CA_CERTIFICATE only."""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request


def healthy(url: str, *, certificate: str | None = None, seconds: float = 4.0) -> bool:
    """Whether the address answers a GET with 200, over TLS with a certificate that the authority has signed."""
    context = ssl.create_default_context(cafile=certificate) if url.startswith("https:") else None
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(sys.argv[1], certificate=os.environ.get("CA_CERTIFICATE")) else 1)

"""Tables of documentation pages that a benchmark writes: what stands between two marks of the page is replaced."""

from __future__ import annotations

from pathlib import Path


def write_between(page: Path, name: str, text: str) -> None:
    """Put a text between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Raises:
        ValueError: If the page does not have both marks once, in this order.
    """
    content = page.read_text(encoding="utf-8")
    opening, closing = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if content.count(opening) != 1 or content.count(closing) != 1 or content.index(opening) > content.index(closing):
        raise ValueError(f"{page}: expected the marks {opening} and {closing}, once each and in this order")
    before, _, rest = content.partition(opening)
    _, _, after = rest.partition(closing)
    page.write_text(f"{before}{opening}\n{text.strip()}\n{closing}{after}", encoding="utf-8")

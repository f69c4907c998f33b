"""Pages that are one file: style, script and data inside, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGES = Path(__file__).with_name("pages")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def write_page(
    path: Path,
    title: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    data: Mapping[str, str],
    body: str = "",
) -> None:
    """Write a page whose own script is all that may run in it.

    The page forbids every other script, and any connection, by a content security policy with the
    hashes of its own style and script (any style where there is a body); data are in base64, so
    that no text can end their element.

    Args:
        styles, scripts: names of files in `pages/`, put together in this order.
        data: JSON by the id under which the script finds it, gzipped.
        body: markup, for what no script has to make; texts in it are escaped already.
    """
    style = "\n".join((PAGES / name).read_text(encoding="utf-8") for name in styles)
    script = "\n".join((PAGES / name).read_text(encoding="utf-8") for name in scripts)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    styles_from = "unsafe-inline" if body else _hash(style)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{styles_from}'; "
        "base-uri 'none'; form-action 'none'"
    )
    for name, text in data.items():
        block = base64.b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode()
        body += f'<script type="application/gzip" id="{name}">{block}</script>\n'
    parts = {"policy": policy, "style": style, "body": body, "script": script}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PAGE.format(title=html.escape(title), **parts), encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"

"""The page as one HTML file that needs no server and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from teacher_proto.page.document import check_document
from teacher_proto.page.files import one_script, page_files, source_hash

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="offline">
<main>
<h1>{title}</h1>
<div id="look"><noscript>This page draws its rows with a script of its own.</noscript></div>
</main>
<script type="application/json" id="rows">{rows}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def render_offline(document: Mapping[str, Any], title: str = "Rows of a teacher") -> str:
    """HTML that shows a document of rows (docs/inspect.md) without a server.

    Its content-security policy names its own script and style by their hashes and allows
    nothing else, so that nothing in the document is run.

    Raises:
        InvalidRequestError: the document is not one, and where.
    """
    check_document(document)
    script, style = _sources()
    policy = (
        f"default-src 'none'; script-src {source_hash(script)}; "
        f"style-src {source_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    return PAGE.format(
        policy=policy,
        title=escape(title),
        style=style,
        rows=_inside_script(document),
        script=script,
    )


def embedded(document: Mapping[str, Any], title: str = "Rows of a teacher") -> str:
    """The same as an ``iframe`` to be put into another page; raises as ``render_offline``.

    The frame may run its own script and do nothing else: it has no origin, so that it reaches
    neither the page around it nor anything stored. A page with a content-security policy has
    to allow ``frame_sources()``.
    """
    page = escape(render_offline(document, title))
    return (
        f'<iframe class="rows" title="{escape(title)}" sandbox="allow-scripts" loading="lazy" '
        f'srcdoc="{page}"></iframe>'
    )


def frame_sources() -> tuple[str, str]:
    """(script, style): the hashes that a policy around an embedded page has to allow."""
    script, style = _sources()
    return source_hash(script), source_hash(style)


def _sources() -> tuple[str, str]:
    return one_script("offline.js"), page_files()["page.css"].decode()


def _inside_script(value: Any) -> str:
    """JSON in ASCII in which no character can end the element that it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

"""/docs: the API as one page without scripts, so that it needs no other server."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
td,th{border:1px solid #8884;padding:.3rem .6rem;text-align:left;vertical-align:top}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}
pre{background:#8881;padding:1rem;overflow:auto}
"""
# Of a field; how an OpenAPI document names a bound -> what the page says.
BOUNDS = {
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
}
EXAMPLE = """curl -s -H 'Content-Type: application/json' \\
  -d '{"prompt":{"messages":[{"role":"user","content":"Hello"}]},
       "continuations":[{"text":"Hi!"}],"top_k":5,"temperature":1}' \\
  http://HOST:PORT/v1/score"""


def docs_page(document: dict[str, Any]) -> str:
    """HTML for an OpenAPI document: routes first, then every schema's fields."""
    routes = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td>"
        f"<td>{escape(operation.get('description', ''))}</td></tr>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    schemas = "".join(
        _schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())
    )
    title = escape(document["info"]["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><h1>{title} {escape(document['info']['version'])}</h1>"
        f"<p>The machine-readable form is <a href=/openapi.json>/openapi.json</a>.</p>"
        f"<h2>Routes</h2><table>{routes}</table><pre>{escape(EXAMPLE)}</pre>"
        f"<h2>Schemas</h2>{schemas}</html>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(facts)}{_bounds(facts)}</td>"
        f"<td>{'required' if field in required else 'optional'}</td>"
        f"<td>{escape(facts.get('description', ''))}</td></tr>"
        for field, facts in schema.get("properties", {}).items()
    )
    return (
        f"<h3 id={escape(name)}>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>"
        f"<table><tr><th>field<th>type<th><th>meaning</tr>{rows}</table>"
    )


def _bounds(facts: dict[str, Any]) -> str:
    """The bounds of a field, in words."""
    found = (text.format(facts[name]) for name, text in BOUNDS.items() if name in facts)
    return "".join(f", {text}" for text in found)


def _type(facts: dict[str, Any]) -> str:
    if "$ref" in facts:
        name = escape(facts["$ref"].rpartition("/")[2])
        return f"<a href=#{name}>{name}</a>"
    if "anyOf" in facts:
        return " or ".join(_type(option) for option in facts["anyOf"])
    if facts.get("type") == "array":
        return f"list of {_type(facts.get('items', {}))}"
    return escape(str(facts.get("type", "any")))

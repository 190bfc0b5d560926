"""Random requests made of an OpenAPI document, by seed: as it describes them, and otherwise."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

ODD_TEXTS = ("", "a", "\x00", "é\u2028", "\ud800", "../..", "default", "{}", "0" * 300, "%00", "🙂")
ODD_NUMBERS = (0, -1, 1, 2, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, 1e308, 1e-300, 0.5)
ODD_VALUES: tuple[Any, ...] = (None, True, [], {}, "x", -1, 1.5, [[]], {"a": None}, "\ud800")
DEPTH = 8
# A call that is given no time is answered with 504, as it must be: it gets enough here.
TIME = 30.0
WRONG_TYPES = ("text/plain", "application/xml", "application/json; charset=latin1", "")


@dataclass(frozen=True)
class Case:
    """One request; ``valid``: made as the document says."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    valid: bool


class Maker:
    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self.document = document
        self.random = random.Random(seed)
        self.fill = 0.5  # how likely a property is that may be left out

    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [
            (method, path, operation)
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
            if method in ("get", "post", "put", "patch", "delete", "head")
        ]

    def cases(
        self, method: str, path: str, operation: dict[str, Any], count: int
    ) -> Iterator[Case]:
        for number in range(count):
            yield self.case(method, path, operation, valid=number % 2 == 0)

    def case(self, method: str, path: str, operation: dict[str, Any], *, valid: bool) -> Case:
        self.fill = self.random.choice((0.05, 0.1, 0.5))
        query = []
        for parameter in operation.get("parameters", []):
            parameter = self.resolved(parameter)
            if parameter["in"] != "query":
                continue
            if not parameter.get("required") and self.random.random() < 0.5:
                continue
            value = self.value(parameter.get("schema", {}))
            if not valid:
                value = self.random.choice(ODD_TEXTS)
            for one in value if isinstance(value, list) else [value]:
                text = one if isinstance(one, str) else json.dumps(one)
                query.append(f"{quote(parameter['name'])}={quote(text, errors='surrogatepass')}")
        headers, body = {}, b""
        content = self.resolved(operation.get("requestBody", {})).get("content", {})
        if content:
            kind = self.random.choice(list(content))
            headers["content-type"] = kind
            value = self.value(content[kind].get("schema", {}))
            if not valid:
                value = self.spoiled(value)
            body = value.encode("utf-8", "replace") if isinstance(value, str) else dumped(value)
            if not valid:
                body, headers = self.spoiled_bytes(body, headers)
        target = path + ("?" + "&".join(query) if query else "")
        return Case(method.upper(), target, headers, body, valid)

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            found: Any = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            schema = found
        return schema

    def value(self, schema: dict[str, Any], depth: int = 0, name: str = "") -> Any:
        """A value of the schema; ``name`` of the property that it is for."""
        schema = self.resolved(schema)
        if name == "timeout_seconds":
            return TIME
        if "oneOf" in schema and "properties" in schema:
            schema = self._with_one(schema)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self.value(self.random.choice(schema[key]), depth, name)
        if "allOf" in schema:
            merged: dict[str, Any] = {}
            for part in schema["allOf"]:
                merged |= self.resolved(part)
            return self.value(merged, depth, name)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.random.choice(schema["enum"])
        if "default" in schema and self.random.random() < 0.2:
            return schema["default"]
        kind = schema.get("type")
        kind = self.random.choice(kind) if isinstance(kind, list) else kind
        if kind is None:
            kind = "object" if "properties" in schema else "string"
        return getattr(self, f"_{kind}")(schema, depth)

    def _with_one(self, schema: dict[str, Any]) -> dict[str, Any]:
        """An object of which one of several properties is wanted, with one of them chosen."""
        options = [set(option["required"]) for option in schema["oneOf"]]
        wanted = self.random.choice(options)
        others = set().union(*options) - wanted
        properties = {name: of for name, of in schema["properties"].items() if name not in others}
        for name in wanted:  # null stands for nothing
            properties[name] = properties[name].get("anyOf", [properties[name]])[0]
        required = [*schema.get("required", ()), *sorted(wanted)]
        rest = {key: value for key, value in schema.items() if key != "oneOf"}
        return rest | {"properties": properties, "required": required}

    def _object(self, schema: dict[str, Any], depth: int) -> Any:
        required = set(schema.get("required", []))
        made = {}
        properties = schema.get("properties", {})
        if properties and not required and self.random.random() < 0.6:
            key = self.random.choice(list(properties))  # where exactly one is wanted
            return {key: self.value(properties[key], depth + 1, key)}
        for key, of in properties.items():
            wanted = key in required or (depth < DEPTH and self.random.random() < self.fill)
            if wanted:
                made[key] = self.value(of, depth + 1, key)
        if schema.get("additionalProperties") not in (None, False) and self.random.random() < 0.3:
            made[self._string({}, depth)] = self.random.choice(ODD_VALUES[:-1])
        return made

    def _array(self, schema: dict[str, Any], depth: int) -> Any:
        least = schema.get("minItems", 0)
        most = min(schema.get("maxItems", 4), 4) if depth < DEPTH else least
        return [
            self.value(schema.get("items", {}), depth + 1)
            for _ in range(self.random.randint(least, max(least, most)))
        ]

    def _string(self, schema: dict[str, Any], depth: int) -> str:
        if self.random.random() < 0.3:
            return self.random.choice(["default", "a", "hello world", "é", "1:turn_end"])
        length = self.random.randint(schema.get("minLength", 0), schema.get("maxLength", 20))
        return "".join(self.random.choice("abc 019é🙂\n") for _ in range(min(length, 300)))

    def _integer(self, schema: dict[str, Any], depth: int) -> int:
        low = int(schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1))
        high = int(schema.get("maximum", 400))
        if self.random.random() < 0.9 and low <= 9 and high >= 0:
            return self.random.randint(max(low, 0), min(high, 9))
        return self.random.choice([low, high, self.random.randint(low, high)])

    def _number(self, schema: dict[str, Any], depth: int) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0.0))
        return float(low) + self.random.choice([0.5, 1.0, 2.0])

    def _boolean(self, schema: dict[str, Any], depth: int) -> bool:
        return self.random.random() < 0.5

    def _null(self, schema: dict[str, Any], depth: int) -> None:
        return None

    def spoiled(self, value: Any) -> Any:
        """The value with something in it exchanged, left out or added."""
        chance = self.random.random()
        if isinstance(value, dict) and value and chance < 0.9:
            key = self.random.choice(list(value))
            if chance < 0.15:
                return {k: v for k, v in value.items() if k != key}
            if chance < 0.25:
                return value | {self.random.choice(ODD_TEXTS): self.random.choice(ODD_VALUES)}
            if key == "timeout_seconds":
                return value | {key: self.random.choice(["1", None, -1.0, 0, True])}
            return value | {key: self.spoiled(value[key])}
        if isinstance(value, list) and value and chance < 0.8:
            place = self.random.randrange(len(value))
            return [*value[:place], self.spoiled(value[place]), *value[place + 1 :]]
        odd = (ODD_VALUES, ODD_TEXTS, ODD_NUMBERS)[self.random.randrange(3)]
        return self.random.choice(odd)  # type: ignore[arg-type]

    def spoiled_bytes(self, body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        chance = self.random.random()
        if chance < 0.1 and body:
            return body[: self.random.randrange(len(body))], headers
        if chance < 0.2:
            place = self.random.randrange(len(body) + 1)
            return body[:place] + self.random.randbytes(3) + body[place:], headers
        if chance < 0.3:
            return body, headers | {"content-type": self.random.choice(WRONG_TYPES)}
        return body, headers


def dumped(value: Any) -> bytes:
    """JSON with lone surrogates escaped and infinities as Python writes them."""
    return json.dumps(value).encode()

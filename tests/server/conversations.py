"""Fifty conversations whose rendering shows the order of keys and the types of numbers."""

from __future__ import annotations

from typing import Any

USER = {"role": "user", "content": "What is the weather in São Paulo? 天気は?"}
SYSTEM = {"role": "system", "content": "Answer with the tools."}


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    function = {"name": name, "description": "It asks.", "parameters": parameters}
    return {"type": "function", "function": function}


TYPED = tool(
    "weather",
    type="object",
    properties={
        "unit": {"type": "string", "enum": ["kelvin", "celsius"], "default": None},
        "days": {"type": "integer", "minimum": 1, "maximum": 14, "default": 1.0},
        "city": {"type": "string", "description": "Zürich, 東京, \U0001f324\ufe0f"},
    },
    required=["city", "days"],
)
TOOLS: list[list[dict[str, Any]] | None] = [
    None,
    [TYPED],
    [tool("z", type="object", properties={}), tool("a", required=[], additionalProperties=False)],
    [tool("numbers", default=[1, 1.0, -0.0, 1e22, 1e-7, 2**53 + 1, -(10**30), 0.1, 5e-324])],
    [{"zeta": {"b": {"d": 1, "c": [{"y": 2, "x": 3}]}, "a": {}}, "alpha": []}],
]
ARGUMENTS: list[dict[str, Any]] = [
    {"unit": "kelvin", "city": "São Paulo", "days": 3, "at": {"lon": -46.0, "lat": -23.5}},
    {"zoom": 1.0, "ids": [2**63, -(2**70), 7], "empty": {}, "none": None, "list": []},
    {str(n): n for n in (10, 9, 100, 1)},
    {"quote": "\"<&>'\\", "newline": "a\nb\u2028", "flags": [True, False, None]},
]


def called(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        SYSTEM,
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"b": 1, "a": 2}', "name": "weather"},
        {"role": "user", "content": "And tomorrow?"},
    ]


THOUGHT = [
    USER,
    {"role": "assistant", "content": "Rain.", "reasoning_content": "It is\nwinter.", "a": 0},
    {"role": "user", "content": "Sure?", "name": "ann", "id": 2**60},
]
CONVERSATIONS = [[USER], [SYSTEM, USER], THOUGHT, *(called(one) for one in ARGUMENTS)]
# Keyword arguments of the template beside the tools.
OWN: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False},
    {"zone": {"b": 1, "a": 1.0}, "date_string": "01 Jan 2026", "budget": 1e3},
]
# {"messages", "template_arguments"}, as a row of a dataset and as HTTP's prompt has them.
ROWS = [
    {
        "messages": messages,
        "template_arguments": OWN[(i + j) % 3] | ({} if tools is None else {"tools": tools}),
    }
    for i, messages in enumerate(CONVERSATIONS)
    for j, tools in enumerate(TOOLS)
] + [
    {
        "messages": called({"b": n, "a": float(n)}),
        "template_arguments": {"tools": [TYPED, tool("b", x={}, a=n)]},
    }
    for n in range(15)
]

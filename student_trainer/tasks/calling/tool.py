"""What a tool is, and the two that are there: a calculator and a look-up table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from student_trainer.tasks.calling.calculator import CalculatorError, calculate


class ToolError(ValueError):
    """A call that a tool refuses; the student reads why."""


class Tool:
    """A tool that the student may call.

    Attributes:
        name: by which it is called.
        description: for the student.
        arguments: name and description of each of its arguments, which are texts.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    arguments: ClassVar[Mapping[str, str]]

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in the form that chat templates read (``tools``)."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {
                        name: {"type": "string", "description": what}
                        for name, what in self.arguments.items()
                    },
                    "required": list(self.arguments),
                },
            },
        }

    def call(self, **arguments: str) -> str:
        """The result of a call. Depends on its arguments and the tool's own state alone.

        Raises:
            ToolError: it refuses these arguments. Any other error is told to the student too.
        """
        raise NotImplementedError


class Calculator(Tool):
    """Works out an expression."""

    name = "calculator"
    description = "Works out an arithmetic expression of numbers, + - * / // % ** and brackets."
    arguments: ClassVar[Mapping[str, str]] = {"expression": "The expression, such as (3 + 4) * 12."}

    def call(self, **arguments: str) -> str:
        """As ``Tool.call``."""
        try:
            return calculate(arguments["expression"])
        except CalculatorError as error:
            raise ToolError(str(error)) from error


class LookUp(Tool):
    """Gives the entries of a table."""

    name = "look_up"
    description = "Looks up the entry of a table by its exact key."
    arguments: ClassVar[Mapping[str, str]] = {"key": "The key of the entry."}

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table

    def call(self, **arguments: str) -> str:
        """As ``Tool.call``."""
        key = arguments["key"].strip()
        if key not in self._table:
            raise ToolError("there is no such entry")
        return self._table[key]

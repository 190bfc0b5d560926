"""Which names a chat template reads from what it is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes

RAISE = "raise_exception"
OF_A_MACRO = {"caller", "varargs", "kwargs"}


def names_read(template: Any) -> frozenset[str]:
    """Names that the template can read before it has set them itself, globals among them.

    A name that every branch sets before it is read is the template's own, whatever it is
    given; one that is set only where it ``is not defined`` is read.

    Args:
        template: the source, as jinja's ``Environment.parse`` returns it.
    """
    reader = _Reader(template)
    reader.block(template.body, set())
    return frozenset(reader.found)


class _Reader:
    """Follows a template and notes the names that may be read before they are set."""

    def __init__(self, template: Any) -> None:
        self.found: set[str] = set()
        # A macro may call one that is defined after it.
        self._macros = {macro.name for macro in template.find_all(nodes.Macro)}

    def block(self, body: Iterable[Any], given: set[str]) -> set[str] | None:
        """The names that are set after ``body`` where those of ``given`` were before it;
        None when it does not end: it raises, or leaves a loop."""
        known = set(given)
        for node in body:
            after = self._statement(node, known)
            if after is None:
                return None
            known = after
        return known

    def _statement(self, node: Any, known: set[str]) -> set[str] | None:
        match node:
            case nodes.Assign():
                self._read(node.node, known)
                return known | _targets(node.target)
            case nodes.AssignBlock():
                self._read(node.filter, known)
                self.block(node.body, known)
                return known | _targets(node.target)
            case nodes.If():
                return self._branches(node, known)
            case nodes.For():
                self._read(node.iter, known)
                inside = known | _targets(node.target) | {"loop"}
                self._read(node.test, inside)
                self.block(node.body, inside)
                self.block(node.else_, known)
            case nodes.Macro() | nodes.CallBlock():
                if isinstance(node, nodes.CallBlock):
                    self._read(node.call, known)
                for default in node.defaults:
                    self._read(default, known)
                arguments = {name.name for name in node.args}
                self.block(node.body, known | arguments | OF_A_MACRO | self._macros)
                if isinstance(node, nodes.Macro):
                    return known | {node.name}
            case nodes.With():
                for value in node.values:
                    self._read(value, known)
                self.block(node.body, known.union(*map(_targets, node.targets)))
            case nodes.Output():
                self._read(node, known)
                if any(map(_raises, node.nodes)):
                    return None
            case nodes.Break() | nodes.Continue():
                return None
            case nodes.FilterBlock() | nodes.Scope() | nodes.Block():
                self._read(getattr(node, "filter", None), known)
                self.block(node.body, known)
            case _:
                self._read(node, known)
        return known

    def _branches(self, node: Any, known: set[str]) -> set[str] | None:
        self._read(node.test, known)
        ends = [self.block(node.body, known)]
        for other in node.elif_:
            self._read(other.test, known)
            ends.append(self.block(other.body, known))
        ends.append(self.block(node.else_, known))
        ended = [end for end in ends if end is not None]
        return set.intersection(*ended) if ended else None

    def _read(self, node: Any, known: set[str]) -> None:
        if node is None:
            return
        names = [node] if isinstance(node, nodes.Name) else node.find_all(nodes.Name)
        self.found |= {name.name for name in names if name.ctx == "load"} - known


def _targets(node: Any) -> set[str]:
    names = [node] if isinstance(node, nodes.Name) else node.find_all(nodes.Name)
    return {name.name for name in names}


def _raises(node: Any) -> bool:
    return (
        isinstance(node, nodes.Call)
        and isinstance(node.node, nodes.Name)
        and node.node.name == RAISE
    )

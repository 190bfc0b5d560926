"""What a player sees, told from the facts of a game of TextWorld.

TextWorld writes texts only for games that are compiled for an interpreter, which takes a second a
game. Its Python engine has the rules and the facts; the words for them are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

# A fact: its name and the ids of its arguments, such as ("at", ("P", "r_0")).
Fact = tuple[str, tuple[str, ...]]
DIRECTIONS = ("north", "east", "south", "west")
STATES = ("open", "closed", "locked")
PLAYER, INVENTORY = "P", "I"


def scene(facts: Iterable[Fact], names: Mapping[str, str]) -> str:
    """The player's room, what is in it and in what of it is open, its exits, and what the player
    carries; each list is sorted.

    Args:
        names: of rooms, doors and things, by id.
    """
    known = Facts(facts)
    room = known.where(PLAYER)
    seen = [_told(known, thing, names) for thing in known.holding("at", room) if thing != PLAYER]
    exits = [_exit(known, room, direction, names) for direction in DIRECTIONS]
    carried = [names[thing] for thing in known.holding("in", INVENTORY)]
    return (
        f"You are in the {names[room]}. You see: {_list(seen)}. "
        f"Exits: {'; '.join(way for way in exits if way) or 'none'}. You carry: {_list(carried)}."
    )


class Facts:
    """The facts of one moment."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._by_name: dict[str, list[tuple[str, ...]]] = {}
        for name, arguments in facts:
            self._by_name.setdefault(name, []).append(arguments)

    def holding(self, name: str, place: str) -> list[str]:
        """What is ``at`` a room, ``in`` a container or ``on`` a supporter."""
        return [thing for thing, where in self._by_name.get(name, []) if where == place]

    def where(self, thing: str) -> str:
        """The room that it is at."""
        return next(room for what, room in self._by_name["at"] if what == thing)

    def state(self, thing: str) -> str:
        """``open``, ``closed``, ``locked``, or nothing."""
        return next((name for name in STATES if (thing,) in self._by_name.get(name, [])), "")

    def beyond(self, room: str, direction: str) -> str | None:
        """The room in a direction of another."""
        found = self._by_name.get(f"{direction}_of", [])
        return next((there for there, here in found if here == room), None)

    def door(self, room: str, there: str) -> str | None:
        """The door between two rooms."""
        found = self._by_name.get("link", [])
        return next((door for a, door, b in found if (a, b) == (room, there)), None)


def _told(known: Facts, thing: str, names: Mapping[str, str]) -> str:
    details = [state] if (state := known.state(thing)) else []
    if held := known.holding("on", thing):
        details.append(f"on it: {_list([names[one] for one in held])}")
    if state == "open":
        held = known.holding("in", thing)
        details.append(f"in it: {_list([names[one] for one in held])}")
    return f"{names[thing]} ({', '.join(details)})" if details else names[thing]


def _exit(known: Facts, room: str, direction: str, names: Mapping[str, str]) -> str:
    there = known.beyond(room, direction)
    if there is None:
        return ""
    door = known.door(room, there)
    if door is None:
        return direction
    return f"{direction} through the {names[door]} ({known.state(door)})"


def _list(words: Sequence[str]) -> str:
    return ", ".join(sorted(words)) or "nothing"

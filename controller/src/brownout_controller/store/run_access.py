"""Runs as somebody may look at them: where each one was, a line of it, its events."""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import insert, select

from brownout_controller.access.decisions import Place
from brownout_controller.store.database import Database
from brownout_controller.store.schema import access, runs
from brownout_controller.store.store import RunLine

UNKNOWN_PLACE = Place("")
"""Where a run was that the API did not start."""
_LINE = [runs.runs.c[name] for name in RunLine.__slots__]
_EVENT = [runs.events.c[name] for name in ("at_ns", "kind", "subject", "host", "message")]


class RunAccess:
    """Reads runs, and keeps where they are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note_place(self, number: int, place: Place) -> None:
        """Keep where a run is."""
        with self._database.writing() as connection:
            connection.execute(insert(access.run_places), {"run_number": number, "place": place_json(place)})

    def places_of(self, numbers: Iterable[int]) -> dict[int, Place]:
        """Where these runs were. One that nobody noted belongs to no known environment."""
        numbers = list(numbers)
        table = access.run_places
        with self._database.reading() as connection:
            rows = connection.execute(select(table).where(table.c.run_number.in_(numbers)))
            noted = {row.run_number: place_of_json(row.place) for row in rows}
        return {number: noted.get(number, UNKNOWN_PLACE) for number in numbers}

    def line(self, number: int) -> RunLine | None:
        """One run."""
        with self._database.reading() as connection:
            row = connection.execute(select(*_LINE).where(runs.runs.c.number == number)).first()
        return None if row is None else RunLine(*row)

    def lines_before(self, number: int, limit: int) -> list[RunLine]:
        """Runs with a smaller number, newest first."""
        table = runs.runs
        query = select(*_LINE).where(table.c.number < number).order_by(table.c.number.desc()).limit(limit)
        with self._database.reading() as connection:
            return [RunLine(*row) for row in connection.execute(query)]

    def events_of(self, number: int) -> list[dict[str, Any]]:
        """The events of a run that were kept, in order, as JSON values."""
        table = runs.events
        query = select(*_EVENT).where(table.c.run_number == number).order_by(table.c.position)
        with self._database.reading() as connection:
            return [{**row, "detail": {}} for row in connection.execute(query).mappings()]


def place_json(place: Place) -> str:
    """A place as it is kept."""
    return json.dumps({"environment": place.environment, "hosts": [dict(labels) for labels in place.hosts]})


def place_of_json(text: str) -> Place:
    """A place that was kept."""
    document = json.loads(text)
    return Place(document["environment"], tuple(document["hosts"]))

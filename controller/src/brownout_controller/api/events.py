"""A run's events as they happen (server-sent events, WHATWG HTML 9.2). Ids are positions, so a lost stream is resumed.

What a reader has not taken stays in the run's own list and costs nothing; still, one that is 1 MiB behind reads no
more, and its stream ends. So does the stream of somebody who may not see the run any more, within 2 s.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from brownout_controller.record import Event
from brownout_controller.running.manager import ActiveRun

BACKLOG_MAX_BYTES = 1024 * 1024
HEARTBEAT_S = 10.0
LOOK_EVERY_S = 1.0
"""Whether the reader may still read."""
END = "end"
BARRED = "barred"
_FAREWELL_S = 0.5
"""For a last word to who is barred; nobody waits for a reader that does not read."""
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


def event_document(event: Event) -> dict[str, Any]:
    """One line of a run's timeline as JSON values."""
    return {
        "at_ns": event.at_ns,
        "kind": event.kind.value,
        "subject": event.subject,
        "host": event.host,
        "message": event.message,
        "detail": event.detail,
    }


def frame(document: dict[str, Any], kind: str = "event", position: int | None = None) -> bytes:
    """One event of the stream. JSON has no line ends, so one `data` line holds it."""
    number = "" if position is None else f"id: {position}\n"
    return f"{number}event: {kind}\ndata: {json.dumps(document)}\n\n".encode()


class EventStream(Response):
    """An answer that goes on as long as its run, and as long as its reader may read it."""

    def __init__(self, run: ActiveRun, first: int, barred: Callable[[], str]) -> None:
        """Follow a run, from the event at position `first` on; `barred` (it blocks) says why its reader may no more."""
        super().__init__()
        self._run = run
        self._barred = barred
        self._barred_why = ""
        self._position = min(first, len(run.events))
        self._behind_bytes = 0
        self._measured = self._position
        self._changed = asyncio.Event()
        self._dropped = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the run is over, the reader has gone, may not read any more, or is too far behind."""
        forget = self._run.listen(self._note)
        tasks = [
            asyncio.create_task(self._write(send)),
            asyncio.create_task(_gone(receive)),
            asyncio.create_task(self._dropped.wait()),
            asyncio.create_task(self._until_barred()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            forget()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not tasks[0].cancelled():
            tasks[0].result()

    def _note(self) -> None:
        for event in self._run.events[self._measured :]:
            self._behind_bytes += len(frame(event_document(event)))
        self._measured = len(self._run.events)
        if self._behind_bytes > BACKLOG_MAX_BYTES:
            self._dropped.set()
        self._changed.set()

    async def _until_barred(self) -> None:
        while not self._barred_why:
            await asyncio.sleep(LOOK_EVERY_S)
            self._barred_why = await asyncio.to_thread(self._barred)
        self._changed.set()
        await asyncio.sleep(_FAREWELL_S)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async for chunk in self._chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._behind_bytes = max(0, self._behind_bytes - len(chunk))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            while self._position < len(self._run.events) and not self._barred_why:
                event = self._run.events[self._position]
                yield frame(event_document(event), position=self._position)
                self._position += 1
            if self._barred_why:
                yield frame({"why": self._barred_why}, BARRED)
                return
            if self._run.task.done():
                yield frame(self._end(), END)
                return
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._changed.wait()
                    continue
            yield b": still going on\n\n"

    def _end(self) -> dict[str, Any]:
        conclusion = self._run.conclusion
        if conclusion is None or conclusion.trouble:  # not kept by us: what it came to is for who closes it to say
            return end_document(None, None, None)
        return end_document(conclusion.verdict, int(conclusion.exit_code), conclusion.headline)


class PastEvents(Response):
    """The same of a run that is over."""

    def __init__(self, events: Iterable[dict[str, Any]], first: int, end: dict[str, Any]) -> None:
        super().__init__()
        self._frames = [frame(event, position=n) for n, event in enumerate(events) if n >= first]
        self._frames.append(frame(end, END))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        for chunk in self._frames:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def end_document(verdict: str | None, exit_code: int | None, headline: str | None) -> dict[str, Any]:
    """The last event of every stream; all None where this controller does not know how the run ended, or will."""
    return {"verdict": verdict, "exit_code": exit_code, "headline": headline}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""Requests within bounds: so many parameters, so large a body, in so much time, and strict JSON."""

import asyncio
from typing import Any

from fastapi import Request

from brownout_controller.api.problems import Problem
from brownout_controller.api.strict_json import NotJson, strict_loads
from brownout_controller.language.source import LARGEST_BYTES

BODY_MAX_BYTES = 2 * LARGEST_BYTES + 64 * 1024
"""An experiment of the largest size as a JSON string, where a line's end takes two characters, and what is about it."""
BODY_WITHIN_S = 10.0
PARAMETERS_MAX = 50
HEADERS_MAX_BYTES = 16 * 1024
_OFF_LOOP_BYTES = 16 * 1024


class BoundedRequest(Request):
    """What FastAPI reads of a request goes through here."""

    def check_head(self) -> None:
        """Refuse more parameters than any route has, and headers that no client of ours would send.

        Raises:
            Problem: 400 or 431.
        """
        if sum(len(name) + len(value) for name, value in self.scope["headers"]) > HEADERS_MAX_BYTES:
            raise Problem(431, "large-headers", f"the headers are larger than {HEADERS_MAX_BYTES // 1024} KiB")
        if self.scope["query_string"].count(b"&") >= PARAMETERS_MAX:
            raise Problem(400, "too-many-parameters", f"a request has at most {PARAMETERS_MAX} parameters")

    async def body(self) -> bytes:
        """The body.

        Raises:
            Problem: 413 when it is too large, 408 when it comes too slowly.
        """
        if not hasattr(self, "_body"):
            declared = self.headers.get("content-length", "0")
            if not declared.isdecimal() or int(declared) > BODY_MAX_BYTES:
                raise _too_large()
            try:
                async with asyncio.timeout(BODY_WITHIN_S):
                    self._body = await self._read()
            except TimeoutError:
                raise Problem(408, "slow-body", f"the body did not come within {BODY_WITHIN_S:g} s") from None
            if self._body and not _is_json(self.headers.get("content-type", "")):
                raise Problem(400, "not-json", "the body is not declared as JSON", "", "Content-Type: application/json")
        return self._body

    async def json(self) -> Any:
        """The body's value.

        Raises:
            Problem: 400 for what is not strict JSON.
        """
        body = await self.body()
        try:
            return await asyncio.to_thread(strict_loads, body) if len(body) > _OFF_LOOP_BYTES else strict_loads(body)
        except NotJson as error:
            raise Problem(400, "not-json", "the body is not JSON as it should be", str(error)) from error

    async def _read(self) -> bytes:
        chunks, size = [], 0
        async for chunk in self.stream():
            size += len(chunk)
            if size > BODY_MAX_BYTES:
                raise _too_large()
            chunks.append(chunk)
        return b"".join(chunks)


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _too_large() -> Problem:
    title = f"the body is larger than {BODY_MAX_BYTES // 1024} KiB"
    return Problem(413, "too-large", title, "", "an experiment has at most 256 KiB; use `vars` for what repeats")

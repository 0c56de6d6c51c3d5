"""The caller's end of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

from .driver import STREAM, WHOLE
from .request import Generation, Request, State

if TYPE_CHECKING:
    from .engine import Engine


class Handle:
    """An iterator over the new tokens of an answer, for ``for`` and for ``async for``.

    The engine works while somebody waits for a token, for everybody. A handle that is closed or forgotten is
    a cancelled request.

    Attributes:
        record: what came of it so far.
    """

    def __init__(self, engine: Engine, request: Request, others: Sequence[Handle] = ()) -> None:
        self._engine, self._request = engine, request
        self._taken = 0
        self.record: Generation = request.record
        self._others = others

    @property
    def samples(self) -> list[Handle]:
        """The handles of all answers to the prompt, this one first."""
        return [self, *self._others]

    @property
    def ready(self) -> bool:
        """Whether ``take`` has something to give, or there is nothing more to come."""
        return self._taken < len(self.record.tokens) or self.finished

    @property
    def begins(self) -> bool:
        """Whether ``take`` would give the answer's first token."""
        return not self._taken and bool(self.record.tokens)

    @property
    def finished(self) -> bool:
        """Whether the last token is there."""
        return self._request.state is State.DONE

    @property
    def exhausted(self) -> bool:
        """Whether all of it was taken."""
        return self.finished and self._taken == len(self.record.tokens)

    @property
    def error(self) -> BaseException | None:
        """What went wrong; iterating raises it."""
        return self._request.error

    def take(self) -> list[int]:
        """New tokens that are there already."""
        taken = self.record.tokens[self._taken :]
        self._taken += len(taken)
        return taken

    def result(self) -> Generation:
        """The whole answer.

        Raises:
            Exception: what the request failed with.
        """
        while not self.finished:
            self._engine.wait([self], WHOLE)
        self.take()
        self._raise()
        return self.record

    def cancel(self) -> None:
        """Want no more: its pages are free now, or with the end of the step that it is part of."""
        self._engine.cancel(self._request)

    close = cancel

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self.ready:
            self._engine.wait([self], STREAM)
        if self._taken < len(self.record.tokens):
            return self._next()
        self._raise()
        raise StopIteration

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        if not self.ready:
            try:
                await self._engine.wait_async([self], STREAM)
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self._taken < len(self.record.tokens):
            return self._next()
        self._raise()
        raise StopAsyncIteration

    def _next(self) -> int:
        self._taken += 1
        return self.record.tokens[self._taken - 1]

    def _raise(self) -> None:
        if self._request.error is not None:
            raise self._request.error

    def __del__(self) -> None:
        request = getattr(self, "_request", None)
        if request is not None and request.state is not State.DONE:
            self._engine.drop(request)

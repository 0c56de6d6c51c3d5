"""A run that is told to end does so after its step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Stop:
    """While it is entered, SIGTERM (as schedulers and ``torchrun`` send it) is noted in ``asked`` and does
    nothing else. Outside the main thread, where no signal arrives, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stop:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

"""Events carried out while load runs: a thread that waits for each one's time and writes down what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cluster.errors import ServingError
from loadtest.events import Event, Happened

if TYPE_CHECKING:
    from loadtest.runs import OnProgress, Progress

Do = Callable[[Event], str]  # carries an event out; what was done, in words


class Playback:
    """Events of one run, in order of time. Time 0 comes from the generators, as the run goes on."""

    def __init__(self, events: Sequence[Event], do: Do, warmup_s: float) -> None:
        self._events = sorted(events, key=lambda event: event.at_s)
        self._do = do
        self._warmup_s = warmup_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._done: list[tuple[float, Event, str, str]] = []  # wall clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The run is over: events still to come are left out."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def beside(self, on_progress: OnProgress | None) -> OnProgress:
        """`on_progress`, with what it is told told to us as well."""

        def told(now: Progress) -> bool | None:
            self.saw(now.t_s)
            return on_progress(now) if on_progress is not None else None

        return told

    def saw(self, t_s: float) -> None:
        """The run is `t_s` seconds old; below 0 it has not begun."""
        if t_s >= 0 and self._thread is None:
            start_s = time.monotonic() - t_s
            self._thread = threading.Thread(target=self._play, args=(start_s,), name="events", daemon=True)
            self._thread.start()

    def happened(self, epoch_s: float) -> tuple[Happened, ...]:
        """What was done, in seconds since `epoch_s` (wall clock at time 0)."""
        return tuple(Happened(at_s - epoch_s, str(event), detail, error) for at_s, event, detail, error in self._done)

    def _play(self, start_s: float) -> None:
        for event in self._events:
            if self._over.wait(max(0.0, start_s + self._warmup_s + event.at_s - time.monotonic())):
                return
            detail = error = ""
            at_s = time.time()
            try:
                detail = self._do(event)
            except ServingError as problem:
                error = problem.message
            except Exception as problem:
                error = f"{type(problem).__name__}: {problem}"
            self._done.append((at_s, event, detail, error))

"""Signals that end a run early: they wait until the loop has saved a checkpoint."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, ClassVar


class Interrupted(BaseException):
    """The run was ended by the signal `number`; `exit_code` is 128 + its number.

    Like KeyboardInterrupt it is no Exception, so that it also ends a sweep, which goes on after a failed run.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number


class StopRequest:
    """Context manager that turns SIGINT, SIGTERM, SIGHUP and SIGUSR1 into `Interrupted`.

    The exception is raised at once, or after `defer` when the loop calls `raise_if_asked` between steps. A second
    SIGINT then raises KeyboardInterrupt at once, which is safe because files are whole at any moment. Inside another
    block the outer object is used, so a signal ends a run and the sweep that it belongs to. A signal that is ignored,
    as under nohup, stays ignored, and a handler of SIGUSR1, such as submitit's, stays in place. The previous handler of
    the signal `preemption`, if one is given, is called when the block ends.
    """

    SIGNALS: ClassVar = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # the last two do not exist on Windows
    active: ClassVar[StopRequest | None] = None

    def __init__(self, preemption: signal.Signals | None = None) -> None:
        self.preemption = preemption
        self.number: int | None = None
        self.deferred = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if StopRequest.active is not None:
            self.deferred = StopRequest.active.deferred
            return StopRequest.active
        StopRequest.active = self
        handled = [number for name in self.SIGNALS if self._is_free(number := signal.Signals[name])]
        handled += [] if self.preemption is None else [self.preemption]
        self.previous = {number: signal.signal(number, self._receive) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if StopRequest.active is self:
            StopRequest.active = None
        elif StopRequest.active is not None:
            StopRequest.active.deferred = self.deferred  # as before the inner block
        if self.number is not None and self.number == self.preemption:
            signal.raise_signal(self.number)

    @staticmethod
    def _is_free(number: signal.Signals) -> bool:
        handler = signal.getsignal(number)
        if number == signal.SIGUSR1:  # Slurm's warning, before it preempts a job
            return handler is signal.SIG_DFL
        return handler is not signal.SIG_IGN

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            return
        self.number = number
        if signal.SIGINT in self.previous:
            signal.signal(signal.SIGINT, self._stop_at_once)
        if not self.deferred:
            self.raise_if_asked("nothing was lost")

    def _stop_at_once(self, number: int, frame: FrameType | None) -> None:
        assert self.number is not None
        first = signal.Signals(self.number).name
        raise KeyboardInterrupt(
            f"stopped at once, by an interrupt after {first}; the checkpoints saved before are whole"
        )

    def defer(self) -> None:
        """Let signals wait for `raise_if_asked` from here to the end of the block."""
        self.deferred = True

    def raise_if_asked(self, where: str) -> None:
        """Raise Interrupted if a signal has come; `where` says how to go on."""
        if self.number is not None:
            raise Interrupted(f"stopped by {signal.Signals(self.number).name}; {where}", self.number)


def current_stop() -> AbstractContextManager[StopRequest]:
    """Return the active StopRequest as a context manager.

    If gantrain was called from Python, it is one that never receives a signal. A job of submitit has its own: a signal
    that Slurm sends before it takes the machine ends the run, saved, before submitit queues the job again.
    """
    if StopRequest.active is None and "SUBMITIT_EXECUTOR" in os.environ:
        return StopRequest(signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"])
    return nullcontext(StopRequest()) if StopRequest.active is None else StopRequest()

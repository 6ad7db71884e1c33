"""Which runs are trained at once: each begins, in order, as soon as the device has memory for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from omegaconf import DictConfig

from gantrain.console import say
from gantrain.launch import memory
from gantrain.launch.memory import Need
from gantrain.runs.folder import StopRequest

if TYPE_CHECKING:
    import torch

SHARE = 0.9  # of the free memory; the rest is for what estimates miss


class Running(Protocol):
    """A run that has begun."""

    def stop(self, number: int) -> None:
        """Save it and end it, as at the signal `number`; may be called again."""

    def stop_at_once(self) -> None:
        """End it as at a second interrupt, and return when it has."""


Run = TypeVar("Run", bound=Running)


@dataclass
class Room:
    """How many runs there may be at once on a device, why so many, and how much memory was free to begin with."""

    most: int
    reason: str
    device: torch.device

    def __post_init__(self) -> None:
        self.free_at_first = memory.free(self.device)

    def takes(self, need: Need, running: Sequence[Need]) -> bool:
        """Whether one more run may begin: the first may always. Another may where there is a place, all estimates fit
        into what was free at first (running runs may not have taken theirs yet), and its own fits into what is free
        now (other programs may have taken some)."""
        if not running:
            return True
        fits = memory.total([*running, need]) <= SHARE * self.free_at_first
        return len(running) < self.most and fits and memory.total([need]) <= SHARE * memory.free(self.device)

    def told(self, needs: Sequence[Need]) -> str:
        """How many of runs with these needs will begin at once, and why not more."""
        begun: list[Need] = []
        while len(begun) < len(needs) and self.takes(needs[len(begun)], begun):
            begun.append(needs[len(begun)])
        reason = "all" if len(begun) == len(needs) else self.reason if len(begun) == self.most else "more would not fit"
        largest = max(memory.total([need]) for need in needs) / 2**30
        free = f"up to about {largest:.1f} GiB each, of {self.free_at_first / 2**30:.1f} GiB of free memory"
        return f"{len(needs)} runs on {self.device}, {len(begun)} at once ({reason}); {free}"


def side_by_side(
    waiting: list[tuple[DictConfig, Need]],
    begin: Callable[[DictConfig], Run | None],
    go_on: Callable[[list[Run]], list[Run]],
    room: Room,
) -> None:
    """Begin the runs in order, each as soon as there is room, and let them `go_on`, which gives those not yet done.

    A signal stops all of them. Raises Interrupted once they are saved.
    """
    say(room.told([need for _, need in waiting]))
    running: dict[Run, Need] = {}
    ended = True  # whether one has, so that there may be room: a GPU has to be waited for to know
    with StopRequest() as stop:
        stop.defer()
        try:
            while waiting or running:
                while ended and waiting and room.takes(waiting[0][1], list(running.values())):
                    whole, need = waiting.pop(0)
                    if run := begin(whole):
                        running[run] = need
                still = go_on(list(running))
                ended = len(still) < len(running)
                running = {run: running[run] for run in still}
                if stop.number is not None:
                    waiting.clear()
                    for run in running:
                        run.stop(stop.number)
        finally:
            for run in running:  # a second interrupt has come, which the others have not seen
                run.stop_at_once()
        stop.raise_if_asked("every run that had begun to train is saved")

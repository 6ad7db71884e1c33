"""Several processes that train one run: the part of a batch that each has, and how they communicate.

torchrun or srun starts them, and the environment numbers them. Every process draws the same random numbers, evaluates
its own rows of the global batch, gathers D's outputs, computes the loss of the global batch from them, and adds up the
gradients, so that the numbers of a run do not depend on how many processes share it, but for rounding. The first
process alone writes.
"""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.errors import ConfigError, build_error
from gantrain.failures import describe_failure, watch

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(days=30)  # of processes that wait while the first one evaluates or writes
CONTROL: list[Any] = []  # the process group of what is agreed on, on the CPU, while there are several processes


class Part(NamedTuple):
    """The rows of a global batch that belong to process `rank` of `ranks`.

    Every process draws the whole batch from the same streams and takes its rows. The batch has to be divisible by
    `ranks`. With one process, nothing is sent and every method returns what it is given.
    """

    rank: int = 0
    ranks: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def take(self, rows: Tensor) -> Tensor:
        """Return this process's rows `[B / ranks, …]` of `rows` `[B, …]`."""
        if self.ranks == 1:
            return rows
        size, rest = divmod(len(rows), self.ranks)
        if rest:
            raise ValueError(f"a batch of {len(rows)} cannot be divided among {self.ranks} processes")
        return rows[self.rank * size : (self.rank + 1) * size]

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows `[B, …]` of all processes, of which this one has `rows` `[B / ranks, …]`.

        Only its own rows have a gradient: where every process computes the same loss of all rows, the gradients of the
        processes add up to that of the loss.
        """
        if self.ranks == 1:
            return rows
        from gantrain import collectives

        return collectives.gather(rows, self.rank, self.ranks)

    def add(self, x: Tensor) -> Tensor:
        """Return the sum of the processes' tensors, for a computation in which each goes on with rows of its own."""
        if self.ranks == 1:
            return x
        from gantrain import collectives

        return collectives.sum_over_processes(x)

    def gather_both(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return `gather` of two tensors of the same shape, which are sent together."""
        if self.ranks == 1:
            return first, second
        import torch

        first, second = self.gather(torch.stack([first, second], 1)).unbind(1)
        return first, second

    def agree(self, *numbers: int) -> list[int]:
        """Return the elementwise maximum of `numbers` over all processes."""
        if self.ranks == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        found = torch.tensor(numbers)
        with watch():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=CONTROL[0])
        return [int(number) for number in found]

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.agree(0)

    def broadcast(self, value: Any = None) -> Any:
        """Return the first process's `value`, of tensors and plain data, on the CPU."""
        if self.ranks == 1:
            return value
        import torch
        import torch.distributed as dist

        packed = io.BytesIO()
        if self.is_first:
            torch.save(value, packed)
        sent = [packed.getvalue()]
        with watch():
            dist.broadcast_object_list(sent, group=CONTROL[0])
        return torch.load(io.BytesIO(sent[0]), map_location="cpu", weights_only=True)

    @contextmanager
    def agree_on_errors(self) -> Iterator[None]:
        """Raise the first error of any process in the block in all of them, at its end."""
        if self.ranks == 1:
            yield
            return
        import torch.distributed as dist

        own: Exception | None = None
        try:
            yield
        except Exception as error:  # of any kind: the others wait
            own = error
        found: list[Any] = [None] * self.ranks
        failure: Any = own and describe_failure(own, self.rank)
        with watch():
            dist.all_gather_object(found, failure, group=CONTROL[0])
        if own is not None:
            raise own
        for failure in found:
            if failure is not None:
                raise build_error(**failure)


WHOLE = Part()


def is_several() -> bool:
    """Return whether the environment makes this process one of several, as torchrun does."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_follower() -> bool:
    """Return whether the environment makes this process one that follows the first one of a run."""
    return is_several() and os.environ.get("RANK", "0") != "0"


def current_part() -> Part:
    """Return the part of the batch of this process, `WHOLE` unless it has joined others."""
    if not CONTROL:
        return WHOLE
    import torch.distributed as dist

    return Part(dist.get_rank(), dist.get_world_size())


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count_local_processes() -> int:
    """Return how many processes of this run share the machine's memory, as torchrun says; srun does not."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def default_signal_handlers() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the process in the block: Python's handlers wait for the end of a call of torch."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():  # which alone may set them
        handlers.clear()
    replaced = {number: handler for number, handler in handlers.items() if callable(handler)}  # not one that ignores
    for number in replaced:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextmanager
def join() -> Iterator[Part]:
    """Initialize torch.distributed for the block from the environment variables that torchrun sets.

    Do nothing for a single process. Raises ConfigError if one of them is missing, or if the processes cannot connect.
    """
    if CONTROL or not is_several():
        yield current_part()
        return
    import torch
    import torch.distributed as dist

    try:
        with default_signal_handlers():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            CONTROL.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE is set, but {error}; start the processes with torchrun") from error
    except dist.DistError as error:
        place = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}"
        said = str(error).partition("\n")[0]
        way_out = "give a free port of the first process's machine, which the others can reach"
        raise ConfigError(f"the processes of this run cannot connect at {place}: {said}; {way_out}") from error
    try:
        yield current_part()
    finally:
        CONTROL.clear()
        with suppress(Exception):  # of connections that others have closed
            dist.destroy_process_group()

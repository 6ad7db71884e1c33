"""Failures of a run on several devices: each process leaves the reason why it ended, and the others raise it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gantrain.errors import GantrainError, LostProcessError, build_error
from gantrain.files import convert_system_error

FAILURE = "gantrain/failure"  # key under which a process that fails leaves the reason


@contextmanager
def watch() -> Iterator[None]:
    """Replace the RuntimeError of a failed collective by the error that made another process exit.

    Raises LostProcessError if it left no reason.
    """
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no class of their own for it
        raise find_failure(error) from error


def find_failure(met: Exception) -> GantrainError:
    """Return the error that another process has left, or that it left none and this one met the error `met`."""
    import torch.distributed as dist

    with suppress(Exception):  # the store is gone with the process that had it
        store = dist.distributed_c10d._get_default_store()
        if store.check([FAILURE]):
            return build_error(**json.loads(store.get(FAILURE)))
    return LostProcessError(
        "another process of this run ended without an error message, as when the system kills it because memory runs "
        f"out, or could not be reached: {' '.join(str(met).split())}"
    )


def leave_failure(error: Exception, rank: int) -> None:
    """Tell the other processes why this one ends."""
    import torch.distributed as dist

    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        if not isinstance(error, LostProcessError) and not store.check([FAILURE]):
            store.set(FAILURE, json.dumps(describe_failure(error, rank)))


def describe_failure(error: Exception, rank: int) -> dict[str, Any]:
    """Return the exit code and the message of an error in process `rank`, as `build_error` takes them."""
    remedy = "lower train.batch_size, or choose a smaller architecture"
    known = error if isinstance(error, GantrainError) else convert_system_error(error, "the run", remedy)
    if known is not None:
        return {"exit_code": known.exit_code, "message": f"process {rank}: {known}"}
    said = str(error).partition("\n")[0]
    return {"exit_code": 1, "message": f"process {rank}: internal error: {type(error).__name__}: {said}"}

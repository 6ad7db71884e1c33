"""`summary.json`, how a run ended, and `train.log`, what it printed: both without the secrets of the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from gantrain.console import copy_lines, copy_text, say
from gantrain.errors import GantrainError, ReplacedError, StorageError
from gantrain.files import convert_write_errors
from gantrain.runs.folder import RunFolder
from gantrain.runs.signals import Interrupted

# What a resumed run keeps of its earlier summary.
KEPT = {
    **{"started": str, "seconds": int | float, "images": int, "metrics": dict, "resumed_at_images": list},
    **{"data": dict, "checkpoint": str},
}


@contextmanager
def keep_summary(folder: RunFolder, secrets: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that is written to `summary.json`, with status `running` now and with the outcome at the end.

    `secrets` maps values from the environment to what is written in their place. Raises StorageError.
    """
    earlier = folder.read_summary()
    if not earlier and folder.summary.exists():
        say(f"{folder.summary} is damaged; it is made anew")
    summary: dict[str, Any] = {key: earlier[key] for key, kind in KEPT.items() if isinstance(earlier.get(key), kind)}
    summary = {"status": "running", "reason": "", "started": utc_now()} | summary
    folder.write_summary(summary)  # before the work, so that a folder that cannot be written is found now

    def end(status: str, reason: str, exit_code: int) -> None:
        summary.update(status=status, reason=reason, exit_code=exit_code, ended=utc_now())

    try:
        yield summary
        end("finished", "", 0)
    except Interrupted as stop:
        end("stopped", str(stop), stop.exit_code)
        raise
    except KeyboardInterrupt as error:
        end("stopped", str(error) or "stopped at once by an interrupt", 130)
        raise
    except GantrainError as error:
        end("failed", str(error), error.exit_code)
        raise
    finally:
        if summary["reason"]:
            copy_text(summary["reason"])  # which is printed by whoever catches the error
        try:
            folder.write_summary(conceal_secrets(summary, secrets))
        except StorageError as error:
            if summary["status"] == "finished" and isinstance(error, ReplacedError):
                raise
            if str(error) not in summary["reason"]:  # must not hide what ended the run
                say(str(error), error=True)


@contextmanager
def keep_log(folder: RunFolder, secrets: Mapping[str, str]) -> Iterator[None]:
    """Append every line that is printed in the block to `train.log`, in plain text and without the `secrets`.

    The file stays open, so that it may be moved with its folder. Raises StorageError if it cannot be opened; a line
    that cannot be written costs nothing.
    """
    with convert_write_errors(folder.log):
        descriptor = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)

    def write(text: str) -> None:
        with suppress(OSError):
            os.write(descriptor, f"{conceal_secrets(text, secrets)}\n".encode(errors="replace"))

    try:
        with copy_lines(write):
            yield
    finally:
        os.close(descriptor)


def utc_now() -> str:
    """Return the date and time, in UTC and ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def conceal_secrets(value: Any, secrets: Mapping[str, str]) -> Any:
    """Return text, or nested plain data, with every value from the environment replaced by its source."""
    if isinstance(value, Mapping):
        return {key: conceal_secrets(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [conceal_secrets(item, secrets) for item in value]
    if isinstance(value, str):
        for secret, source in secrets.items():
            value = value.replace(secret, source)
    return value

"""`train.log`: the lines that a run prints, in plain text, and the traceback of an internal error."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from gantrain.console import copy_lines
from gantrain.files import SAFE, convert_write_errors
from gantrain.runs.folder import RunFolder
from gantrain.runs.summary import conceal_secrets


@contextmanager
def keep_log(folder: RunFolder, secrets: Mapping[str, str]) -> Iterator[None]:
    """Append every line that is printed in the block to `train.log`, without the `secrets`, as of `keep_summary`.

    The file stays open, so that it may be moved with its folder. Raises StorageError if it cannot be opened; a line
    that cannot be written costs nothing.
    """
    with convert_write_errors(folder.log):
        descriptor = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | SAFE, 0o666)

    def write(text: str) -> None:
        with suppress(OSError):
            os.write(descriptor, f"{conceal_secrets(text, secrets)}\n".encode(errors="replace"))

    try:
        with copy_lines(write):
            yield
    finally:
        os.close(descriptor)

"""Files that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BufferedRandom]:
    """A new file that takes the place of `path` when the block ends, and vanishes if the block fails.

    The temporary file stands in the same folder, is opened exclusively and follows no link. `durable` waits until the
    bytes and the name are on the disk. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # left by a process of the same number that was killed
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_whole(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Write `content` to `path` so that no reader ever sees a part of it."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_name(text: str) -> str:
    """`text` as one name of a file: only letters, digits, `.`, `_` and `-`, and no leading dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".")[:200] or "-"

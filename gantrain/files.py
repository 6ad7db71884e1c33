"""Files that are whole or absent, written beside their place and renamed into it; and logs of whole records."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

# What to do about a failure of storage, by its number.
REMEDIES = {
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some of the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close what holds the machine's files open",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.ENOENT: "put it back in its place",
    errno.EEXIST: "there is a file where a folder is wanted",
    errno.ENOTDIR: "there is a file where a folder is wanted",
}


def reason(error: OSError) -> str:
    """What failed and what to do about it, in one line."""
    return f"{error.strerror or error}; {REMEDIES.get(error.errno or 0, 'look at its disk')}"


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BufferedRandom]:
    """A new file that takes the place of `path` when the block ends, and vanishes if the block fails.

    The temporary file stands in the same folder, is opened exclusively and follows no link. `durable` waits until the
    bytes and the name are on the disk. Raises OSError.
    """
    temporary = temporary_beside(path)
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


def temporary_beside(path: Path) -> Path:
    """The name under which this process writes what will be `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove what killed processes left under temporary names of files whose name matches `names`."""
    leftover = re.compile(rf"\.({names})\.\d+\.tmp")
    for path in folder.iterdir():
        if leftover.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Write `content` to `path` so that no reader ever sees a part of it."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append_whole(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing: half a record would spoil the one after it. Links are not followed.

    Raises OSError where storage is full, read-only or failing; the file is then as it was.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(size)
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache() -> Path:
    """Where files that serve many runs are kept: $XDG_CACHE_HOME/gantrain, by default ~/.cache/gantrain."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gantrain"


def safe_name(text: str) -> str:
    """`text` as one name of a file: only letters, digits, `.`, `_` and `-`, and no leading dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".")[:200] or "-"

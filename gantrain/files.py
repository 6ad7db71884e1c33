"""Files that are whole or absent, logs of whole records, and JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from gantrain.errors import (
    GantrainError,
    MemoryExhaustedError,
    ReplacedError,
    StorageError,
    describe_broken_package,
    is_out_of_memory,
)

# The packaged YAML: inside the package in a wheel, and beside it in a checkout.
CONF = next(path for path in (Path(__file__).with_name("conf"), Path(__file__).parents[1] / "conf") if path.is_dir())
# What to do about an OSError, by its number.
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
    errno.EISDIR: "there is a folder where a file is wanted",
    errno.EEXIST: "there is a file where a folder is wanted",
    errno.ENOTDIR: "there is a file where a folder is wanted",
}

# ---------------------------------------------------------------------------------------------------------------------
# Errors


def describe_os_error(error: OSError) -> str:
    """Return what failed and what to do about it, in one line."""
    return f"{error.strerror or error}; {REMEDIES.get(error.errno or 0, 'look at its disk')}"


def convert_system_error(error: Exception, place: object, remedy: str) -> GantrainError | None:
    """Return a failure of memory, storage or a required package as an error of gantrain; None for another one.

    `place` is where storage failed unless the error says it, `remedy` what to do about exhausted memory.
    """
    if is_out_of_memory(error):
        said = str(error).partition("\n")[0]
        return MemoryExhaustedError(f"out of memory: {said}\n{remedy}")
    if isinstance(error, OSError):
        return StorageError(f"{error.filename or place}: {describe_os_error(error)}")
    if isinstance(error, ImportError) and (broken := describe_broken_package(error)):
        return GantrainError(broken)
    return None


@contextmanager
def convert_system_errors(place: object, remedy: str) -> Iterator[None]:
    """Raise what `convert_system_error` knows as an error of gantrain; other errors pass."""
    try:
        yield
    except GantrainError:
        raise
    except Exception as error:
        if known := convert_system_error(error, place, remedy):
            raise known from error
        raise


@contextmanager
def convert_write_errors(what: object) -> Iterator[None]:
    """Raise an OSError of the block as StorageError with the message "WHAT cannot be written: …"."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what} cannot be written: {describe_os_error(error)}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Folders that are moved while a process writes into them

# Those that this process holds, each with the file by which it is known.
HELD: dict[Path, tuple[Path, os.stat_result]] = {}


@contextmanager
def hold_folder(folder: Path, lock: Path) -> Iterator[None]:
    """Let the functions of this module write below `folder` only while `lock`, which lies in it, is the same file.

    The caller keeps `lock` open in the block, so that no other file gets its number. Raises OSError.
    """
    HELD[folder] = lock, lock.stat()
    try:
        yield
    finally:
        del HELD[folder]


def refuse_replaced(path: Path) -> None:
    """Raise StorageError if `path` lies in a held folder that is gone, ReplacedError if another has its place.

    Other failures to look at it are raised as OSError.
    """
    for folder, (lock, held) in list(HELD.items()):
        if not path.is_relative_to(folder):
            continue
        try:
            is_same = os.path.samestat(held, lock.stat())
        except (FileNotFoundError, NotADirectoryError) as error:
            if not os.path.lexists(folder):
                moved = "put it back, or if it was moved, go on with `gantrain resume` and its new name"
                raise StorageError(f"{folder} is gone; {moved}") from error
            is_same = False
        if not is_same:
            raise ReplacedError(
                f"{folder} was moved or removed while this run trained, and another folder has its place, which is "
                "left alone; if it was moved, go on with `gantrain resume` and its new name"
            )


def make_folder(path: Path, *, parents: bool = False) -> None:
    """Make a folder unless it exists. Raises OSError, or StorageError as `refuse_replaced`."""
    refuse_replaced(path)
    path.mkdir(parents=parents, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Raise OSError if no file can be written into a folder, or into its nearest parent while it does not exist."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=existing):
        pass


def delete_file(path: Path) -> None:
    """Delete a file if it exists. Raises OSError, or StorageError as `refuse_replaced`."""
    refuse_replaced(path)
    path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@contextmanager
def replace_file(path: Path, *, durable: bool = False) -> Iterator[BufferedRandom]:
    """Open a new file that replaces `path` when the block ends, and is removed if the block fails.

    The temporary file is in the same folder, is opened exclusively and follows no link. `durable` waits until the
    bytes and the name are on the disk. Raises OSError, or StorageError as `refuse_replaced`.
    """
    temporary = temporary_path(path)
    delete_file(temporary)  # of a process with the same number that was killed
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


def temporary_path(path: Path) -> Path:
    """Return the name under which this process writes a file that will become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_file(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Write `content` to `path` so that no reader ever sees a part of it; text in UTF-8. Raises OSError.

    What UTF-8 lacks is replaced: the name of a file may have any bytes.
    """
    with replace_file(path, durable=durable) as file:
        file.write(content.encode(errors="replace") if isinstance(content, str) else content)


@contextmanager
def deny_writing_by_others() -> Iterator[None]:
    """Create files and folders in the block without write permission for others (umask | 0o002)."""
    before = os.umask(0o077)
    os.umask(before | 0o002)
    try:
        yield
    finally:
        os.umask(before)


def append_record(path: Path, data: bytes) -> None:
    """Append all of `data` to a file, or nothing if that fails. Links are not followed.

    Raises OSError, or StorageError as `refuse_replaced`.
    """
    refuse_replaced(path)
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(size)  # half a record would spoil the one after it
            raise


def read_regular_file(path: Path) -> bytes:
    """Return the content of a regular file. Raises OSError, also for a pipe or a device, which might never end."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read()


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Return the folder of files that serve many runs: $XDG_CACHE_HOME/gantrain, by default ~/.cache/gantrain."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gantrain"


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in place of a leading `~`, which no shell replaces in `key="~/x"`."""
    return Path(os.path.expanduser(path))


def safe_name(text: str) -> str:
    """Return `text` as a file name: only letters, digits, `.`, `_` and `-`, and no leading dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".")[:200] or "-"


# ---------------------------------------------------------------------------------------------------------------------
# Plain data


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write plain data as strict JSON, with null for numbers that are not finite. Raises OSError."""
    write_file(path, json.dumps(replace_non_finite(value), indent=2, allow_nan=False) + "\n", durable=durable)


def replace_non_finite(value: Any) -> Any:
    """Return nested plain data with None in place of every float that is not finite, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def iterate_leaves(value: Any, key: str = "", *, into_lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield every value of a nested mapping under its dotted key; lists are values if `into_lists` is off."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif into_lists and isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        yield key, value
        return
    for name, item in items:
        yield from iterate_leaves(item, f"{key}.{name}" if key else str(name), into_lists=into_lists)

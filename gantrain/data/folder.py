"""A folder of images, flat or nested in class folders, or a .zip of them.

Every file in it counts, whatever its extension; only names that begin with a dot are passed over. Folders that are
links are read once each, so that loops of links end. A zip is read member by member and never unpacked, and is refused
if a member's name, type or size is not what a plain folder of images would have.
"""

from __future__ import annotations

import functools
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from gantrain.console import one_line
from gantrain.data.decoding import MAX_BYTES, File, decode_all
from gantrain.data.images import Labels, Splits
from gantrain.errors import DataError

MAX_FILES = 10_000_000
MAX_TOTAL_BYTES = 2**40
MAX_RATIO = 100  # uncompressed to compressed; image files are compressed already and stay near 1
RATIO_COUNTS_FROM = 2**20  # bytes; a smaller member is no bomb, whatever its ratio


def read(path: Path, size: int, on_bad: str) -> Splits:
    """Every image under `path`, in one channel if all are grey and in three otherwise; labelled by class folders.

    Raises DataError if `path` is missing, unreadable or without images, or if one is damaged and `on_bad` is `error`.
    """
    import torch

    files = image_files(path)
    if not files:
        raise DataError(f"{path} holds no files; dataset.path must be a folder of images or a .zip of them")
    pixels, intact = decode_all(files, size, on_bad, path)
    images = torch.from_numpy(pixels)
    grey = torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    labels = class_folders([file.name for file, whole in zip(files, intact, strict=True) if whole])
    return Splits(
        images[:, :1].contiguous() if grey else images,
        skipped=len(files) - int(intact.sum()),
        labels=None if labels is None else lambda: labels,
    )


def class_folders(names: Sequence[str]) -> Labels | None:
    """The classes of images by the first folder in which their paths differ; None unless each lies in one of several
    such folders."""
    import torch

    folders = [PurePosixPath(name).parent.parts for name in names]
    levels = [len(set(names)) for names in zip(*folders, strict=False)]
    shared = next((depth for depth, different in enumerate(levels) if different > 1), len(levels))
    if any(len(parts) == shared for parts in folders):
        return None
    classes = sorted({parts[shared] for parts in folders}, key=os.fsencode)
    numbers = {name: number for number, name in enumerate(classes)}
    return Labels(tuple(map(one_line, classes)), torch.tensor([numbers[parts[shared]] for parts in folders]))


def image_files(path: Path) -> list[File]:
    """The files in a folder or zip, sorted by the bytes of their relative paths."""
    try:
        if not path.exists():
            raise DataError(f"{path} does not exist; dataset.path must be a folder of images or a .zip of them")
        files = list(_in_folder(path) if path.is_dir() else _in_zip(path))
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as a folder of images or a .zip of them: {error}") from error
    return sorted(files, key=lambda file: os.fsencode(file.name))


def _in_folder(root: Path) -> Iterator[File]:
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_stop):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        # Sorted, so that it does not depend on the file system by which of its names a folder is first met.
        subfolders[:] = [] if identity in seen else sorted(name for name in subfolders if not name.startswith("."))
        for name in () if identity in seen else names:
            if not name.startswith("."):
                path = Path(folder, name)
                yield File(path.relative_to(root).as_posix(), functools.partial(_file_bytes, path))
        seen.add(identity)


def _stop(error: OSError) -> None:
    """A folder that cannot be listed ends the reading, where `os.walk` would pass over it."""
    raise error


def _file_bytes(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise DataError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise DataError(f"{status.st_size} bytes are more than the {MAX_BYTES} that an image may have")
    return path.read_bytes()


def _in_zip(path: Path) -> Iterator[File]:
    if not path.is_file():  # opening a pipe would wait for ever
        raise DataError(f"{path} is neither a folder of images nor a .zip of them")
    archive = zipfile.ZipFile(path)
    members = [member for member in archive.infolist() if not member.is_dir()]
    _check_members(path, members)
    for member in members:
        if not any(part.startswith(".") for part in PurePosixPath(member.filename).parts):
            # `read` stops at the declared size and compares the checksum, so what was checked is what is read.
            yield File(member.filename, functools.partial(archive.read, member))


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive with a member that a plain folder of images would not have."""
    names: set[str] = set()
    for member in members:
        fault = "is there twice" if member.filename in names else _fault(member)
        if fault:
            raise DataError(f"{path}: member {one_line(member.filename)} {fault}; pack the images as plain files")
        names.add(member.filename)
    total = sum(member.file_size for member in members)
    if len(members) > MAX_FILES or total > MAX_TOTAL_BYTES:
        raise DataError(f"{path}: {len(members)} members of {total} bytes exceed {MAX_FILES} of {MAX_TOTAL_BYTES}")


def _fault(member: zipfile.ZipInfo) -> str:
    """What makes a member of a zip unacceptable, nothing if it is fine."""
    path = PureWindowsPath(member.filename)  # knows both kinds of slash and of absolute path
    if path.anchor or ".." in path.parts:
        return "has a path that leads out of the archive"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or another special file"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
        return "is compressed by another method than deflate"
    if member.file_size > MAX_BYTES:
        return f"has {member.file_size} bytes, more than the {MAX_BYTES} that an image may have"
    if member.file_size > max(RATIO_COUNTS_FROM, MAX_RATIO * member.compress_size):
        return f"is compressed more than {MAX_RATIO} times, from {member.file_size} to {member.compress_size} bytes"
    return ""

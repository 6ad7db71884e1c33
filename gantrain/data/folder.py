"""A folder of images, flat or nested in class folders, or a .zip of them.

Every file counts, whatever its extension; only names that begin with a dot are ignored. Each folder is read once, also
if several links lead to it, so that loops of links end. A zip is read member by member and never unpacked; it is
refused if a member's name, type or size is not that of a file in a plain folder of images.
"""

from __future__ import annotations

import functools
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from gantrain.console import one_line, say
from gantrain.data.decoding import CROP, Allocate, File, ImageInfo, allocate_memory, decode_all
from gantrain.data.images import Labels, Splits, check_distinct
from gantrain.data.labels import AUTO, LISTING, find_splits, label_images
from gantrain.data.levels import Limits, check_depth, describe_darkness
from gantrain.errors import DataError, GantrainError, is_out_of_memory

if TYPE_CHECKING:
    import torch

ARRAYS = (".npy", ".npz", ".csv")  # of `gantrain.data.arrays`
ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
MAX_BYTES = 256 * 2**20  # of one image file
MAX_FILES = 10_000_000
MAX_TOTAL_BYTES = 2**40
MAX_RATIO = 100  # uncompressed to compressed; image files are compressed already and stay near 1
RATIO_COUNTS_FROM = 2**20  # bytes; a smaller member is no bomb, whatever its ratio


def survey(path: Path) -> tuple[int, list[Path]]:
    """Return how many images there are under `path` at most, and the files that hold them. Raises as `read`."""
    files = image_files(path)
    return len(files), [path / file.name for file in files] if path.is_dir() else [path]


def read(
    path: Path,
    size: int,
    on_bad: str,
    *,
    labels: str = AUTO,
    fit: str = CROP,
    limits: Limits | str | None = None,
    allocate: Allocate = allocate_memory,
) -> Splits:
    """Read the images under `path`, with one channel if all are grey, else three.

    `gantrain.data.labels` says which folders are splits or classes; `labels` is one of its KINDS. `fit`, `limits` and
    `allocate` are those of `decode_all`. What is decided is printed. Raises DataError if `path` is missing, unreadable
    or without images, if one is damaged and `on_bad` is `error`, and for images that are all the same.
    """
    import torch

    found = image_files(path)
    listings = [file for file in found if PurePosixPath(file.name).name == LISTING]
    files = [file for file in found if file not in listings]
    if not files:
        raise DataError(f"{path} holds no files; dataset.path must be a folder of images or a .zip of them")
    folders = find_splits([file.name for file in files])
    files = [files[index] for index in (*folders.train, *(folders.test or ()))]
    pictures = decode_all(files, size, on_bad, path, fit=fit, limits=limits, allocate=allocate)
    names = [file.name for file, whole in zip(files, pictures.intact, strict=True) if whole]
    notes = [folders.description, *_describe_pictures(names, pictures.found, fit, is_scaled=limits is not None)]
    notes = list(filter(None, notes))
    images = torch.from_numpy(pictures.pixels)
    check_distinct(images, path, notes)
    grey = torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    images = images[:, :1] if grey else images  # a view: a copy might not fit into memory
    classes, note = label_images(names, listings, labels, folders.level)
    for sentence in (*notes, *filter(None, [note])):
        say(f"{path}: {sentence}")
    count = None if folders.test is None else int(pictures.intact[: len(folders.train)].sum())  # of training images
    return _split(images, classes, count, skipped=len(files) - len(names))


def _describe_pictures(names: Sequence[str], found: Sequence[ImageInfo], fit: str, *, is_scaled: bool) -> Iterator[str]:
    """Yield sentences about images that are far darker than their files allow, and about images that a crop cuts."""
    levels = [each.levels for each in found]
    if is_scaled:
        check_depth(levels)
    else:
        yield describe_darkness(levels)
    cut = [(name, each) for name, each in zip(names, found, strict=True) if each.is_cut]
    if cut and fit == CROP:
        name, first = cut[0]
        yield (
            f"{len(cut):,} of {len(names):,} images lose more than a third to the central square ({one_line(name)}: "
            f"{first.width}×{first.height}); dataset.fit=pad or stretch keeps them whole"
        )


def _split(images: torch.Tensor, labels: Labels | None, count: int | None, skipped: int) -> Splits:
    """Return the first `count` images as the training split, and the others as the test split."""
    if count is None:
        return Splits(images, labels=labels, skipped=skipped)
    if labels is not None:
        labels = Labels(labels.classes, labels.train[:count], labels.train[count:])
    return Splits(images[:count], images[count:], labels, skipped, has_order=False)  # file names have no influence


def image_files(path: Path) -> list[File]:
    """Return the files in a folder or zip, sorted by the bytes of their relative paths.

    Raises DataError if there is no such folder or zip, or if it cannot be read or is refused.
    """
    try:
        if not path.exists():
            raise DataError(f"{path} does not exist; dataset.path must be a folder of images or a .zip of them")
        files = list(_walk_folder(path) if path.is_dir() else _open_zip(path))
    except Exception as error:  # damaged zips raise many kinds
        if isinstance(error, GantrainError) or is_out_of_memory(error):
            raise
        raise DataError(f"{path} cannot be read as a folder of images or a .zip of them: {error}") from error
    return sorted(files, key=lambda file: os.fsencode(file.name))


def _walk_folder(root: Path) -> Iterator[File]:
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        # Sorted: through which of several links a folder is reached must not depend on the file system.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                path = Path(folder, name)
                yield File(path.relative_to(root).as_posix(), functools.partial(_read_file, path))


def _raise(error: OSError) -> None:
    """Raise the error of a folder that cannot be listed, which `os.walk` would ignore."""
    raise error


def _read_file(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise DataError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise DataError(f"{status.st_size} bytes are more than the {MAX_BYTES} that an image may have")
    return path.read_bytes()


def _open_zip(path: Path) -> Iterator[File]:
    if not path.is_file():  # opening a pipe would wait for ever
        raise DataError(f"{path} is neither a folder of images nor a .zip of them")
    if path.suffix.lower() in ARRAYS:
        raise DataError(f"{path} is an array, not a folder of images: dataset=array dataset.path={path}")
    if path.suffix.lower() in ARCHIVES:
        raise DataError(f"{path} is an archive of another kind than .zip; unpack it and give the folder")
    archive = zipfile.ZipFile(path)
    members = [member for member in archive.infolist() if not member.is_dir()]
    _check_members(path, members)
    for member in members:
        if not any(part.startswith(".") for part in PurePosixPath(member.filename).parts):
            # `read` stops at the declared size and compares the checksum, so what was checked is what is read.
            yield File(member.filename, functools.partial(archive.read, member))


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise DataError for an archive with a member that a plain folder of images could not have."""
    names: set[str] = set()
    for member in members:
        fault = "is there twice" if member.filename in names else _find_fault(member)
        if fault:
            raise DataError(f"{path}: member {one_line(member.filename)} {fault}; pack the images as plain files")
        names.add(member.filename)
    total = sum(member.file_size for member in members)
    if len(members) > MAX_FILES or total > MAX_TOTAL_BYTES:
        raise DataError(f"{path}: {len(members)} members of {total} bytes exceed {MAX_FILES} of {MAX_TOTAL_BYTES}")


def _find_fault(member: zipfile.ZipInfo) -> str:
    """Return why a member of a zip is refused, or an empty string."""
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

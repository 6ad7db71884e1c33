"""Checkpoints on disk: `images_<12 digits>.pt`, each with its checksum beside it.

A new checkpoint is renamed into place, then `best.pt` if it is the best, and `last.pt`; only then are older ones
removed, except the best. They are read from the newest to the oldest, so that a damaged file costs one interval.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gantrain.errors import CheckpointError, DivergedError, StorageError
from gantrain.files import (
    delete_file,
    describe_os_error,
    iterate_leaves,
    make_folder,
    replace_file,
    sync_folder,
    temporary_path,
)
from gantrain.runs import bundles
from gantrain.runs.bundles import check_contents, checksum_path, is_whole, load_verified, serialize, write_with_checksum

FORMAT = 1
NAME = re.compile(r"images_\d{12}\.pt")
LEFTOVER = re.compile(rf"\.({NAME.pattern}(\.sha256)?|(last|best)\.pt)\.\d+\.tmp")  # of a process that was killed
LAST, BEST = bundles.LINKS
MOST_IMAGES = 10**12
# Keys of a checkpoint: the clock, the composed config, the generator's settings, the data, the machine, the state.
CONTENTS = {"images": int, "config": dict, "generator": dict, "data": dict, "made_with": dict, "state": dict}


def file_name(images: int) -> str:
    """Return the file name of the checkpoint taken after `images` images."""
    return f"images_{images:012d}.pt"


def read_clock(path: Path) -> int:
    """Return the number of images in a checkpoint's file name."""
    return int(path.stem.removeprefix("images_"))


def list_files(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, newest first by number; temporary and foreign files are ignored."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def save(folder: Path, bundle: Mapping[str, Any], *, keep: int, best: bool = False) -> Path:
    """Write a checkpoint and remove all but the newest `keep` and the best one.

    Args:
        folder: The run's folder of checkpoints; made if its parent exists.
        bundle: Tensors, numbers, strings, lists and dicts; its clock is under "images".
        keep: Checkpoints to keep, at least two.
        best: Whether this is the best one from now on.

    Raises:
        StorageError: The file cannot be written whole. Older checkpoints are then untouched, as below.
        DivergedError: A tensor is not finite.
        CheckpointError: A value could not be read back.
    """
    check_saveable(bundle)
    path, content = folder / file_name(bundle["images"]), serialize(bundle)
    try:
        make_folder(folder)  # without parents: a run folder that vanished is not made again
        write_with_checksum(path, content)
        if best:
            link_file(BEST, path)
        link_file(LAST, path)
    except OSError as error:
        raise StorageError(
            f"the checkpoint {path} could not be written, which takes {_mebibytes(len(content))} MiB and "
            f"{_mebibytes(bundles.SPARE_BYTES)} MiB to spare: {describe_os_error(error)}. "
            "Older checkpoints are untouched"
        ) from error
    with suppress(OSError):  # the new checkpoint is saved, and older files do no harm
        for leftover in folder.iterdir():
            if LEFTOVER.fullmatch(leftover.name) and leftover.is_file() and not leftover.is_symlink():
                delete_file(leftover)
        _prune(folder, keep, path)
    return path


def check_space(folder: Path, size: int) -> None:
    """Raise StorageError if the disk of `folder` has no room for a checkpoint of `size` bytes."""
    if (free := shutil.disk_usage(folder).free) < size + bundles.SPARE_BYTES:
        raise StorageError(
            f"{folder} has no room for a checkpoint: it takes at least {_mebibytes(size)} MiB and "
            f"{_mebibytes(bundles.SPARE_BYTES)} MiB to spare, and {free // 2**20:,} MiB are free; "
            "free some space on its disk, or give another run_dir"
        )


def check_saveable(bundle: Mapping[str, Any]) -> None:
    """Raise DivergedError for a tensor that is not finite, CheckpointError for a value that is no plain data."""
    import torch

    for key, value in iterate_leaves(bundle):
        if isinstance(value, torch.Tensor):
            if not bool(value.isfinite().all()):
                raise DivergedError(
                    f"{key} holds non-finite numbers at images = {bundle['images']:,}, so no checkpoint was written; "
                    "begin a new run with a lower optimizer.lr"
                )
        elif type(value) not in bundles.PLAIN:
            raise CheckpointError(
                f"{key} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, lists and dicts only"
            )


def _mebibytes(count: int) -> int:
    return -(-count // 2**20)


def link_file(name: str, path: Path) -> None:
    """Make `name`, in the folder of `path`, the same whole file: by a hard link if the file system has them."""
    place = path.with_name(name)
    temporary = temporary_path(place)
    delete_file(temporary)
    try:
        os.link(path, temporary)
        os.replace(temporary, place)
    except OSError:
        with path.open("rb") as source, replace_file(place, durable=True) as file:
            shutil.copyfileobj(source, file)
    temporary.unlink(missing_ok=True)  # renaming onto another link to the same file leaves both
    sync_folder(path.parent)


def _prune(folder: Path, keep: int, newest: Path) -> None:
    """Remove all but `keep` whole checkpoints up to the `newest`, and the best; damaged ones are kept."""
    kept, best = 0, bundles.hash_file(folder / BEST)
    for path in list_files(folder):
        if path.name > newest.name or path.is_symlink() or not is_whole(path):
            continue
        kept += 1
        if kept > max(keep, 2) and best not in bundles.read_checksums(path):
            delete_file(path)
            delete_file(checksum_path(path))


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load(path: Path) -> dict[str, Any]:
    """Return the bundle of a checkpoint, on the CPU, with the file's checksum as `sha256`.

    Raises CheckpointError if it is missing, damaged or not valid.
    """
    bundle, checksum = load_verified(path, "checkpoint", remedy="take another checkpoint")
    check_contents(path, bundle, FORMAT, CONTENTS)
    bundle["sha256"] = checksum
    if NAME.fullmatch(path.name) and bundle["images"] != read_clock(path):
        raise CheckpointError(
            f"{path} is damaged or renamed: its clock is {bundle['images']:,}; take another checkpoint"
        )
    if not 0 <= bundle["images"] < MOST_IMAGES:
        raise CheckpointError(f"{path}: its clock, {bundle['images']}, is no number of images")
    return bundle


def find_newest(folder: Path) -> Path | None:
    """Return the newest checkpoint whose checksum is right, or None."""
    return next(filter(is_whole, list_files(folder)), None)


def load_newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Return the newest whole checkpoint in `folder`: its path, its bundle, and what was wrong with newer ones.

    Raises CheckpointError if there is none: a damaged run never silently starts afresh.
    """
    problems: list[str] = []
    tried: list[Path] = []
    while (paths := list_files(folder)) != tried:  # training may have pruned a checkpoint before it was read
        tried, problems = paths, []
        for path in paths:
            try:
                return path, load(path), problems
            except CheckpointError as error:
                problems.append(str(error))
    reasons = "\n  ".join(problems) or ("it holds no checkpoint" if folder.exists() else "there is no such folder")
    raise CheckpointError(
        f"no usable checkpoint in {folder}; put a copy of one there, with its .sha256, or start a new run:\n  {reasons}"
    )


def load_run(path: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Return a checkpoint that is given by its file, or by its run's folder as `load_newest` finds it."""
    return load_newest(path / "checkpoints") if path.is_dir() else (path, load(path), [])

"""Splits and class labels from the folder structure of an image data set.

The first level at which the paths of the images differ holds the splits (`train/`, `val/`, `test/`) if it has such
names, and else the classes; below splits the classes are looked for in the same way. Numbered folders of equal size,
such as those of FFHQ, only keep folders short and are no classes. A `dataset.json`, in the form of StyleGAN's tools,
takes the place of class folders: `{"labels": [["00000/img00000000.png", 6], …]}`, or `{"labels": null}`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from gantrain.console import one_line
from gantrain.data.images import Labels
from gantrain.errors import DataError, is_out_of_memory

if TYPE_CHECKING:
    from gantrain.data.decoding import File

LISTING = "dataset.json"
AUTO, FOLDERS, NONE = KINDS = ("auto", "folders", "none")
TRAIN, VALIDATION, TEST = "training", "validation", "test"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}


class SplitFolders(NamedTuple):
    """The images of the splits as indices into their names, and in words which folder is which split."""

    train: Sequence[int]
    test: Sequence[int] | None = None  # None if the folders are no splits
    level: int = 0  # how many leading folders of a path are above the classes
    description: str = ""


def find_splits(names: Sequence[str]) -> SplitFolders:
    """Return the splits of images with these paths; `train` has all of them if their folders are no splits.

    The first folders in which the paths differ are splits if `train` is among them, and `val` or `test`, also in
    capitals or longer forms. Held out is `test` if there is one, else `val`; images elsewhere are in neither split.
    """
    folders = [PurePosixPath(name).parent.parts for name in names]
    level = _count_shared(folders)
    found = [parts[level] if len(parts) > level else "" for parts in folders]
    splits = {name: SPLIT_NAMES.get(name.lower(), "") for name in sorted(set(found))}
    held = next((split for split in (TEST, VALIDATION) if split in splits.values()), None)
    if held is None or TRAIN not in splits.values():
        return SplitFolders(range(len(names)))
    train, test = ([i for i, name in enumerate(found) if splits[name] == split] for split in (TRAIN, held))
    words = {TRAIN: f"trained on ({len(train):,} images)", held: f"held out ({len(test):,})"}
    uses = [
        f"{one_line(name) + '/' if name else 'what lies beside them'} is {words.get(split, 'not used')}"
        for name, split in splits.items()
    ]
    return SplitFolders(train, test, level + 1, ", ".join(uses))


def label_images(names: Sequence[str], listings: Iterable[File], kind: str, level: int) -> tuple[Labels | None, str]:
    """Return the classes of images with these paths, and what is to be said about them.

    Args:
        names: The paths.
        listings: The files `dataset.json` among the images.
        kind: One of KINDS.
        level: How many leading folders of a path are above the classes.

    Raises DataError for a `dataset.json` of another form, or one that names none of the images.
    """
    if kind == NONE:
        return None, ""
    if kind == AUTO and (listing := read_listings(listings)):
        return label_by_listing(names, listing)
    return label_by_folders(["/".join(PurePosixPath(name).parts[level:]) for name in names], kind)


def label_by_folders(names: Sequence[str], kind: str = AUTO) -> tuple[Labels | None, str]:
    """Return the classes of images: for each, the first folder of its path in which the paths differ.

    None unless there are several such folders and every image lies in one of them; None for numbered folders of equal
    size, unless `kind` is FOLDERS. The text says so.
    """
    import torch

    folders = [PurePosixPath(name).parent.parts for name in names]
    shared = _count_shared(folders)
    if any(len(parts) == shared for parts in folders):
        return None, ""
    counts = Counter(parts[shared] for parts in folders)
    if kind != FOLDERS and is_numbering(counts):
        return None, (
            f"{len(counts):,} numbered folders of equal size are not taken as classes; "
            "they are with dataset.labels=folders"
        )
    classes = sorted(counts, key=os.fsencode)
    numbers = {name: number for number, name in enumerate(classes)}
    return Labels(tuple(map(one_line, classes)), torch.tensor([numbers[parts[shared]] for parts in folders])), ""


def is_numbering(counts: Mapping[str, int]) -> bool:
    """Return whether folders are numbered and hold equally many images; after 00, 01, … the last may hold fewer."""
    names = sorted(counts, key=lambda name: (len(name), name))
    sizes = [counts[name] for name in names]
    is_padded = len(names[0]) == len(names[-1]) > len(str(len(names) - 1))
    return all(name.isdecimal() for name in names) and (
        len(set(sizes)) == 1 or (is_padded and len(set(sizes[:-1])) == 1 and sizes[-1] < sizes[0])
    )


def read_listings(files: Iterable[File]) -> dict[str, int]:
    """Return the class of each image that the files `dataset.json` name; paths in them begin at their own folder.

    Raises DataError for a file that cannot be read or has no such form.
    """
    classes: dict[str, int] = {}
    for file in files:
        content = _read_listing(file)
        try:
            entries = json.loads(content)["labels"] or []
            parent = PurePosixPath(file.name).parent
            classes |= {(parent / name).as_posix(): label for name, label in entries}
            if any(type(label) is not int for label in classes.values()):
                raise TypeError("a class is no number")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                f'{one_line(file.name)} is not of the form {{"labels": [["FILE", CLASS NUMBER], …]}} of StyleGAN\'s '
                "tools; remove it from the images"
            ) from error
    return classes


def _read_listing(file: File) -> bytes:
    try:
        return file.read()
    except Exception as error:  # a damaged member of a zip can raise anything
        if is_out_of_memory(error):
            raise
        raise DataError(f"{one_line(file.name)} cannot be read: {one_line(str(error))}; repair or remove it") from error


def label_by_listing(names: Sequence[str], listing: Mapping[str, int]) -> tuple[Labels, str]:
    """Return the classes of images from `read_listings`, −1 for those that it does not name or gives a number below 0.

    Raises DataError if it names none.
    """
    import torch

    found = [listing.get(name, -1) for name in names]
    missing = sum(label < 0 for label in found)
    if missing == len(names):
        raise DataError(
            f"{LISTING} names none of the {len(names):,} images with a class of 0 or more; "
            "paths in it begin at its own folder"
        )
    classes = sorted({label for label in found if label >= 0})
    numbers = {label: number for number, label in enumerate(classes)}
    labels = Labels(tuple(map(str, classes)), torch.tensor([numbers.get(label, -1) for label in found]))
    return labels, f"{missing:,} images have no class in {LISTING}" if missing else ""


def _count_shared(folders: Sequence[Sequence[str]]) -> int:
    """Return how many leading folders all the paths have in common."""
    levels = [len(set(parts)) for parts in zip(*folders, strict=False)]
    return next((depth for depth, different in enumerate(levels) if different > 1), len(levels))

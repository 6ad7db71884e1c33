"""Checkpoints are whole or absent, and damage never passes for a checkpoint."""

import errno
import hashlib
import os

import pytest
import torch

from gantrain.errors import CheckpointError, StorageError
from gantrain.runs import bundles, checkpoints
from gantrain.runs.bundles import checksum_path


def bundle(images: int, size: int = 100) -> dict:
    weights = torch.arange(size, dtype=torch.float32) + images
    rest: dict = {"config": {"a": [1, "b"]}, "generator": {}, "data": {}, "made_with": {}}
    return {"format": checkpoints.FORMAT, "images": images, "state": {"weights": weights}} | rest


def test_a_saved_bundle_comes_back(tmp_path):
    path = checkpoints.save(tmp_path, bundle(1000), keep=2)
    loaded = checkpoints.load(path)
    assert path.name == "images_000000001000.pt"
    assert loaded["config"] == {"a": [1, "b"]}
    assert torch.equal(loaded["state"]["weights"], bundle(1000)["state"]["weights"])
    recorded, name = (tmp_path / f"{path.name}.sha256").read_text().split()
    assert (recorded, name) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def test_last_is_the_newest_whole_file(tmp_path):
    for images in (1000, 2000, 3000):
        checkpoints.save(tmp_path, bundle(images), keep=2)
    assert checkpoints.load(tmp_path / "last.pt")["images"] == 3000
    kept = [f"images_00000000{images}.pt{suffix}" for images in (2000, 3000) for suffix in ("", ".sha256")]
    assert sorted(os.listdir(tmp_path)) == [*sorted(kept), "last.pt"]
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(tmp_path / "last.pt")


def test_the_best_outlives_what_is_pruned_until_there_is_a_better_one(tmp_path):
    for images in (1000, 2000, 3000, 4000):
        checkpoints.save(tmp_path, bundle(images), keep=2, best=images == 1000)
    assert [checkpoints.read_clock(path) for path in checkpoints.list_files(tmp_path)] == [4000, 3000, 1000]
    assert checkpoints.load(tmp_path / "best.pt")["images"] == 1000
    assert os.path.samefile(tmp_path / "best.pt", tmp_path / checkpoints.file_name(1000))
    checkpoints.save(tmp_path, bundle(5000), keep=2, best=True)
    assert [checkpoints.read_clock(path) for path in checkpoints.list_files(tmp_path)] == [5000, 4000]
    assert checkpoints.load(tmp_path / "best.pt")["images"] == 5000


def test_where_there_are_no_hard_links_the_best_and_the_last_are_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    for images in (1000, 2000, 3000, 4000):
        checkpoints.save(tmp_path, bundle(images), keep=2, best=images == 1000)
    for name, images in (("best.pt", 1000), ("last.pt", 4000)):
        assert checkpoints.load(tmp_path / name)["images"] == images
        assert not os.path.samefile(tmp_path / name, tmp_path / checkpoints.file_name(images))
    assert not list(tmp_path.glob(".*"))


def test_the_newest_whole_one_is_used_and_the_damaged_named(tmp_path):
    for images in (1000, 2000):
        checkpoints.save(tmp_path, bundle(images), keep=3)
    torn = tmp_path / checkpoints.file_name(2000)
    torn.write_bytes(torn.read_bytes()[:-1])
    os.utime(tmp_path / checkpoints.file_name(1000), (0, 0))
    path, loaded, problems = checkpoints.load_newest(tmp_path)
    assert (path.name, loaded["images"]) == (checkpoints.file_name(1000), 1000)
    assert len(problems) == 1
    assert torn.name in problems[0]
    assert torn.exists()


def test_pruning_counts_only_whole_files_up_to_the_new_one(tmp_path):
    for images in (1000, 1500, 2000, 2500):
        checkpoints.save(tmp_path, bundle(images), keep=9)
    for images in (1500, 2000, 2500):
        (tmp_path / checkpoints.file_name(images)).write_bytes(b"damaged")
    checkpoints.save(tmp_path, bundle(1200), keep=2)  # what a run that resumed from 1000 saves next
    assert checkpoints.load_newest(tmp_path)[1]["images"] == 1200
    assert [path.name for path in checkpoints.list_files(tmp_path) if bundles.is_whole(path)] == [
        checkpoints.file_name(1200),
        checkpoints.file_name(1000),
    ]
    assert len(checkpoints.list_files(tmp_path)) == 5


@pytest.mark.parametrize("key", ["images", "config", "generator", "data", "made_with", "state"])
def test_a_bundle_without_its_parts_is_refused(tmp_path, key):
    path = checkpoints.save(tmp_path, bundle(1), keep=2)
    incomplete = {name: value for name, value in bundle(1).items() if name != key}
    torch.save(incomplete, path)
    (tmp_path / f"{path.name}.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match=f"has no {key}"):
        checkpoints.load(path)


def test_foreign_files_are_ignored_and_kept_and_what_a_kill_left_goes(tmp_path):
    foreign = ["images_1.pt", ".notes.txt.7.tmp", "notes.txt", "images_000000009000.pt.bak"]
    left = [".images_000000009000.pt.7.tmp", ".images_000000009000.pt.sha256.7.tmp", ".last.pt.7.tmp"]
    for name in foreign + left:
        (tmp_path / name).write_text("mine")
    for images in (1000, 2000, 3000, 4000):
        checkpoints.save(tmp_path, bundle(images), keep=2)
    assert checkpoints.load_newest(tmp_path)[1]["images"] == 4000
    assert all((tmp_path / name).read_text() == "mine" for name in foreign)
    assert not any((tmp_path / name).exists() for name in left)


def test_another_format_is_refused(tmp_path):
    path = checkpoints.save(tmp_path, bundle(1) | {"format": 99}, keep=2)
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoints.load(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_costs_no_older_checkpoint(tmp_path, monkeypatch, step):
    checkpoints.save(tmp_path, bundle(1000), keep=2)
    before = sorted(os.listdir(tmp_path))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match="No space left"):
        checkpoints.save(tmp_path, bundle(2000), keep=2)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == before
    assert checkpoints.load_newest(tmp_path)[1]["images"] == 1000


def test_a_clock_that_is_not_that_of_the_name_is_damage(tmp_path):
    older, newer = checkpoints.save(tmp_path, bundle(1000), keep=2), tmp_path / checkpoints.file_name(2000)
    newer.write_bytes(older.read_bytes())
    checksum_path(newer).write_text(checksum_path(older).read_text())
    path, _, problems = checkpoints.load_newest(tmp_path)
    assert path == older
    assert "its clock is 1,000" in problems[0]


def test_a_file_without_a_checksum_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with (tmp_path / checkpoints.file_name(1000)).open("wb") as file:
        file.truncate(2**31)  # without a block on the disk
    monkeypatch.setattr("hashlib.file_digest", None)
    assert checkpoints.find_newest(tmp_path) is None
    with pytest.raises(CheckpointError, match="has no checksum beside it"):
        checkpoints.load_newest(tmp_path)


def test_a_checkpoint_that_would_not_fit_is_known_before_it_is_written(tmp_path):
    checkpoints.check_space(tmp_path, 1000)
    with pytest.raises(StorageError, match="it takes at least 9536744 MiB"):
        checkpoints.check_space(tmp_path, 10**13)


def test_links_in_the_folder_are_not_written_through(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (checkpoints.file_name(1000), "last.pt", f"{checkpoints.file_name(1000)}.sha256"):
        (folder / name).symlink_to(outside)
    checkpoints.save(folder, bundle(1000), keep=2)
    assert outside.read_text() == "mine"
    assert checkpoints.load_newest(folder)[1]["images"] == 1000


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", 1j, torch.float32, object()])
def test_what_could_not_be_read_back_is_not_saved(tmp_path, value):
    with pytest.raises(CheckpointError, match=rf"state\.extra is a {type(value).__name__}"):
        checkpoints.save(tmp_path, bundle(1) | {"state": {"extra": value}}, keep=2)
    assert not list(tmp_path.iterdir())


def test_what_is_pruned_while_it_is_looked_for_is_looked_for_again(tmp_path, monkeypatch):
    """A reader that is slower than training: all that it had listed is gone when it comes to read it."""
    checkpoints.save(tmp_path, bundle(1000), keep=2)
    listed, calls = checkpoints.list_files, []

    def slow(folder):
        found = listed(folder)
        if not calls:
            for images in (2000, 3000, 4000):
                calls.append(images)
                (tmp_path / checkpoints.file_name(1000)).unlink(missing_ok=True)
                checkpoints.save(tmp_path, bundle(images), keep=2)
        return found

    monkeypatch.setattr(checkpoints, "list_files", slow)
    path, loaded, problems = checkpoints.load_newest(tmp_path)
    assert (path.name, loaded["images"], problems) == (checkpoints.file_name(4000), 4000, [])


def test_what_is_no_file_is_passed_over(tmp_path):
    checkpoints.save(tmp_path, bundle(1000), keep=2)
    (tmp_path / checkpoints.file_name(2000)).mkdir()
    os.mkfifo(tmp_path / checkpoints.file_name(3000))
    path, _, problems = checkpoints.load_newest(tmp_path)
    assert path.name == checkpoints.file_name(1000)
    assert [problem.count("is not a regular file") for problem in problems] == [1, 1]

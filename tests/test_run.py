"""The run folder: claimed once, locked while in use, and left in order by a signal."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from support.runs import SMALL
from support.waiting import PATIENCE_SECONDS

from gantrain.cli import main
from gantrain.errors import BusyError, ReplacedError, StorageError
from gantrain.files import append_record, delete_file, make_folder, safe_name, write_file, write_json
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder, actual_status, claim_folder
from gantrain.runs.metrics_file import drop_reports_after
from gantrain.runs.signals import Interrupted, StopRequest

HOLD = """
import sys, time
from gantrain.cli import main
from gantrain.runs.folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_name_is_claimed_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: claim_folder(tmp_path / "runs", "now"), range(20)))
    assert len(set(folders)) == 20
    assert folders[0].parent == tmp_path / "runs"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        claim_folder(tmp_path / "file", "now")


def test_two_processes_never_share_a_folder(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), str(PATIENCE_SECONDS)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {holder.pid} on"), RunFolder(tmp_path).lock():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with RunFolder(tmp_path).lock():  # the lock died with its process
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_wish_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.defer()
        stop.raise_if_asked("nothing came")
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=number.name) as caught:
            stop.raise_if_asked("go on")
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_a_second_interrupt_stops_at_once():
    with StopRequest() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_stops_at_once_what_has_nothing_to_save():
    with pytest.raises(Interrupted, match="SIGTERM"), StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_a_run_reaches_the_sweep_around_it():
    with StopRequest() as sweep:
        with StopRequest() as run:
            run.defer()
            os.kill(os.getpid(), signal.SIGHUP)
        assert not sweep.deferred
        with pytest.raises(Interrupted, match="SIGHUP"):
            sweep.raise_if_asked("go on")
        sweep.defer()
        with StopRequest():
            pass
        assert sweep.deferred


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.raise_if_asked("nothing came")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# What a process does to a file below its folder.
CHANGES = (
    lambda path: write_file(path, "new"),
    lambda path: write_json(path, {"new": 1}, durable=True),
    lambda path: append_record(path, b"new"),
    lambda path: delete_file(path),
    lambda path: make_folder(path.with_name("new")),
    lambda path: drop_reports_after(path, 0),
    lambda path: checkpoints.link_file("last.pt", path),
    lambda path: RunFolder(path.parent).write_summary({"status": "new"}),
)


@pytest.mark.parametrize("kind", ["folder", "link", "folder without a lock", "file"])
def test_what_has_the_place_of_a_held_folder_is_left_alone(tmp_path, kind):
    """Also where it was removed and made anew; nothing is checked while nobody holds it."""
    folder, other = RunFolder(tmp_path / "run"), tmp_path / "other"
    folder.path.mkdir()
    with folder.lock():
        append_record(folder.path / "metrics.jsonl", b"ours")
        folder.path.rename(tmp_path / "moved")
        for change in CHANGES:
            with pytest.raises(StorageError, match="run is gone; put it back, or if it was moved"):
                change(folder.path / "metrics.jsonl")
        assert not folder.path.exists()
        other.mkdir()
        for name in ("metrics.jsonl", *([] if kind == "folder without a lock" else [".lock"])):
            (other / name).write_text("theirs\n")
        if kind == "file":
            folder.path.write_text("theirs")
        elif kind == "link":
            folder.path.symlink_to(other)
        else:
            other.rename(folder.path)
        before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
        for change in CHANGES:
            with pytest.raises(ReplacedError, match="another folder has its place"):
                change(folder.path / "metrics.jsonl")
        assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before
    if kind != "file":
        append_record(folder.path / "metrics.jsonl", b"new")
    assert (tmp_path / "moved/metrics.jsonl").read_text() == "ours"


def test_slurms_warning_stops_the_run_unless_somebody_handles_it():
    with StopRequest() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Interrupted, match="stopped by SIGUSR1; saved") as caught:
            stop.raise_if_asked("saved")
    assert caught.value.exit_code == 138
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            stop.raise_if_asked("")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (received, before) == ([signal.SIGUSR1], signal.SIG_DFL)


def test_a_killed_run_trains_no_longer(tmp_path):
    folder = RunFolder(tmp_path)
    for status in ("running", "finished", "stopped"):
        unheld = "killed" if status == "running" else status
        assert actual_status(tmp_path, {"status": status}) == unheld
        with folder.lock():
            assert actual_status(tmp_path, {"status": status}) == status
        assert actual_status(tmp_path, {"status": status}) == unheld
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    assert actual_status(tmp_path, {"status": "running"}) == "killed", "and does not wait for it"


def test_a_damaged_summary_is_an_empty_one(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_summary() == {}
    folder.write_summary({"status": "running"})
    assert folder.read_summary() == {"status": "running"}
    for content in ("{", "", "[1]", "\xff"):
        folder.summary.write_text(content, encoding="latin-1")
        assert folder.read_summary() == {}
    folder.summary.unlink()
    os.mkfifo(folder.summary)  # which would never be read to its end
    assert folder.read_summary() == {}


@pytest.mark.parametrize("text", ["../../etc/passwd", "a b/c=d,e", "[x]\x1b[31m", ".hidden", "", "x" * 500, "köln"])
def test_names_keep_to_safe_characters(text):
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", safe_name(text))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_file(tmp_path / "f", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_file(tmp_path / "f", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "old"


@pytest.mark.parametrize("typed", [["run_dir={data}/run"], ["run_dir={data}"], [], ["-m", "seed=0,1"]])
def test_a_run_in_the_folder_of_its_own_data_is_refused(typed, tmp_path, monkeypatch, capsys):
    """Also where runs/ or sweeps/ of the current folder would lie in it, and through a link."""
    data = tmp_path / "data"
    data.mkdir()
    Image.new("L", (8, 8)).save(data / "0.png")
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(data)
    options = [text.format(data=data) for text in typed]
    assert main(["train", "dataset=folder", f"dataset.path={tmp_path / 'link'}", *options]) == 2
    assert f"lies inside dataset.path={tmp_path / 'link'}" in capsys.readouterr().err
    assert [path.name for path in data.iterdir()] == ["0.png"]


def test_a_path_with_an_equals_sign_is_taken_where_it_exists(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "run_dir=lr=0.1", *SMALL, "train.images=100"]) == 0
    assert main(["resume", "lr=0.1"]) == 0
    assert main(["sample", "lr=0.1", "count=2"]) == 0
    assert main(["resume", "lr=0.2"]) == 2
    capsys.readouterr()
    assert main(["evaluate", "lr=0.1", "classifier=missing.pt"]) == 4
    assert "missing.pt is not there" in capsys.readouterr().err
    assert main(["compare", "lr=0.1", "out=lr=0.1/report", "nothing"]) != 0
    assert "nothing" in capsys.readouterr().err


def test_other_users_may_not_write_what_a_run_leaves(tmp_path):
    before = os.umask(0)
    try:
        assert main(["train", f"run_dir={tmp_path / 'run'}", *SMALL, "train.images=100"]) == 0
        (made_after := tmp_path / "free").touch(0o666)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")) if path.stat().st_mode & 0o002]
    assert files == []
    assert made_after.stat().st_mode & 0o777 == 0o666


def test_a_pipe_in_place_of_a_sweeps_command_is_not_waited_for(tmp_path, capsys):
    (tmp_path / "multirun.yaml").write_text("hydra: {}")
    os.mkfifo(tmp_path / ".multirun.yaml")
    assert main(["resume", str(tmp_path)]) == 4
    assert ".multirun.yaml cannot be read" in capsys.readouterr().err

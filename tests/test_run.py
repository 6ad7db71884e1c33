"""The run folder: claimed once, locked while in use, and left in order by a signal."""

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.waiting import PATIENCE_SECONDS

from gantrain.errors import BusyError, CheckpointError, StorageError
from gantrain.files import safe_name, write_file
from gantrain.runs.folder import RunFolder, actual_status, claim_folder
from gantrain.runs.signals import Interrupted, StopRequest

HOLD = """
import sys, time
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


def test_a_folder_that_was_removed_and_made_anew_is_not_ours(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.refuse_if_replaced()  # held by nobody
    with folder.lock():
        folder.refuse_if_replaced()
        shutil.rmtree(folder.path)
        with pytest.raises(StorageError, match="is gone"):
            folder.refuse_if_replaced()
        folder.path.mkdir()
        (folder.path / ".lock").touch()
        with pytest.raises(StorageError, match="made anew"):
            folder.refuse_if_replaced()


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
        unheld = "ended without a word" if status == "running" else status
        assert actual_status(tmp_path, {"status": status}) == unheld
        with folder.lock():
            assert actual_status(tmp_path, {"status": status}) == status
        assert actual_status(tmp_path, {"status": status}) == unheld
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    assert actual_status(tmp_path, {"status": "running"}) == "ended without a word", "and does not wait for it"


def test_a_damaged_summary_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_summary() == {}
    folder.write_summary({"status": "running"})
    assert folder.read_summary() == {"status": "running"}
    folder.summary.write_text("{")
    with pytest.raises(CheckpointError, match=r"summary\.json"):
        folder.read_summary()


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

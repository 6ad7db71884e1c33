"""One run on several devices: `gantrain train devices=4`, or processes that torchrun or srun has started.

The process of the command holds the run folder and starts `torchrun`, which starts a process for each device. The first
of them trains, writes and reports as the only process of a run does, and ends with the command; the others follow it.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from gantrain.config.checks import find_secrets, validate
from gantrain.console import copy_text, ignore_closed_output, printable, say
from gantrain.devices import limit_threads
from gantrain.distributed import current_part, is_follower, join
from gantrain.errors import GantrainError, LostProcessError, build_error
from gantrain.failures import describe_failure, leave_failure
from gantrain.files import write_json
from gantrain.launch import run
from gantrain.launch.build import PreparedRun, build, count_multiply_adds, prepare
from gantrain.launch.initial_weights import load_initial_weights
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder
from gantrain.runs.signals import Interrupted, StopRequest, current_stop
from gantrain.runs.summary import keep_log

PACKAGE = Path(__file__).parents[1]
SECONDS_BETWEEN_LOOKS = 0.1  # at signals, while the processes train
JOB, RESULT, LOG = "job.json", "result.json", "torchrun.log"
# What an outer torchrun has set for this process, and is not that of the processes that it starts.
OUTER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def train(
    prepared: PreparedRun, folder: RunFolder, bundle: Mapping[str, Any] | None = None, notes: Iterable[str] = ()
) -> None:
    """Train in `folder`, which this process holds, on one device or on several, from a `bundle` if there is one.

    What is printed, beginning with the `notes`, is also in the run's log. Raises GantrainError or Interrupted.
    """
    with keep_log(folder, find_secrets(prepared.config.tree)):
        for note in notes:
            say(note)
        if prepared.part.ranks == 1 and prepared.processes > 1:
            train_in_processes(prepared, folder, bundle)
        else:
            prepared.part.broadcast(describe_job(prepared))
            run.train(prepared, folder, bundle)


def describe_job(prepared: PreparedRun) -> dict[str, Any]:
    """Return what another process has to know to train the same run, without values from the environment."""
    code = prepared.config.settings.architecture.get("object")
    typed = [f"architecture.object={code}"] if code else []
    return {"config": prepared.config.to_yaml(), "overrides": typed}


# ---------------------------------------------------------------------------------------------------------------------
# In the process of the command


def train_in_processes(prepared: PreparedRun, folder: RunFolder, bundle: Mapping[str, Any] | None) -> None:
    """Let a process for each device train, pass signals on to the first one, and raise what it raised."""
    job = describe_job(prepared) | {"folder": str(folder.path), "images": bundle and bundle["images"]}
    with tempfile.TemporaryDirectory(prefix="gantrain-") as name, current_stop() as stop:
        stop.defer()
        place, passed_on = Path(name), None
        write_json(place / JOB, job | {"has_own_threads": "OMP_NUM_THREADS" in os.environ})
        with start_processes(prepared.processes, place) as agent:
            while agent.poll() is None:
                if passed_on is None and stop.number is not None:
                    # The first process has no handler for the signal with which a batch system preempts a job.
                    passed_on = signal.SIGTERM if stop.number == stop.preemption else stop.number
                    with suppress(OSError):  # of processes that have just ended
                        print(int(passed_on), file=agent.stdin, flush=True)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        raise_result(place, folder, passed_on)


@contextmanager
def start_processes(count: int, place: Path) -> Iterator[subprocess.Popen[str]]:
    """Start torchrun with `count` processes that do the job in `place`; they end with the block, or before.

    What they print is printed by this process, unless that has a terminal, which they write to themselves.
    """
    import torch

    threads = str(max(torch.get_num_threads() // count, 1))
    environment = {key: value for key, value in os.environ.items() if key not in OUTER} | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        "PYTHONIOENCODING": "utf-8",
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    with (place / LOG).open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "gantrain.launch.worker", str(place)],
            stdin=subprocess.PIPE,
            stdout=None if hasattr(sys.stdout, "isatty") and sys.stdout.isatty() else subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,  # a terminal's interrupts come to this process alone
        )
    reader = threading.Thread(target=copy_output, args=(agent.stdout,), daemon=True)
    reader.start()
    try:
        yield agent
    finally:
        assert agent.stdin is not None
        with suppress(OSError):
            agent.stdin.close()  # at which the processes end that have not
        agent.wait()
        reader.join()


def copy_output(stream: IO[str] | None) -> None:
    """Print every line of `stream`; the run's log has it from the process that wrote it."""
    for line in stream or ():
        with ignore_closed_output():
            print(printable(line.rstrip("\n")), flush=True)


def raise_result(place: Path, folder: RunFolder, passed_on: int | None) -> None:
    """Raise what ended the first process, if it did not finish; `passed_on` is the signal that it was sent from here.

    Another signal is torchrun's, which ends all processes when one is lost.
    """
    result = json.loads((place / RESULT).read_text(encoding="utf-8")) if (place / RESULT).exists() else None
    if result is None and passed_on is not None:  # which came before the processes had joined
        name = signal.Signals(passed_on).name
        raise Interrupted(f"stopped by {name}; the checkpoints saved before are whole", passed_on)
    if result is None or (result["signal"] and passed_on is None):
        copy_text((place / LOG).read_text(encoding="utf-8", errors="replace"))
        raise LostProcessError(
            "a process of this run ended without an error message, as when the system kills it because memory runs "
            f"out; what torchrun said is in {folder.log}; go on with: gantrain resume {shlex.quote(str(folder.path))}"
        )
    if result["signal"]:
        raise Interrupted(result["message"], result["signal"])
    if result["exit_code"]:
        if result["exit_code"] == GantrainError.exit_code:
            copy_text((place / LOG).read_text(encoding="utf-8", errors="replace"))
        raise build_error(result["exit_code"], result["message"])


# ---------------------------------------------------------------------------------------------------------------------
# In a process for a device


def main(place: Path) -> None:
    """Do the job in `place`, as the first process or as one that follows it."""
    job = json.loads((place / JOB).read_text(encoding="utf-8"))
    if not job["has_own_threads"]:
        del os.environ["OMP_NUM_THREADS"]  # which has had its effect; small networks then get a single thread
    with StopRequest():
        watcher = exit_with_parent if is_follower() else forward_signals
        threading.Thread(target=watcher, daemon=True).start()
        with join() as part:
            if part.is_first:
                train_as_first(job, place / RESULT)
            else:
                train_as_follower()


def forward_signals() -> None:
    """Send this process the signals whose numbers come from the process of the command, and end with that."""
    while numbers := os.read(0, 100):  # unbuffered: no lock is held when this process ends
        for number in numbers.split():
            os.kill(os.getpid(), int(number))
    os._exit(LostProcessError.exit_code)


def exit_with_parent() -> None:
    """End this process when the process of the command closes the pipe from which the first process reads.

    Without torchrun, which may have been killed, this process would wait for the others as long as it has patience.
    """
    pipe = select.poll()
    pipe.register(0, 0)  # no event but the end of its writers
    pipe.poll()
    os._exit(LostProcessError.exit_code)


def train_as_first(job: Mapping[str, Any], path: Path) -> None:
    """Train in the folder that the process of the command holds, and write to `path` how that ended."""
    result = {"exit_code": 0, "signal": 0, "message": ""}
    folder = RunFolder(job["folder"])
    try:
        prepared, bundle = prepare(validate(OmegaConf.create(job["config"]), job["overrides"])), None
        if job["images"] is None:
            prepared = replace(prepared, weights=load_initial_weights(prepared.config.settings))
        else:
            bundle = checkpoints.load(folder.checkpoints / checkpoints.file_name(job["images"]))
        with folder.hold():
            train(prepared, folder, bundle)
    except GantrainError as error:
        result |= {"exit_code": error.exit_code, "message": str(error)}
    except Interrupted as stop:
        result |= {"signal": stop.number, "message": str(stop)}
    except Exception as error:
        traceback.print_exc()  # into torchrun's log, which becomes part of the run's
        result |= describe_failure(error, 0)
    write_json(path, result)


def train_as_follower() -> None:
    """Train with the first process, which says what, and end with it; nothing is written."""
    from gantrain.training import loop

    part = current_part()
    try:
        with current_stop() as stop:
            job = part.broadcast()
            with part.agree_on_errors():
                prepared = prepare(validate(OmegaConf.create(job["config"]), job["overrides"]))
                setup, state = build(prepared)
            with limit_threads(prepared.device, count_multiply_adds(prepared.config.settings, setup.data.shape)):
                run.share_state(state, part)
                stop.defer()
                loop.follow(state, setup, stop)
    except (Interrupted, KeyboardInterrupt):  # as the first process was
        pass
    except Exception as error:  # of any kind: the first process reports it
        leave_failure(error, part.rank)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

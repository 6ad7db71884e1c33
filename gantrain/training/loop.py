"""Training: the loop, read from top to bottom.

One clock, counted in data images shown to D, drives everything: which batch comes, what is drawn, when to report, to
sample and to save. It needs no config and no command line:

    dataset = data.load("digits")
    generator, discriminator = networks.build(table, dataset.shape, latent_size=64)
    adam = partial(torch.optim.Adam, lr=4e-4, betas=(0.5, 0.999))
    state = State(generator, discriminator, adam(generator.parameters()), adam(discriminator.parameters()))
    game = Objective(divergences.get("gan"), divergences.get("kl"))
    with Reporter(folder.path, total_images=100_000) as reporter:
        train(state, TrainingSetup(game, dataset, Latents(64), Schedule(images=100_000)), folder, reporter)
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from gantrain.errors import DivergedError, LostProcessError, ReplacedError, StorageError
from gantrain.reporting.reporter import Reporter
from gantrain.runs.folder import RunFolder
from gantrain.runs.signals import StopRequest
from gantrain.seeding import preserve_randomness
from gantrain.training.iteration import Iteration
from gantrain.training.outputs import Writer
from gantrain.training.setup import TrainingSetup, passed
from gantrain.training.state import State


def train(
    state: State,
    setup: TrainingSetup,
    folder: RunFolder,
    reporter: Reporter,
    *,
    provenance: Mapping[str, Any] | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Play the game until the clock reaches `schedule.images`, writing into `folder`.

    `provenance` ("config", and "generator" for `gantrain.load`) travels in every checkpoint. Raises DivergedError
    before an update with a non-finite loss or gradient, Interrupted after a saved checkpoint when `stop` was asked,
    StorageError when a checkpoint cannot be written; the last good one stands whatever is raised. Of several processes
    the first one trains with this function, and the others with `follow`.
    """
    stop = stop or StopRequest()
    writer = Writer(state, setup, folder, reporter, provenance or {"config": {}, "generator": {}})
    try:
        play(state, setup, writer, stop)
    except ReplacedError:  # what now has the folder's place is not the run's own
        raise
    except (DivergedError, LostProcessError, StorageError) as error:
        ratio = writer.describe_log_ratio() if isinstance(error, DivergedError) else ""
        raise type(error)(f"{error}\n{ratio}{writer.describe_checkpoint()}") from error
    if state.images < setup.schedule.images:
        stop.raise_if_asked(f"go on with: gantrain resume {shlex.quote(str(folder.path))}")


def follow(state: State, setup: TrainingSetup, stop: StopRequest) -> None:
    """Train as another process than the first one of a run, which alone writes, to the end or until it is stopped."""
    play(state, setup, NullWriter(), stop)


class NullWriter:
    """What the processes that follow the first one have in place of its `Writer`: it writes and shows nothing."""

    is_new_best = False

    def ignore(self, *_: object, **__: object) -> None:
        """Do nothing."""

    note = advance = draw_data = report = draw_samples = save_checkpoint = ignore

    def is_checkpoint_late(self) -> bool:
        return False


def play(state: State, setup: TrainingSetup, writer: Writer | NullWriter, stop: StopRequest) -> None:
    """Repeat iterations until the clock reaches `schedule.images`, or a process was asked to stop and all have saved.

    `stop.number` is then the signal's in every process.
    """
    schedule, part = setup.schedule, setup.part
    iteration = Iteration(state, setup, writer.note)
    state.generator.train()
    state.discriminator.train()
    with preserve_randomness(state.device):
        writer.draw_data()
        while state.images < schedule.images:
            begin = state.images
            iteration.play()  # k updates of D, one of G

            writer.advance(state.images)
            # A signal, and the time since the last checkpoint, are one process's; all of them do the same.
            number, is_late = part.agree(stop.number or 0, writer.is_checkpoint_late())
            done, stopping, late = state.images >= schedule.images, number > 0, is_late > 0
            report_due = done or passed(schedule.report_every_images, begin, state.images)
            evaluation_due = done or passed(schedule.evaluate_every_images, begin, state.images)
            sample_due = done or late or passed(schedule.sample_every_images, begin, state.images)
            checkpoint_due = done or stopping or late or passed(schedule.checkpoint_every_images, begin, state.images)
            if not (report_due or evaluation_due or sample_due or checkpoint_due) or not iteration.synchronize():
                continue  # nothing is due, or the clock was set back to an iteration that the device refused

            # What is due is written; none of it changes what comes next.
            if report_due or evaluation_due:
                writer.report(training=report_due, samples=evaluation_due)
            if sample_due:
                writer.draw_samples()
            if checkpoint_due or writer.is_new_best:
                writer.save_checkpoint(now=done or stopping or late or writer.is_new_best)
            part.wait()
            if stopping and not done:
                stop.number = number
                return

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    folder: RunFolder | None,
    reporter: Reporter | None,
    *,
    provenance: Mapping[str, Any] | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Play the game until the clock reaches `schedule.images`, writing into `folder`.

    `provenance` ("config", and "generator" for `gantrain.load`) travels in every checkpoint. Raises DivergedError
    before an update with a non-finite loss or gradient, Interrupted after a saved checkpoint when `stop` was asked,
    StorageError when a checkpoint cannot be written; the last good one stands whatever is raised. Of several processes
    the first one writes; the others have no folder and no reporter, and wait for it.
    """
    schedule, part, writer = setup.schedule, setup.part, None
    iteration = Iteration(state, setup, reporter.note if reporter is not None else lambda message: None)
    if folder is not None and reporter is not None:
        writer = Writer(state, setup, folder, reporter, provenance or {"config": {}, "generator": {}})
    state.generator.train()
    state.discriminator.train()
    with preserve_randomness(state.device), last_words(writer):
        if writer is not None:
            writer.draw_data()
        while state.images < schedule.images:
            begin = state.images
            iteration.play()  # k updates of D, one of G

            if reporter is not None:
                reporter.advance(state.images)
            # A signal, and the time since the last checkpoint, are one process's; all of them do the same.
            number = 0 if stop is None or stop.number is None else stop.number
            number, late = part.agree(number, writer is not None and writer.is_checkpoint_late())
            done, stopping = state.images >= schedule.images, number > 0
            report_due = done or passed(schedule.report_every_images, begin, state.images)
            evaluation_due = done or passed(schedule.evaluate_every_images, begin, state.images)
            sample_due = done or late or passed(schedule.sample_every_images, begin, state.images)
            checkpoint_due = done or stopping or late or passed(schedule.checkpoint_every_images, begin, state.images)
            if not (report_due or evaluation_due or sample_due or checkpoint_due) or not iteration.synchronize():
                continue  # nothing is due, or the clock was set back to an iteration that the device refused

            # What is due is written; none of it changes what comes next.
            if writer is not None:
                if report_due or evaluation_due:
                    writer.report(training=report_due, samples=evaluation_due)
                if sample_due:
                    writer.draw_samples()
                if checkpoint_due or writer.improved:
                    writer.save_checkpoint(now=done or stopping or writer.improved)
            part.wait()
            if stop is not None and stopping and not done:
                stop.number = number
                stop.raise_if_asked(f"go on with: gantrain resume {shlex.quote(str(folder and folder.path))}")


@contextmanager
def last_words(writer: Writer | None) -> Iterator[None]:
    """Errors that end a run also say what it leaves."""
    try:
        yield
    except (DivergedError, LostProcessError, StorageError) as error:
        if writer is None or isinstance(error, ReplacedError):  # what now has the folder's place is not its own
            raise
        ratio = writer.describe_log_ratio() if isinstance(error, DivergedError) else ""
        raise type(error)(f"{error}\n{ratio}{writer.describe_checkpoint()}") from error

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

from gantrain.errors import DivergedError, ReplacedError, StorageError
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
    StorageError when a checkpoint cannot be written; the last good one stands whatever is raised.
    """
    schedule = setup.schedule
    iteration = Iteration(state, setup, reporter.note)
    writer = Writer(state, setup, folder, reporter, provenance or {"config": {}, "generator": {}})
    state.generator.train()
    state.discriminator.train()
    with preserve_randomness(state.device), last_words(writer):
        writer.draw_data()
        while state.images < schedule.images:
            begin = state.images
            iteration.play()  # k updates of D, one of G

            reporter.advance(state.images)
            done = state.images >= schedule.images
            stopping = stop is not None and stop.number is not None
            report_due = done or passed(schedule.report_every_images, begin, state.images)
            evaluation_due = done or passed(schedule.evaluate_every_images, begin, state.images)
            late = writer.is_checkpoint_late()
            sample_due = done or late or passed(schedule.sample_every_images, begin, state.images)
            checkpoint_due = done or stopping or late or passed(schedule.checkpoint_every_images, begin, state.images)
            if (report_due or evaluation_due or sample_due or checkpoint_due) and not iteration.synchronize():
                continue  # the clock was set back to an iteration that the device refused

            # What is due is written; none of it changes what comes next.
            if report_due or evaluation_due:
                writer.report(training=report_due, samples=evaluation_due)
            if sample_due:
                writer.draw_samples()
            if checkpoint_due or writer.improved:
                writer.save_checkpoint(now=done or stopping or writer.improved)
            if stop is not None and stopping and not done:
                stop.raise_if_asked(f"go on with: gantrain resume {shlex.quote(str(folder.path))}")


@contextmanager
def last_words(writer: Writer) -> Iterator[None]:
    """Errors that end a run also say what it leaves."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(f"{error}\n{writer.describe_log_ratio()}{writer.describe_checkpoint()}") from error
    except ReplacedError:  # what now has its place is not its own
        raise
    except StorageError as error:
        raise StorageError(f"{error}\n{writer.describe_checkpoint()}") from error

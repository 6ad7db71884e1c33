r"""What an affine term does to `ratio`, and what another matched loss does in its place, on MNIST with perceptrons.

    .venv/bin/python examples/affine.py ROOT OUT [seed …]

trains the generators of `GAMES` with each seed (0, 1 and 2 if none is given), measures 2,000 samples of each against
the test images of MNIST in the folder ROOT, and prints a table. Runs that are in OUT already are kept, and one that was
interrupted begins again, so the command may be stopped and repeated.

Adding c (u − 1) to f changes no divergence, and adds c (u − 1) to the loss f(u) of `ratio`. The `matched` loss of KL
is −u, so this is −c times the matched loss of KL: `ratio` with an affine term is "ratio + a · matched KL" with a = −c.
The same amount a of the matched loss of reverse KL, 1 − log u, changes the slope of the loss at u = 1 by as much, from
f'(1) to f'(1) − a, but pulls samples of every u with the force a, where KL pulls with a · u. If a stable p = q is what
decides, a run should be mended from a = f'(1) on, whichever loss is added.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

import gantrain
from gantrain.networks.latents import Latents
from gantrain.objectives.divergence import Divergence
from gantrain.regularizers.gradient_penalties import R1
from gantrain.reporting.reporter import Reporter
from gantrain.runs.folder import RunFolder
from gantrain.training.loop import train
from gantrain.training.setup import Execution, Schedule, TrainingSetup
from gantrain.training.state import State, create_average

BASES, ADDED = ("kl", "alpha_0.5"), ("kl", "reverse_kl")
AMOUNTS = (0.5, 0.1, 1.0, 2.0)  # the most telling first
IMAGES = 300_000  # shown to D: five epochs
SAMPLES = 2_000
COLUMNS = {
    "fid ↓": "quality/fid_classifier",
    "precision ↑": "quality/precision",
    "recall ↑": "diversity/recall",
    "coverage ↑": "diversity/coverage",
    "class entropy": "diversity/class_entropy",
    "missing classes": "diversity/missing_classes",
}


class Game(NamedTuple):
    """`ratio` of the divergence `base`, and `amount` times the matched loss of the divergence `added`."""

    base: str
    added: str
    amount: float

    @property
    def name(self) -> str:
        """The name of the game's runs."""
        return f"{self.base}-{self.amount:g}-{self.added}"

    def divergence(self) -> Divergence:
        """Return the divergence whose `ratio` loss is the game's, up to a constant."""
        base, added = gantrain.divergences.get(self.base), gantrain.divergences.get("reverse_kl")
        if self.added == "kl":
            return base.shifted(-self.amount)
        amount = self.amount
        return Divergence(
            self.name,
            formula=f"{base.formula} + {amount:g} ({added.formula})",
            f_of_u=lambda u: base.f_of_u(u) + amount * added.f_of_u(u),
            real=lambda r: base.real(r) + amount * added.real(r),
            fake=lambda r: base.fake(r) + amount * added.fake(r),
            log_weight=None,
            reference="a sum of two divergences",
        )


GAMES = [Game(base, added, amount) for amount in AMOUNTS for base in BASES for added in ADDED]
GAMES += [Game(base, "kl", 0.0) for base in BASES]


def main(arguments: list[str]) -> int:
    """Train and measure what is missing, seed by seed; print the table."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    root, out, seeds = Path(arguments[0]), Path(arguments[1]), [int(text) for text in arguments[2:]] or [0, 1, 2]
    for seed in seeds:
        for game in GAMES:
            if not (out / game.name / f"s{seed}" / "evaluation.json").exists():
                play(game, seed, root, out / game.name / f"s{seed}")
    print_table(out)
    return 0


def play(game: Game, seed: int, root: Path, path: Path) -> None:
    """Train one generator as `architecture=mlp_digits optimizer=adam_fast precision=auto regularizer=r1
    regularizer.weight=10` does, and measure it."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    dataset = gantrain.data.load("mnist", root=root, seed=seed)
    table = yaml.safe_load((Path(__file__).parent.parent / "conf/architecture/mlp_digits.yaml").read_text("utf-8"))
    latents = Latents(64)
    torch.manual_seed(seed)
    generator, discriminator = gantrain.networks.build(table, dataset.shape, latents.size)
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))
    optimizers = adam(generator.parameters()), adam(discriminator.parameters())
    state = State(generator, discriminator, *optimizers, average=create_average(generator))
    objective = gantrain.Objective("gan", game.divergence(), "ratio")
    schedule = Schedule(IMAGES, report_every_images=20_000, sample_every_images=IMAGES, checkpoint_every_images=IMAGES)
    setup = TrainingSetup(objective, dataset, latents, schedule, seed, Execution(precision="auto"), (R1(),))
    provenance = {
        "config": {"game": game._asdict(), "seed": seed},
        "generator": {"architecture": table, "latent": {"size": latents.size, "prior": latents.prior}},
    }
    try:
        with Reporter(path, IMAGES) as reporter:
            train(state, setup, RunFolder(path), reporter, provenance=provenance)
        options = {"dataset.root": root, "count": SAMPLES, "metrics": ["fid", "prdc", "classes"]}
        gantrain.evaluate(path, dataset="mnist", **options)
    except gantrain.errors.DivergedError as error:
        print(f"{path}: {error}")
        (path / "evaluation.json").write_text(json.dumps({"metrics": None}), encoding="utf-8")


def print_table(out: Path) -> None:
    """Print mean ± standard deviation over the seeds that were measured, a row for each game."""
    print(f"| `ratio` of | plus | amount | seeds | {' | '.join(COLUMNS)} |")
    print("| --- " * (4 + len(COLUMNS)) + "|")
    for game in sorted(GAMES, key=lambda game: (-BASES.index(game.base), game.added, game.amount)):
        files = sorted((out / game.name).glob("s*/evaluation.json"))
        found = [json.loads(file.read_text(encoding="utf-8"))["metrics"] for file in files]
        finished = [metrics for metrics in found if metrics]
        count = f"{len(finished)} of {len(found)}" if len(finished) < len(found) else str(len(found))
        cells = [format_spread([metrics[name] for metrics in finished]) for name in COLUMNS.values()]
        added = f"`matched` `{game.added}`" if game.amount else ""
        print(f"| `{game.base}` | {added} | {game.amount:g} | {count} | {' | '.join(cells)} |")


def format_spread(values: list[float]) -> str:
    """Return mean ± standard deviation with three digits after the point, none from 100 on."""
    if not values:
        return ""
    digits = 0 if max(values) >= 100 else 3
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

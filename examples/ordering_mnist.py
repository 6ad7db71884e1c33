r"""Part (b) of the experiment that docs/results/ordering.md registers: MNIST with convolutions.

    .venv/bin/python examples/ordering_mnist.py ROOT OUT [key=value …]

chooses a learning rate for each objective on two seeds, trains ten others, measures 10,000 samples of each through two
classifiers, and prints the table and the tests. MNIST is in the folder ROOT. What is in OUT already is kept, and a run
that was interrupted goes on, so that the command may be repeated. An estimate is 12 hours of one core in all. Overrides
go to every run, such as `train.images=2000` for a trial in another OUT.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ordering_tests import print_family
from scipy import stats

import gantrain

ORDER = ("softened_reverse_kl", "reverse_kl", "js", "alpha_0.75", "kl")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"gen_weights.normalise": False},
    "default": {"gen_weights.normalise": True, "gen_weights.spread": 0.5},
}
RATES, TRIAL_SEEDS, SEEDS = (0.0002, 0.0005, 0.001), (100, 101), tuple(range(10))
CLASSIFIERS = (0, 1)  # seeds of their training
MARGIN = 0.02  # of precision
COUNT, TRIAL_COUNT = 10_000, 2_000
COMMON: dict[str, Any] = {
    "dataset": "mnist",
    "architecture": "dcgan28",
    "optimizer": "adam",
    "precision": "bf16",
    "resume": "auto",
    "train.batch_size": 50,
    "train.images": 200_000,
}
RECALL, PRECISION, FID = "diversity/recall", "quality/precision", "quality/fid_classifier"


class Game(NamedTuple):
    """A divergence under `matched`, with one of VARIANTS of the weights."""

    gen_div: str
    variant: str


GAMES = [Game(name, variant) for name in ORDER for variant in VARIANTS]
Values = dict[Game, NDArray[np.float64]]


class Experiment:
    """Runs and measurements in a folder, made where they are missing."""

    def __init__(self, root: Path, out: Path, overrides: list[str]) -> None:
        self.root, self.out = root, out
        self.overrides = dict(text.split("=", 1) for text in overrides)

    def train(self, game: Game, rate: float, seed: int) -> Path:
        """Return the folder of a run, which is trained or goes on if it is not finished; it may have diverged."""
        folder = self.out / f"{game.gen_div}-{game.variant}" / f"lr{rate:g}-s{seed}"
        summary = folder / "summary.json"
        ended = json.loads(summary.read_text(encoding="utf-8"))["status"] if summary.exists() else ""
        if ended not in ("finished", "failed"):
            settings = COMMON | VARIANTS[game.variant] | {"gen_div": game.gen_div, "seed": seed, "run_dir": folder}
            settings |= {"optimizer.lr": rate, "dataset.root": self.root}
            try:
                gantrain.train(**settings | self.overrides)
            except gantrain.errors.DivergedError as error:
                print(f"{folder}: {error}")
        return folder

    def measure(self, folder: Path, classifier: int, count: int) -> dict[str, float]:
        """Return the numbers of a run through a classifier; empty if the run has not finished."""
        if json.loads((folder / "summary.json").read_text(encoding="utf-8"))["status"] != "finished":
            return {}
        out = folder / f"classifier{classifier}-{count}"
        if (out / "evaluation.json").exists():
            return dict(json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["metrics"])
        options: dict[str, Any] = {"metrics": ["fid", "prdc"], "reference": False, "out": out, "count": count}
        options |= {"classifier": self.out / f"classifier{classifier}.pt", "train_classifier.seed": classifier}
        return dict(gantrain.evaluate(folder, **options, **{"dataset.root": self.root})["metrics"])

    def choose_rate(self, game: Game) -> float:
        """Return the learning rate with the smallest mean Fréchet distance over the trial seeds."""

        def distance(rate: float) -> float:
            found = [self.measure(self.train(game, rate, seed), 0, TRIAL_COUNT) for seed in TRIAL_SEEDS]
            return float(np.mean([each.get(FID, np.inf) for each in found]))

        return min(RATES, key=distance)


def main(arguments: list[str]) -> int:
    """Make what is missing, then print the table and the tests."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    experiment = Experiment(Path(arguments[0]), Path(arguments[1]), arguments[2:])
    rates = {game: experiment.choose_rate(game) for game in GAMES}
    folders = {game: [experiment.train(game, rates[game], seed) for seed in SEEDS] for game in GAMES}
    weights = {game: np.mean([read_weights(folder) for folder in folders[game]], 0) for game in GAMES}
    for classifier in CLASSIFIERS:
        found = {game: [experiment.measure(folder, classifier, COUNT) for folder in folders[game]] for game in GAMES}
        recall, precision = (
            {game: np.array([each.get(name, 0.0) for each in found[game]]) for game in GAMES}
            for name in (RECALL, PRECISION)
        )
        print(f"\nclassifier {classifier}\n")
        for line in rows(rates, weights, recall, precision):
            print(f"| {' | '.join(line)} |")
        print_family("Page's test of increasing recall", trends(recall, weights))
        print_family("recall minus that of the practical loss", differences(recall))
        print_family("precision not below the practical loss by more than the margin", margins(precision))
    return 0


def read_weights(folder: Path) -> tuple[float, float]:
    """Return the share of steps in which the divergence was the one that was asked for, and the effective order."""
    weights = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("weights", {})
    return weights.get("weights/asked_share", 1.0), weights.get("weights/effective_order", np.nan)


def rows(rates: dict[Game, float], weights: Values, recall: Values, precision: Values) -> Iterator[list[str]]:
    """Yield the lines of the table: means ± standard deviations over seeds."""
    yield ["gen_div", "weights", "learning rate", "asked share", "effective order", "recall", "precision"]
    yield ["---"] * 7
    for game in GAMES:
        spreads = [f"{each[game].mean():.3f} ± {each[game].std(ddof=1):.3f}" for each in (recall, precision)]
        share, order = weights[game]
        yield [f"`{game.gen_div}`", game.variant, f"{rates[game]:g}", f"{share:.2f}", f"{order:.2f}", *spreads]


def trends(recall: Values, weights: Values) -> Iterator[tuple[str, float]]:
    """Yield Page's test for each variant; by effective orders where the asked divergence was descended too rarely."""
    for variant in VARIANTS:
        games = [Game(name, variant) for name in ORDER]
        by_order = min(weights[game][0] for game in games) < 0.5
        if by_order:
            games.sort(key=lambda game: weights[game][1])
        table = np.stack([recall[game] for game in games], 1)
        names = ", ".join(game.gen_div for game in games)
        yield f"{variant}: {names}", float(stats.page_trend_test(table, method="asymptotic").pvalue)


def differences(recall: Values) -> Iterator[tuple[str, float]]:
    """Yield paired t-tests against the practical loss."""
    for game in GAMES:
        if game.gen_div != ORDER[0]:
            difference = recall[game] - recall[Game(ORDER[0], game.variant)]
            label = f"{game.gen_div} {game.variant}, mean difference {difference.mean():+.3f}"
            yield label, float(stats.ttest_1samp(difference, 0).pvalue)


def margins(precision: Values) -> Iterator[tuple[str, float]]:
    """Yield one-sided paired t-tests that precision is above that of the practical loss minus the margin."""
    for game in GAMES:
        if game.gen_div != ORDER[0]:
            difference = precision[game] - precision[Game(ORDER[0], game.variant)]
            label = f"{game.gen_div} {game.variant}, mean difference {difference.mean():+.3f}"
            yield label, float(stats.ttest_1samp(difference, -MARGIN, alternative="greater").pvalue)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

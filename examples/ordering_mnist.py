r"""Part (b) of the experiment that docs/results/ordering.md registers: MNIST with convolutions.

    .venv/bin/python examples/ordering_mnist.py ROOT OUT [jobs=2] [key=value …]

chooses a learning rate for each objective on two seeds, trains ten others, measures 10,000 samples of each through two
classifiers, and prints the table and the tests. MNIST is in the folder ROOT. `jobs` runs are made at a time, each by a
process. What is in OUT already is kept, and a run that was interrupted goes on, so that the command may be repeated.
OUT/ordering_mnist.csv has the numbers of every run, and OUT/ordering_mnist.png shows recall. Overrides go to every run,
such as `train.images=2000` for a trial in another OUT.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from ordering_tests import print_family
from scipy import stats

import gantrain
from gantrain.cli import main as run_command
from gantrain.plotting import BLUE, GREY, save_figure, use_style

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
    "train.batch_size": 25,
    "train.images": 40_000,
}
RECALL, PRECISION, FID = "diversity/recall", "quality/precision", "quality/fid_classifier"


class Game(NamedTuple):
    """A divergence under `matched`, with one of VARIANTS of the weights."""

    gen_div: str
    variant: str


# The weights of reverse KL are one whatever scales them, so that its two variants are one game.
CONSTANT = Game("reverse_kl", "plain")
GAMES = [Game(name, variant) for name in ORDER for variant in VARIANTS]
Values = dict[Game, NDArray[np.float64]]


class Run(NamedTuple):
    """A game with a learning rate and a seed."""

    game: Game
    rate: float
    seed: int


Numbers = dict[str, float]
Found = dict[tuple[Run, int], Numbers]  # of a run through the classifier of that seed; none if the run diverged


class Experiment(NamedTuple):
    """Runs and measurements in a folder, made where they are missing, by so many processes."""

    root: Path
    out: Path
    jobs: int
    overrides: dict[str, str]

    def train_classifiers(self) -> None:
        """Make the classifiers of CLASSIFIERS where they are missing."""
        for seed in CLASSIFIERS:
            path = self.out / f"classifier{seed}.pt"
            if not path.exists():
                given = [f"dataset.root={self.root}", f"classifier={path}", f"train_classifier.seed={seed}"]
                run_command(["evaluate", "dataset=mnist", *given])

    def measure_all(self, runs: list[Run], classifiers: tuple[int, ...], count: int) -> Found:
        """Return the numbers of runs through classifiers."""
        found: Found = {}
        measure = partial(self.measure, classifiers=classifiers, count=count)
        with ProcessPoolExecutor(self.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for number, (run, measured) in enumerate(zip(runs, pool.map(measure, runs), strict=True), 1):
                print(f"{number}/{len(runs)}", *run.game, f"lr={run.rate:g} seed={run.seed}", measured, flush=True)
                found |= {(run, classifier): values for classifier, values in measured.items()}
        return found

    def measure(self, run: Run, classifiers: tuple[int, ...], count: int) -> dict[int, Numbers]:
        """Return the numbers of a run through each classifier."""
        folder = self.train(run)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        weights = summary.get("weights", {})
        common = {
            "asked_share": weights.get("asked_share", 1.0),
            "effective_order": 0.0 if run.game == CONSTANT else weights.get("effective_order", np.nan),
        }
        found: dict[int, Numbers] = {}
        for classifier in classifiers:
            found[classifier] = common
            if summary["status"] == "finished":
                found[classifier] = common | self.evaluate(folder, classifier, count)
        return found

    def train(self, run: Run) -> Path:
        """Return the folder of a run, which is trained or goes on if it is not finished; it may have diverged."""
        folder = self.out / f"{run.game.gen_div}-{run.game.variant}" / f"lr{run.rate:g}-s{run.seed}"
        summary = folder / "summary.json"
        ended = json.loads(summary.read_text(encoding="utf-8"))["status"] if summary.exists() else ""
        if ended not in ("finished", "failed"):
            settings = COMMON | VARIANTS[run.game.variant] | {"gen_div": run.game.gen_div, "seed": run.seed}
            settings |= {"run_dir": folder, "optimizer.lr": run.rate, "dataset.root": self.root}
            try:
                gantrain.train(**settings | self.overrides)
            except gantrain.errors.DivergedError as error:
                print(f"{folder}: {error}")
        return folder

    def evaluate(self, folder: Path, classifier: int, count: int) -> Numbers:
        """Return recall, precision and Fréchet distance of the samples of a finished run."""
        out = folder / f"classifier{classifier}-{count}"
        if not (out / "evaluation.json").exists():
            options: dict[str, Any] = {"metrics": ["fid", "prdc"], "reference": False, "out": out, "count": count}
            options |= {"classifier": self.out / f"classifier{classifier}.pt", "dataset.root": self.root}
            gantrain.evaluate(folder, **options)
        metrics = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
        return {name.split("/")[1]: float(metrics[name]) for name in (RECALL, PRECISION, FID)}


def choose_rates(experiment: Experiment) -> tuple[dict[Game, float], Found]:
    """Return the learning rate with the smallest mean Fréchet distance over the trial seeds, and the trials."""
    games = [game for game in GAMES if is_trained(game)]
    runs = [Run(game, rate, seed) for game in games for rate in RATES for seed in TRIAL_SEEDS]
    found = experiment.measure_all(runs, CLASSIFIERS[:1], TRIAL_COUNT)

    def distance(game: Game, rate: float) -> float:
        trials = [found[Run(game, rate, seed), CLASSIFIERS[0]] for seed in TRIAL_SEEDS]
        return float(np.mean([trial.get("fid_classifier", np.inf) for trial in trials]))

    return {game: min(RATES, key=partial(distance, game)) for game in games}, found


def is_trained(game: Game) -> bool:
    """Return whether a game has runs of its own."""
    return game == CONSTANT or game.gen_div != CONSTANT.gen_div


def main(arguments: list[str]) -> int:
    """Make what is missing, then print the table and the tests."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    overrides = dict(text.split("=", 1) for text in arguments[2:])
    jobs = int(overrides.pop("jobs", 1))
    experiment = Experiment(Path(arguments[0]), Path(arguments[1]), jobs, overrides)
    experiment.train_classifiers()
    rates, trials = choose_rates(experiment)
    # Seeds outside, so that an experiment that was cut short has whole pairs.
    runs = [Run(game, rate, seed) for seed in SEEDS for game, rate in rates.items()]
    found = experiment.measure_all(runs, CLASSIFIERS, COUNT)
    write_csv(experiment.out / "ordering_mnist.csv", trials | found)
    draw(experiment.out / "ordering_mnist.png", {c: collect(found, rates, c, "recall") for c in CLASSIFIERS})
    for classifier in CLASSIFIERS:
        print(f"\nclassifier {classifier}\n")
        values = {name: collect(found, rates, classifier, name) for name in ("recall", "precision")}
        weights = {name: collect(found, rates, classifier, name) for name in ("asked_share", "effective_order")}
        print_results(rates, values | weights)
    return 0


def write_csv(path: Path, found: Found) -> None:
    """Write the numbers of every run; a run that diverged has neither recall nor precision."""
    names = ("recall", "precision", "fid_classifier", "asked_share", "effective_order")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["gen_div", "weights", "lr", "seed", "classifier", *names])
        for (run, classifier), numbers in found.items():
            values = (f"{numbers[name]:.5g}" if name in numbers else "" for name in names)
            writer.writerow([*run.game, run.rate, run.seed, classifier, *values])


def collect(found: Found, rates: dict[Game, float], classifier: int, name: str) -> Values:
    """Return a number of each game over the seeds; of a run that diverged it is 0."""
    values: Values = {}
    for game in GAMES:
        own = game if is_trained(game) else CONSTANT
        runs = [Run(own, rates[own], seed) for seed in SEEDS]
        values[game] = np.array([found[run, classifier].get(name, 0.0) for run in runs])
    return values


def draw(path: Path, recalls: dict[int, Values]) -> None:
    """Draw recall through each classifier: a thin line joins the runs of a seed, and the thick one their means."""
    with use_style():
        figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
        axes = figure.subplots(len(recalls), len(VARIANTS), sharex=True, sharey=True)
        for row, (classifier, recall) in zip(axes, recalls.items(), strict=True):
            for axis, variant in zip(row, VARIANTS, strict=True):
                table = np.stack([recall[Game(name, variant)] for name in ORDER])  # [divergences, seeds]
                axis.plot(ORDER, table, color=GREY, linewidth=0.8)
                axis.plot(ORDER, table.mean(1), color=BLUE, linewidth=2, marker="o")
                axis.set_title(f"recall, {variant} weights, classifier {classifier}")
                axis.tick_params(axis="x", labelsize=8)
        save_figure(figure, path)


def print_results(rates: dict[Game, float], values: dict[str, Values]) -> None:
    """Print the table of a classifier and the registered tests."""
    for line in rows(rates, values):
        print(f"| {' | '.join(line)} |")
    print_family("Page's test of increasing recall", trends(values))
    print_family("recall minus that of the practical loss", differences(values["recall"]))
    print_family("precision not below the practical loss by more than the margin", margins(values["precision"]))


def rows(rates: dict[Game, float], values: dict[str, Values]) -> Iterator[list[str]]:
    """Yield the lines of the table: means ± standard deviations over seeds."""
    yield ["gen_div", "weights", "learning rate", "asked share", "effective order", "recall", "precision"]
    yield ["---"] * 7
    for game in GAMES:
        share, order, *spreads = (
            format_mean(values[name][game]) for name in ("asked_share", "effective_order", "recall", "precision")
        )
        rate = rates[game if is_trained(game) else CONSTANT]
        yield [f"`{game.gen_div}`", game.variant, f"{rate:g}", share, order, *spreads]


def format_mean(values: NDArray[np.float64]) -> str:
    """Return mean ± standard deviation; nothing where plain weights have no effective order."""
    return "" if np.isnan(values).any() else f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def trends(values: dict[str, Values]) -> Iterator[tuple[str, float]]:
    """Yield Page's test for each variant; by effective orders where the asked divergence was descended too rarely."""
    for variant in VARIANTS:
        games = [Game(name, variant) for name in ORDER]
        if min(values["asked_share"][game].mean() for game in games) < 0.5:
            games.sort(key=lambda game: values["effective_order"][game].mean())
        table = np.stack([values["recall"][game] for game in games], 1)
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

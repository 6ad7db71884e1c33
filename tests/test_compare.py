"""Comparison of runs: grouping, labels, statistics, compare.csv, the page, and folders that nobody should trust."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Answer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from support.pictures import draw_checksums
from support.run_folders import make_run, make_sweep
from support.terminals import set_console_width

from gantrain.comparison import plots, report, tables
from gantrain.comparison.comparison import compare
from gantrain.comparison.configurations import Estimate
from gantrain.comparison.rows import csv_text
from gantrain.comparison.runs import command_lines, provenance, read_run, read_runs
from gantrain.comparison.untrusted import LARGEST_BYTES
from gantrain.console import split_columns
from gantrain.errors import DataError
from gantrain.evaluation.metrics import better_direction
from gantrain.launch.sweep_folder import compare_sweep, pending_notes
from gantrain.runs.folder import RunFolder

Gantrain = Callable[..., Answer]


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data)

    def sources(self) -> list[str]:
        """What the page could make a browser fetch."""
        return [value for name, value in self.attributes if name in ("src", "href", "xlink:href", "action", "data")]


def page_of(*folders: Path, figures: Mapping[str, Any] | None = None) -> Page:
    return Page(report.render_page(compare(folders), figures or {}))


def labels(folder: Path) -> list[str]:
    return [configuration.label for configuration in compare([folder]).configurations]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], list[str]]:
    """Lines of the tables of a folder's runs."""

    def print_lines(folder: Path) -> list[str]:
        tables.print_tables(compare([folder]))
        return capsys.readouterr().out.splitlines()

    return print_lines


# ---------------------------------------------------------------------------------------------------------------------
# Grouping, labels, statistics


def test_runs_that_differ_only_in_seed_and_places_are_one_configuration(tmp_path: Path) -> None:
    for seed in (10, 2):
        elsewhere = {"run_dir": f"r{seed}", "dataset": {"root": str(seed)}, "train": {"report_every_images": seed}}
        make_run(tmp_path / f"{seed}", {"seed": seed, **elsewhere})
    (found,) = compare([tmp_path]).configurations
    assert [run.seed for run in found.runs] == ["2", "10"]
    assert found.label == "kl"


KL, JS = {"gen_div": {"name": "kl"}}, {"gen_div": {"name": "js"}}
OWN = {"disc_div": {"name": "own"}, "gen_div": {"name": "own"}}
HINGE, PAIRS = OWN | {"critic": {"name": "hinge"}}, OWN | {"critic": {"name": "relativistic", "pairs": "one"}}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([KL, JS], ["kl", "js"]),
        ([KL, JS | {"gen_objective": "ratio"}], ["kl matched", "js ratio"]),
        (
            [KL, JS, {"disc_div": {"name": "js"}}],
            ["gen_div=kl disc_div=gan", "gen_div=js disc_div=gan", "gen_div=kl disc_div=js"],
        ),
        # A key that follows from the name of its section is left out, others are not.
        (
            [{"optimizer": {"name": "SGD", "lr": 0.1, "betas": [0, 0]}}, JS, JS | {"train": {"images": 5}}],
            [
                "kl optimizer=SGD train.images=1000",
                "js optimizer=Adam train.images=1000",
                "js optimizer=Adam train.images=5",
            ],
        ),
        (
            [{"optimizer": {"name": "SGD"}}, {"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.2}}],
            [f"optimizer={name} optimizer.lr={lr}" for name, lr in (("SGD", 0.001), ("Adam", 0.1), ("Adam", 0.2))],
        ),
        # Weights that follow from the divergence and the objective are left out.
        (
            [{"gen_weights": {"spread": 0.5}}, {"gen_objective": "ratio", "gen_weights": {"spread": None}}],
            ["matched", "ratio"],
        ),
        ([{"gen_weights": {"spread": 0.5}}, {"gen_weights": {"spread": 1.0}}], ["0.5", "1.0"]),
        # The divergences of critics with losses of their own follow from the critic.
        ([KL, HINGE, PAIRS], ["f_divergence", "hinge", "relativistic"]),
        ([HINGE], ["hinge"]),
        (
            [PAIRS, PAIRS | KL, PAIRS | {"critic": {"name": "relativistic", "pairs": "all"}}],
            ["own critic.pairs=one", "kl critic.pairs=one", "own critic.pairs=all"],
        ),
        (
            [PAIRS, PAIRS | KL, HINGE],
            ["critic=relativistic", "kl critic=relativistic", "critic=hinge"],
        ),
    ],
)
def test_a_label_is_what_differs_and_nothing_else(
    settings: list[dict[str, Any]], expected: list[str], tmp_path: Path
) -> None:
    for number, each in enumerate(settings):
        make_run(tmp_path / f"{number}", each)
    assert labels(tmp_path) == expected


def test_all_settings_that_differ_are_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"optimizer": {"name": "SGD", "lr": 0.1, "betas": [0, 0]}})
    make_run(tmp_path / "b", JS)
    assert compare([tmp_path]).differing == ["gen_div.name", "optimizer.name", "optimizer.lr"]


def test_alphas_and_jobs_are_in_order(tmp_path: Path) -> None:
    alphas = ("-0.5", "-0.25", "0", "0.25", "0.5", "0.75", "1.5")
    names = ["2-x", "10-x", *(f"gan-alpha_{alpha}-s0" for alpha in alphas)]
    for seed, name in enumerate(reversed(names)):
        make_run(tmp_path / name, {"seed": seed})
    runs, _ = read_runs([tmp_path])
    assert [run.path.name for run in runs] == names


def test_of_runs_with_equal_settings_and_seed_the_newest_finished_one_counts(tmp_path: Path) -> None:
    make_run(tmp_path / "old", metrics={"bound/gan": 1}, started="2026-01-01")
    new = make_run(tmp_path / "new", metrics={"bound/gan": 2}, started="2026-01-02")
    make_run(tmp_path / "failed", status="failed", started="2026-01-03")
    found = compare([tmp_path, new])
    assert [run.path for run in found.runs] == [new]
    assert sorted(note.partition(" ")[0] for note in found.notes) == [str(tmp_path / "failed"), str(tmp_path / "old")]


@pytest.mark.parametrize("count", [1, 2, 10])
def test_an_estimate_is_mean_and_sample_deviation(count: int) -> None:
    values = [random.Random(count).gauss(3, 2) for _ in range(count)]
    found = Estimate.from_values(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.n == count
    assert found.sd == (pytest.approx(statistics.stdev(values)) if count > 1 else None)


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (0.81234, 0.0341, "0.812 ± 0.034"),
        (123.456, 12.3, "123 ± 12"),
        (-1.5, 0.25, "−1.50 ± 0.25"),
        (12.3456, None, "12.35"),
        (2.0, 0.0, "2 ± 0"),
        (0.2, 3.4e-17, "0.2 ± 0"),
        (3e20, 1.25e19, "3e+20 ± 1.2e+19"),
        (1.4943e-8, 2.2e-8, "1.5e−08 ± 2.2e−08"),
        (1.3862943611, 5.3e-9, "1.386 ± 5.3e−09"),
        (0.0, 2.2e-8, "0 ± 2.2e−08"),
        (18274.29, None, "18,274"),
        (-18274.29, 512.4, "−18,274 ± 512"),
        (8_200_000.0, None, "8.2e+06"),
    ],
)
def test_an_estimate_is_written_to_its_own_precision(mean: float, sd: float | None, text: str) -> None:
    assert str(Estimate(mean, sd, 3)) == text


def test_only_finished_runs_and_finite_numbers_count(tmp_path: Path) -> None:
    statuses = [(1.0, "finished"), (3.0, "finished"), (99.0, "failed"), (None, "finished")]
    for seed, (value, status) in enumerate(statuses):
        make_run(tmp_path / f"{seed}", {"seed": seed}, {"bound/kl": value} if value else {}, status=status, reason="x")
    (found,) = compare([tmp_path]).configurations
    assert found.estimate("bound/kl") == Estimate(2.0, pytest.approx(math.sqrt(2)), 2)
    assert found.seeds == "3 of 4"
    assert found.format_metric("bound/kl") == "2.0 ± 1.4 (2 of 3)"


def test_the_error_of_a_measurement_stands_beside_the_deviation_over_seeds(
    printed: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    for seed, (value, error) in enumerate([(0.25, 0.0625), (0.75, 0.1875)]):
        values = {"quality/kid_classifier": value, "quality/kid_classifier_error": error}
        evaluation = {"metrics": values, "reference": {name: 2 * value for name, value in values.items()}}
        make_run(tmp_path / f"s/{seed}", {"seed": seed}, evaluation=evaluation)
    found = compare([tmp_path / "s"])
    assert found.format_reference("quality/kid_classifier") == "0.5 (error 0.12)"
    assert found.format_reference("quality/precision") == "—"
    assert compare([tmp_path / "s/0"]).configurations[0].format_metric("quality/kid_classifier") == "0.25 (error 0.062)"
    assert any("0.50 ± 0.35 (error 0.12)" in line for line in printed(tmp_path / "s"))
    page = page_of(tmp_path / "s").text
    assert "0.50 ± 0.35 (error 0.12)" in page
    assert any("An error in brackets is that of one measurement" in text for text in page)
    make_run(tmp_path / "without", evaluation={})
    assert not any("An error in brackets" in text for text in page_of(tmp_path / "without").text)


def test_a_curve_is_mean_and_deviation_at_each_clock(tmp_path: Path) -> None:
    (kl, _) = compare([make_sweep(tmp_path, seeds=3)]).configurations
    curve = kl.curve("loss/generator")
    values = [[run.reports[index]["loss/generator"] for run in kl.runs] for index in range(2)]
    assert [clock for clock, _ in curve] == [500, 1000]
    assert [estimate.mean for _, estimate in curve] == pytest.approx([statistics.mean(each) for each in values])
    assert [estimate.sd for _, estimate in curve] == pytest.approx(list(map(statistics.stdev, values)))


# ---------------------------------------------------------------------------------------------------------------------
# What is best


@pytest.mark.parametrize(
    ("names", "direction"),
    [
        ("quality/fid_classifier quality/fid_inception quality/kid_classifier", -1),
        ("quality/precision quality/density quality/inception_score quality/high_quality_share", 1),
        ("diversity/recall diversity/coverage diversity/modes", 1),
        ("diversity/missing_classes diversity/class_kl diversity/class_tv", -1),
        ("diversity/class_entropy quality/kid_classifier_error loss/generator bound/kl ratio/calibration_q", 0),
    ],
)
def test_which_direction_is_better(names: str, direction: int) -> None:
    assert {better_direction(name) for name in names.split()} == {direction}


def test_the_best_is_marked_where_there_is_one(tmp_path: Path) -> None:
    make_run(tmp_path / "kl", evaluation={"metrics": {"quality/precision": 0.9, "quality/fid_classifier": 20}})
    make_run(tmp_path / "js", JS, evaluation={})
    found = compare([tmp_path])
    js, kl = found.configurations
    assert found.best("quality/precision") == [kl]
    assert found.best("quality/fid_classifier") == [js]
    assert found.best("diversity/recall") == [js, kl]
    assert found.best("bound/gan") == found.best("quality/unknown") == []


def test_the_survivors_of_failures_are_not_the_best(tmp_path: Path) -> None:
    precision = {"kl": (0.9, 0.4), "js": (None, 0.99), "pearson": (0.95, 0.95), "neyman": (0.5, 0.5)}
    for name, values in precision.items():
        for seed, value in enumerate(values):
            status = "failed" if name == "pearson" and seed else "finished"
            settings = {"seed": seed, "gen_div": {"name": name}}
            metrics = {"quality/precision": value}
            make_run(tmp_path / f"{name}{seed}", settings, evaluation={"metrics": metrics}, status=status)
    assert [each.label for each in compare([tmp_path]).best("quality/precision")] == ["kl"]


@pytest.mark.parametrize(
    ("evaluation", "summary"),
    [
        ({"count": 50}, {}),
        ({"real_count": 50}, {}),
        ({"split": "training"}, {}),
        ({}, {"data": {"fingerprint": "other"}}),
    ],
)
def test_nothing_is_best_where_runs_were_measured_differently(
    evaluation: dict[str, Any], summary: dict[str, Any], tmp_path: Path
) -> None:
    make_run(tmp_path / "kl", evaluation=evaluation, **summary)
    make_run(tmp_path / "js", JS, evaluation={})
    found = compare([tmp_path])
    assert found.best("quality/precision") == []
    assert "cannot be ranked" in " ".join(found.notes)


def test_runs_of_any_length_are_ranked_where_each_was_evaluated_at_its_end(tmp_path: Path) -> None:
    make_run(tmp_path / "short", evaluation={})
    longer = {"images": 5000, "metrics": {"quality/precision": 0.9}}
    make_run(tmp_path / "long", {"train": {"images": 5000}}, evaluation=longer, images=5000)
    make_run(tmp_path / "unknown", JS, evaluation={"images": None})
    found = compare([tmp_path])
    assert [each.values["train.images"] for each in found.best("quality/precision")] == ["5000"]
    assert found.notes == []


def test_the_classifier_behind_the_numbers_is_named_once(tmp_path: Path, printed: Callable[[Path], list[str]]) -> None:
    features = {"name": "classifier", "dataset": "digits", "accuracy": 0.81, "width": 32, "epochs": 2}
    make_run(tmp_path / "kl", evaluation={"features": features})
    make_run(tmp_path / "js", JS, evaluation={"features": features})
    named = [line for line in printed(tmp_path) if "features" in line]
    assert len(named) == 1
    assert all(words in named[0] for words in ("classifier", "digits", "0.81", "width 32", "epochs 2"))


@pytest.mark.parametrize(("clock", "end"), [(1000, 1000), (500, 2000)])
def test_an_evaluation_from_before_the_end_is_told_and_not_ranked_with_others(
    clock: int, end: int, tmp_path: Path
) -> None:
    for index in range(5):
        make_run(tmp_path / f"resumed{index}", {"gen_div": {"name": f"alpha_{index}"}}, evaluation={}, images=2000)
    found = compare([tmp_path])
    assert len(found.best("quality/precision")) == 5, "all were measured at 1,000 images"
    told = ", ".join(f"{tmp_path}/resumed{index} (at 1,000 of 2,000 images)" for index in range(3))
    assert found.notes == [f"not evaluated at the end of the run: {told} and 2 more"]
    make_run(tmp_path / "other", evaluation={"images": clock}, images=end)
    found = compare([tmp_path])
    assert found.best("quality/precision") == []
    assert "cannot be ranked" in found.notes[-1]


def test_best_checkpoints_are_ranked_among_themselves(tmp_path: Path) -> None:
    for name, clock in (("kl", 500), ("js", 1000), ("gan", 700)):
        best = {"images": clock, "checkpoint": "best.pt", "metrics": {"quality/precision": clock / 1000}}
        make_run(tmp_path / name, {"gen_div": {"name": name}}, evaluation=best)
    assert [each.label for each in compare([tmp_path]).best("quality/precision")] == ["js"]
    make_run(tmp_path / "last", {"gen_div": {"name": "neyman"}}, evaluation={})
    assert compare([tmp_path]).best("quality/precision") == []


def test_where_there_is_an_evaluation_it_alone_tells_of_samples(tmp_path: Path) -> None:
    while_training = {"quality/precision": 0.8, "quality/fid_classifier": 3.0, "diversity/recall": 0.7}
    run = make_run(tmp_path / "run", metrics=while_training)
    assert read_run(run).metrics.items() >= while_training.items()
    (run / "evaluation.json").write_text(json.dumps({"count": 100, "metrics": {"quality/fid_classifier": 9.0}}))
    trained = {"loss/discriminator": 1.5, "loss/generator": 0.5, "bound/gan": 0.25}
    assert read_run(run).metrics == trained | {"quality/fid_classifier": 9.0}


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def test_the_table_has_every_run_and_metric_in_full_precision(tmp_path: Path) -> None:
    found = compare([make_sweep(tmp_path)])
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert [row["run"] for row in rows] == [str(run.path) for run in found.runs]
    assert [(row["gen_div"], row["seed"]) for row in rows] == [("kl", "0"), ("kl", "1"), ("js", "0"), ("js", "1")]
    for row, run in zip(rows, found.runs, strict=True):
        assert {name: float(row[name]) for name in run.metrics} == run.metrics
        assert row["status"] == "finished"
        assert row["evaluated"] == "200 samples, averaged generator"


def test_a_spreadsheet_sees_no_formula(tmp_path: Path) -> None:
    for name, label in (("a", "=cmd|'/C calc'!A0"), ("b", "@SUM(1)"), ("c", "-1.5")):
        make_run(tmp_path / name, {"dataset": {"label": label}})
    rows = csv.DictReader(io.StringIO(csv_text(compare([tmp_path]))))
    assert [row["dataset.label"] for row in rows] == ["'=cmd|'/C calc'!A0", "'@SUM(1)", "-1.5"]


def test_commands_are_those_that_were_typed(tmp_path: Path) -> None:
    runs = compare([make_sweep(tmp_path)]).runs
    assert command_lines(runs) == [["-m", "gen_div=kl,js", "seed=0,1"]]
    assert command_lines(runs[:3]) == [["gen_div=kl", "seed=0"], ["gen_div=kl", "seed=1"], ["gen_div=js", "seed=0"]]


@pytest.mark.parametrize(
    "jobs",
    [
        [[f"key{key}={job}" for key in range(12)] for job in range(30)],  # of 30^12 combinations
        [["a=1", "b=1"], ["a=1", "b=2"], ["a=2", "b=1"], ["a=2", "b=1"]],
        [["a=1"], ["a=1", "b=2"]],
    ],
)
def test_runs_that_are_no_grid_keep_their_commands(jobs: list[list[str]], tmp_path: Path) -> None:
    for seed, job in enumerate(jobs):
        run = make_run(tmp_path / f"{seed}", {"seed": seed})
        (run / ".hydra/overrides.yaml").write_text(yaml.safe_dump(job))
    assert command_lines(compare([tmp_path]).runs) == jobs


def test_a_comparison_is_shown_and_written(gantrain: Gantrain, tmp_path: Path) -> None:
    make_sweep(tmp_path / "s")
    failed = {"status": "failed", "reason": "inf at 5\nlower the rate"}
    make_run(tmp_path / "s/9-broken", {"gen_div": {"name": "neyman"}}, **failed)
    answer = gantrain("compare", "s")
    assert (answer.code, answer.err) == (0, "")
    assert "failed: s/9-broken (neyman): inf at 5\n" in answer.out
    assert "fid_classifier ↓" in answer.out
    assert " *" not in answer.out, "two seeds decide nothing"
    assert "more seeds would decide" in answer.out
    assert answer.out.endswith("the report is s/report.html\n")
    written = {path.name for path in (tmp_path / "s").iterdir() if path.is_file()}
    figures = {f"compare-{name}.{kind}" for name in ("curves", "plane", "classes") for kind in ("png", "svg")}
    assert written == {"compare.csv", "compare.json", "report.html"} | figures
    before = {name: (tmp_path / "s" / name).read_bytes() for name in written}
    report.write_report(compare([Path("s")]), Path("again"))
    assert before == {name: (tmp_path / "again" / name).read_bytes() for name in written}, "the same bytes"


def test_a_narrow_terminal_gets_more_tables_and_loses_nothing() -> None:
    columns = [["a" * 20, "1"], ["b", "2" * 20], ["c" * 90, "3"], ["d", "4"]]
    assert list(split_columns(columns, 50)) == [columns[:2], columns[2:3], columns[3:]]
    assert list(split_columns(columns, 1000)) == [columns]
    assert list(split_columns([], 50)) == [[]]


# What a dataset sets besides its name.
PHOTOGRAPHS = {"dataset": {"name": "folder", "size": 32}, "architecture": {"name": "dcgan32"}, "latent": {"size": 128}}
DIGITS = {"architecture": {"name": "mlp_digits"}, "latent": {"size": 64}}
TUNED = {"precision": "bf16", "optimizer": {"lr": 0.0002}, "train": {"batch_size": 25, "images": 200_000}}
TYPED_TUNED = "precision=bf16 optimizer.lr=0.0002 train.batch_size=25 train.images=200000"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Runs on two datasets, at the depths and with the names that `gantrain train` gives them."""
    names = ["quality/fid_classifier", "quality/kid_classifier", "quality/kid_classifier_error", "quality/precision"]
    names += ["quality/inception_score_classifier", "diversity/recall", "diversity/pairwise_distance"]
    digits = {"metrics": dict.fromkeys(names, 2 / 3)}
    places = {
        "digits/gan-kl/2026-11-22_10-00-00-s0": (DIGITS, "", digits),
        "digits/gan-js/2026-11-22_10-00-00-s0": (DIGITS | JS, "", digits),
        "digits/gan-js/2026-11-22_10-00-00-s1": (DIGITS | JS | {"seed": 1}, "", digits),
        "photographs/gan-softened_reverse_kl/2026-11-22_10-00-00-s0-2": (PHOTOGRAPHS | TUNED, TYPED_TUNED, digits),
        "photographs/gan-kl/2026-11-22_10-00-00-s0": (
            PHOTOGRAPHS,
            "",
            {"metrics": {"quality/high_quality_share": 0.5}},
        ),
    }
    weights = {"weights/beta": 0.5, "weights/effective_order": 0.25, "weights/effective_sample_size": 0.125}
    for place, (settings, typed, evaluation) in places.items():
        typed += " dataset=folder" if settings.get("dataset") else ""
        make_run(tmp_path / "runs" / place, settings, weights, evaluation, typed=typed)
    return tmp_path / "runs"


def test_defaults_of_a_dataset_name_no_configuration(mixed: Path) -> None:
    found = compare([mixed])
    tuned = "optimizer.lr=0.0002 train.images=200000 train.batch_size=25 precision=bf16"
    named = {configuration.label for configuration in found.configurations}
    assert {frozenset(label.split()) for label in named} == {
        frozenset(("js", "dataset=digits")),
        frozenset(("kl", "dataset=digits")),
        frozenset(("kl", "dataset=folder")),
        frozenset(("kl", "dataset=folder", *tuned.split())),
    }
    assert not {"latent.size", "architecture.name"} & {*found.keys, *found.differing}
    assert {"latent.size", "architecture.name"} <= found.runs[0].settings.keys()


def test_what_was_typed_or_has_no_known_default_is_named(tmp_path: Path) -> None:
    """Also if the dataset would explain it."""
    make_run(tmp_path / "a", DIGITS)
    make_run(tmp_path / "b", PHOTOGRAPHS, typed="dataset=folder latent.size=128")
    assert labels(tmp_path) == ["dataset=digits", "dataset=folder latent.size=128"]
    make_run(tmp_path / "c", DIGITS | {"latent": {"size": 32}})  # untyped, as in a run of an older version
    assert labels(tmp_path) == [
        "dataset=digits latent.size=64",
        "dataset=folder latent.size=128",
        "dataset=digits latent.size=32",
    ]
    make_run(tmp_path / "d", PHOTOGRAPHS | {"architecture": {"name": "mlp"}}, typed="experiment=mine")
    assert labels(tmp_path)[-1] == "dataset=folder architecture=mlp latent.size=128"


def test_what_was_typed_is_named_also_beside_another_default(tmp_path: Path) -> None:
    """The slope would follow from the network's name, which is not typed and so not named."""
    make_run(tmp_path / "a", {"architecture": {"name": "mlp_digits", "leaky_slope": 0.1}})
    changed = {"dataset": {"name": "folder"}, "architecture": {"name": "dcgan32", "leaky_slope": 0.3}}
    make_run(tmp_path / "b", changed, typed="dataset=folder architecture.leaky_slope=0.3")
    assert labels(tmp_path) == ["dataset=digits", "dataset=folder architecture.leaky_slope=0.3"]


@pytest.mark.parametrize("width", [80, 100])
def test_a_comparison_of_mixed_runs_can_be_read(
    mixed: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a terminal, every row has its folder and at most two lines, and every metric its name."""
    set_console_width(monkeypatch, width)
    found = compare([mixed])
    assert sorted(found.folders) == [
        "digits/gan-js",
        "digits/gan-kl/2026-11-22_10-00-00-s0",
        "photographs/gan-kl/2026-11-22_10-00-00-s0",
        "photographs/gan-softened_reverse_kl/2026-11-22_10-00-00-s0-2",
    ]
    tables.print_tables(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text, words = "\n".join(lines), {word for line in lines for word in line.split()}
    heads = {name.removeprefix(f"{group}/") for group, names in found.columns.items() for name in names}
    assert heads | {*found.weight_metrics} <= words
    assert text.count("G follows") == 1
    rows = [number for number, line in enumerate(lines) if line[:1].isdecimal()]
    ends = [number for number, line in enumerate(lines) if line and not line.startswith(" ")]
    assert all(min((end for end in ends if end > row), default=len(lines)) - row <= 2 for row in rows)
    for folder in found.folders:
        assert text.count(folder.rpartition("/")[2]) >= 3, folder
    assert not re.search(r"^\d  \S+( +—)+ *$", text, re.MULTILINE), "a row without a number"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take only names in UTF-8")
def test_a_name_that_is_no_text_is_replaced(tmp_path: Path) -> None:
    runs = tmp_path / os.fsdecode(b"runs\xff")
    make_run(runs / "a")
    report.write_report(compare([runs]), tmp_path / "out")
    assert "runs?" in (tmp_path / "out/compare.csv").read_text(encoding="utf-8")
    assert (tmp_path / "out/report.html").is_file()


def test_a_page_of_mixed_runs_names_their_folders(mixed: Path, tmp_path: Path) -> None:
    found = compare([mixed])
    text = report.render_page(found, {}).replace("<wbr>", "")
    for folder in found.folders:
        assert f"<td>{folder}</td>" in text
    make_sweep(tmp_path / "sweep")
    assert compare([tmp_path / "sweep"]).folders == []


def test_weights_stand_in_a_table_of_their_own(printed: Callable[[Path], list[str]], tmp_path: Path) -> None:
    """With the regularizer alone too, where no run has weights."""
    make_run(tmp_path / "x/a", {"regularizer": {"name": "r1", "weight": 2.5}}, typed="regularizer=r1")
    make_run(tmp_path / "y/b")
    lines = printed(tmp_path)
    place = next(number for number, line in enumerate(lines) if line.startswith("weights"))
    assert [line.split() for line in lines[place:]] == [["weights"], ["#", "run", "R1", "weight"], ["1", "x/a", "2.5"]]


def test_runs_of_one_configuration_in_several_folders(tmp_path: Path) -> None:
    for name, settings in (("x/a", {}), ("y/b", {"seed": 1}), ("y/js/1", JS), ("y/js/2", JS | {"seed": 2})):
        make_run(tmp_path / name, settings)
    assert compare([tmp_path]).folders == ["x/a and 1 more", "y/js"]


def test_the_page_is_whole_in_itself(tmp_path: Path) -> None:
    make_sweep(tmp_path / "a")
    make_run(tmp_path / "b", {"disc_div": {"name": "js"}, "seed": 0}, evaluation={})
    found = compare([tmp_path])
    figures = plots.encode_plots(found)
    assert list(figures) == ["plane", "curves", "heatmap", "classes"]
    text = report.render_page(found, figures)
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert all(source.startswith("data:image/") for source in page.sources())
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("content", report.POLICY) in page.attributes
    assert page.tags.count("img") == len(figures) + len(found.runs) + 1, "grids, and the data"
    for word in ("averaged generator", "200 samples", "held out", "torch 2.15.0", "cpu", "d38c"):
        assert any(word in each for each in page.text), word


def test_sixty_runs_have_sixty_grids_and_twenty_rows(tmp_path: Path) -> None:
    make_sweep(tmp_path, ",".join(f"alpha_{index}" for index in range(20)), seeds=3)
    page = page_of(tmp_path)
    assert page.tags.count("img") == 61
    assert page.text.count("8: alpha_7") == 3 + 3 + 3, "its grids, a row in each table, and its differences"


def test_configurations_look_different_and_alike_in_what_they_share(tmp_path: Path) -> None:
    for index in range(40):
        make_run(tmp_path / f"many/{index}", {"gen_div": {"name": f"alpha_{index}"}})
    assert len({str(style) for style in plots.line_styles(compare([tmp_path / "many"]))}) == 40
    for number, (name, objective) in enumerate(itertools.product(("kl", "js"), ("ratio", "matched"))):
        make_run(tmp_path / f"few/{number}", {"gen_div": {"name": name}, "gen_objective": objective})
    styles = plots.line_styles(compare([tmp_path / "few"]))
    kl, kl_matched, js, _ = ((style["color"], style["linestyle"]) for style in styles)
    assert kl[0] == kl_matched[0] != js[0]
    assert kl[1] == js[1] != kl_matched[1]


@pytest.mark.parametrize(
    ("means", "limits"),
    [
        ([2.0], (2.0, 2.0)),
        ([0.0, 5.0, 1e7], (0.0, 1e7)),  # one of three is no outlier
        ([*range(99), 1e7], (0.0, 146.5)),  # one at either end left out, 1 to 98, and half of that beyond
        ([*range(99), 120.0], (0.0, 120.0)),
        ([-1e7, *range(199), 1e7], (-97.0, 295.0)),
    ],
)
def test_a_spike_does_not_flatten_the_other_curves(means: list[float], limits: tuple[float, float]) -> None:
    assert plots.frame_limits(random.Random(0).sample(means, len(means))) == pytest.approx(limits)


def test_bounds_that_all_have_come_before_those_of_a_few(tmp_path: Path) -> None:
    for name in ("alpha_0.3", "kl", "js"):
        own = {"bound/alpha_0.3": 1.0} if name == "alpha_0.3" else {}
        make_run(tmp_path / name, {"gen_div": {"name": name}}, {"bound/js": 1.0, "bound/kl": 2.0, **own})
    titles = list(plots.curve_panels(compare([tmp_path])))
    assert titles[2:] == ["bound/gan", "bound/js", "bound/kl", "bound/alpha_0.3"]


def test_runs_with_different_regularizers_are_compared_by_the_recalibrated_ratio(tmp_path: Path) -> None:
    """R1 makes r, and with it the bound, too small."""
    values = {
        "bound/gan": 0.06,
        "bound/gan_error": 0.01,
        "recalibrated_bound/gan": 0.18,
        "recalibrated_bound/gan_error": 0.02,
    }
    for name, settings in {"plain": {}, "r1": {"regularizer": {"r1": {"weight": 10.0}}}}.items():
        make_run(tmp_path / "mixed" / name, settings, values)
    for name in ("kl", "js"):
        make_run(tmp_path / "same" / name, {"gen_div": {"name": name}}, values)
    for folder, shown, cell in (
        ("mixed", "recalibrated_bound/gan", "0.18 (error 0.02)"),
        ("same", "bound/gan", "0.06 (error 0.01)"),
    ):
        found = compare([tmp_path / folder])
        (table,) = (each for each in tables.metric_tables(found) if each.group == "training")
        assert [metric for metric in table.metrics if "bound" in metric] == [shown]
        assert {row.numbers[table.metrics.index(shown)] for row in table.rows} == {cell}
        assert [title for title in plots.curve_panels(found) if "bound" in title] == [shown]


def test_an_infinite_error_is_a_heavy_tail(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", metrics={"bound/kl": 2.0, "bound/kl_error": None, "bound/js": 1.0, "bound/js_error": 0.5}
    )
    (configuration,) = compare([run]).configurations
    assert configuration.format_metric("bound/kl") == "2 (heavy tail)"
    assert configuration.format_metric("bound/js") == "1 (error 0.5)"
    assert configuration.format_metric("bound/gan") == "0.25"


PARTS = {"missed/js": 0.2, "missed_bound/js": 0.1, "invented/js": 0.05, "invented_bound/js": 0.02, "missed/mass": 0.3}


def test_what_is_missed_and_invented_is_a_table_and_a_figure_with_its_bounds(tmp_path: Path) -> None:
    for name in ("kl", "js"):
        own = {} if name == "js" else {f"{part}/{name}": 0.4 for part in ("missed", "invented")}
        make_run(tmp_path / name, {"gen_div": {"name": name}}, {**PARTS, "missed/js_error": 0.01, **own})
    found = compare([tmp_path])
    (table,) = (each for each in tables.metric_tables(found) if each.group == "parts")
    assert table.heads == [
        "missed/js (estimate, no bound)",
        "missed_bound/js",
        "invented/js (estimate, no bound)",
        "invented_bound/js",
    ]
    assert table.rows[0].numbers == ["0.2 (error 0.01)", "0.1", "0.05", "0.02"]
    panels = plots.part_panels(found)
    assert list(panels) == ["missed against invented, js"]
    axes = Figure().subplots()
    panels["missed against invented, js"](axes)
    bars = [[segment.tolist() for segment in each.get_segments()] for each in axes.collections]
    assert bars[1] == [[[0.05, pytest.approx(0.19)], [0.05, pytest.approx(0.21)]]], "the error of a single run"
    drawn = [tuple(map(tuple, line.get_xydata().tolist())) for line in axes.lines]
    assert drawn == 2 * [((0.05, 0.2), (0.02, 0.1)), ((0.05, 0.2),), ((0.02, 0.1),)]


def test_a_negative_error_which_nobody_should_trust_is_not_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "run", metrics={**PARTS, "missed/js_error": -0.1})
    found = compare([tmp_path])
    assert found.configurations[0].deviation("missed/js") == 0
    plots.part_panels(found)["missed against invented, js"](Figure().subplots())


def test_the_band_of_a_single_run_is_the_error_of_its_bound(tmp_path: Path) -> None:
    make_run(tmp_path / "run", metrics={"bound/gan": 1.0, "bound/gan_error": 0.25})
    axes = Figure().subplots()
    plots.curve_panels(compare([tmp_path]))["bound/gan"](axes)
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() - heights.min() == pytest.approx(0.5, abs=0.01)


def test_a_curve_over_many_powers_of_ten_fills_its_panel_and_its_numbers_do_not_overlap(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    values = [-3.0, *(10.0**power for power in range(13))]
    reports = [{"images": clock, "bound/gan": value} for clock, value in enumerate(values, start=1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    figure = Figure(figsize=plots.PANEL)
    axes = figure.subplots()
    plots.curve_panels(compare([tmp_path]))["bound/gan"](axes)
    _, heights = axes.transAxes.inverted().transform(axes.transData.transform(axes.lines[0].get_xydata())).T
    assert 0 < heights.min() < 0.1 < 0.9 < heights.max() < 1
    figure.draw_without_rendering()
    found = (text.get_window_extent() for text in axes.get_yticklabels())
    boxes = sorted((box for box in found if axes.bbox.overlaps(box.expanded(10, 1))), key=lambda box: box.y0)
    assert len(boxes) > 4
    assert all(below.y1 < above.y0 for below, above in itertools.pairwise(boxes))


def test_long_names_end_inside_the_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = {"latent": {"prior": "uniform"}, "architecture": {"name": "mlp_digits"}, "head": "nowozin"}
    typed = "latent.prior=uniform architecture=mlp_digits head=nowozin"
    for name in ("kl", "js", "pearson"):
        evaluation = {} if name == "kl" else None
        make_run(tmp_path / name, settings | {"gen_div": {"name": name}}, evaluation=evaluation, typed=typed)
    make_run(tmp_path / "other")
    found = compare([tmp_path])
    assert max(len(each.name) for each in found.configurations) > 50
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "curve_panels", lambda _: {})  # the plane has a legend, the classes have titles
    monkeypatch.setattr(plots.plotting, "encode_figure", lambda figure, _: figures.append(figure))
    plots.encode_plots(found)
    for figure in figures[::2]:  # of each, a PNG and an SVG
        figure.draw_without_rendering()
        names = [text for text in figure.findobj(Text) if re.match(r"\d: ", text.get_text())]
        ends = {text.get_text(): text.get_window_extent().x1 for text in names}
        assert max(ends.values()) <= figure.bbox.x1, ends


def test_a_heatmap_has_the_means_of_all_finished_runs(tmp_path: Path) -> None:
    cells = [("kl", "js", 1.0), ("kl", "js", 2.0), ("js", "js", 5.0), ("js", "kl", None)]
    for number, (disc, gen, value) in enumerate(cells):
        settings = {"disc_div": {"name": disc}, "gen_div": {"name": gen}, "seed": number}
        make_run(tmp_path / f"{number}", settings, evaluation={"metrics": {"quality/precision": value}})
    axes = Figure().subplots()
    plots.heatmap_panels(compare([tmp_path]))["quality/precision ↑"](axes)
    assert [text.get_text() for text in axes.texts] == ["1.5\n± 0.71", "—", "5", "—"]


def test_critics_have_rows_and_columns_of_their_own(tmp_path: Path) -> None:
    known = {"bound/js": 0.5, "bound/total_variation": 0.25, "discriminator/pair_accuracy": 0.75, "bound/pearson": 1.0}
    make_run(tmp_path / "kl", metrics={"bound/js": 0.5})
    make_run(tmp_path / "hinge", HINGE, {"bound/total_variation": 0.25, "discriminator/accuracy": 0.5})
    make_run(tmp_path / "pairs", PAIRS, known)
    wasserstein = OWN | {"critic": {"name": "wasserstein"}}
    make_run(tmp_path / "wasserstein", wasserstein, {"training_estimate/wasserstein": 2.0}, evaluation={})
    found = compare([tmp_path])
    assert found.columns["training"] == [
        *("loss/discriminator", "loss/generator", "discriminator/accuracy", "discriminator/pair_accuracy"),
        *("bound/gan", "bound/total_variation", "bound/js", "training_estimate/wasserstein"),
    ]
    axes = Figure().subplots()
    plots.heatmap_panels(found)["quality/precision ↑"](axes)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["hinge", "gan", "relativistic", "wasserstein"]
    assert axes.get_ylabel() == "disc_div or critic"


def weighted_run(folder: Path, order: float, settings: dict[str, Any], stored: bool = True) -> Path:
    """A run whose last report's weights are not the mean over its last tenth, which `summary.json` has if `stored`."""
    summary = {"weights": {"effective_order": order}} if stored else {}
    run = make_run(folder, settings, {"weights/beta": 99.0}, {}, **summary)
    rows = [(100, 1.0), (900, 1.0), (901, order - 0.25), (1000, order + 0.25)]
    reports = [{"images": clock, "weights/effective_order": value, "weights/beta": None} for clock, value in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    return run


def test_weights_are_means_over_the_last_tenth_of_a_run(tmp_path: Path) -> None:
    kept = read_run(weighted_run(tmp_path / "stored", 0.75, {}))
    derived = read_run(weighted_run(tmp_path / "derived", 0.75, {}, stored=False))
    for run in (kept, derived):
        assert run.metrics["weights/effective_order"] == 0.75
        assert "weights/beta" not in run.metrics, "the last report is not a mean"
    (run.path / "metrics.jsonl").unlink()
    assert "weights/effective_order" not in read_run(run.path).metrics


def test_every_table_says_which_divergence_the_generator_follows(
    printed: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    r1 = {"regularizer": {"name": "r1", "weight": 2.5}}
    for seed, order in enumerate((0.25, 0.375)):
        weights = {"gen_weights": {"normalise": True, "spread": 0.5}}
        weighted_run(tmp_path / f"s/{seed}-kl", order, weights | r1 | {"seed": seed})
    plain = {"gen_weights": {"normalise": False, "spread": None}, "gen_div": {"name": "js"}}
    weighted_run(tmp_path / "s/2-js", 0.5, plain)
    make_run(tmp_path / "s/3-ratio", plain | {"gen_objective": "ratio"}, evaluation={})
    found = compare([tmp_path / "s"])
    assert found.weight_metrics == ["weights/effective_order"]
    assert {each.label: list(each.descriptions.values()) for each in found.configurations} == {
        "js matched regularizer=none": ["js, order 0.5", "plain", ""],
        "kl matched regularizer=r1": ["kl, order 0.31", "normalise, spread 0.5", "2.5"],
        "js ratio regularizer=none": ["js", "", ""],
    }
    rows = [" ".join(line.split()) for line in printed(tmp_path / "s")]
    assert sum("G follows gen_weights R1 weight" in row for row in rows) == 3, "quality, diversity and training"
    assert sum("kl, order 0.31 normalise, spread 0.5 2.5" in row and row.endswith("0.312 ± 0.088") for row in rows) == 3
    (kl, *_) = csv.DictReader(io.StringIO(csv_text(found)))
    assert (kl["G follows"], kl["R1 weight"], kl["weights/effective_order"]) == ("kl, order 0.25", "2.5", "0.25")
    page = page_of(tmp_path / "s").text
    assert page.count("kl, order 0.31") == 3
    assert any("means over the last tenth" in text for text in page)


def test_tables_have_no_columns_of_weights_that_no_run_has(tmp_path: Path) -> None:
    plain = {"gen_weights": {"normalise": False, "spread": None}}
    found = compare([make_run(tmp_path / "run", plain, evaluation={})])
    assert (found.descriptions, found.weight_metrics) == ([], [])
    found = compare([make_run(tmp_path / "r1", plain | {"regularizer": {"name": "r1", "weight": 0.1}})])
    assert (found.descriptions, found.weight_metrics) == (["R1 weight"], [])


def test_a_weight_that_refers_to_the_dataset_is_shown_as_its_value(tmp_path: Path) -> None:
    settings = {"dataset": {"r1_weight": 0.75}, "regularizer": {"r1": {"weight": "${dataset.r1_weight}"}}}
    assert read_run(make_run(tmp_path / "a", settings)).settings["regularizer.r1.weight"] == "0.75"
    assert read_run(make_run(tmp_path / "b", {"run_dir": "${oc.env:HOME}"})).settings["run_dir"] == "${oc.env:HOME}"


def test_training_data_stand_beside_the_samples(printed: Callable[[Path], list[str]], tmp_path: Path) -> None:
    reference = {"quality/fid_classifier": 1.25, "quality/precision": 0.75, "diversity/recall": 0.625}
    for seed in range(2):
        make_run(tmp_path / f"s/{seed}", {"seed": seed}, evaluation={"reference": reference})
    found = compare([tmp_path / "s"])
    assert found.reference == reference
    axes = Figure().subplots()
    plots.plane_panels(found)["precision against recall"](axes)
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("1", (0.5, 0.5)), ("training data", (0.625, 0.75))]
    assert page_of(tmp_path / "s").text.count("training data") == 2, "a row of quality and one of diversity"
    rows = [line.split() for line in printed(tmp_path / "s") if "training data" in line]
    assert rows == [["training", "data", "1.25", "0.75"], ["training", "data", "0.625"]]
    assert found.best("quality/precision") == [], "no configuration beats another one"
    make_run(tmp_path / "s/other", {"seed": 2}, evaluation={"reference": reference, "count": 50})
    assert compare([tmp_path / "s"]).reference == {}, "it belongs to one way of measuring"


@pytest.mark.parametrize(("count", "name"), [(100, "training data"), (60, "60 training examples")])
def test_fewer_training_examples_than_samples_are_counted(count: int, name: str, tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "0",
        evaluation={"reference": {"quality/precision": 0.75}, "count": 100, "reference_count": count},
    )
    assert compare([run]).reference_name == name
    page = page_of(run).text
    assert name in page
    assert f"{count} training examples" in page, "where the numbers come from"


def test_runs_that_differ_in_where_their_numbers_come_from_are_named(tmp_path: Path) -> None:
    for place, runs in {"cpu": "kl0 kl1", "cuda:0": "gan0 gan1 js0", "cuda:1": "js1"}.items():
        for run in runs.split():
            settings = {"gen_div": {"name": run[:-1]}, "seed": int(run[-1])}
            last = make_run(tmp_path / run, settings, device=place, threads=1)
    text = page_of(tmp_path).text
    assert text[text.index("versions") + 1] == "torch 2.15.0"
    told = text[text.index("device") + 1].replace(", threads 1", "").splitlines()
    assert told == ["cuda:1 (2: js, seed 1)", "cpu (3: kl)", "cuda:0 (the other 3 runs)"]
    (last / "summary.json").write_text((last / "summary.json").read_text().replace("finished", "failed"))
    text = page_of(tmp_path).text
    told = text[text.index("device") + 1].replace(", threads 1", "").splitlines()
    assert told == ["cpu (3: kl)", "cuda:0 (the other 3 runs)"], "of the finished runs"


def test_what_a_run_that_never_trained_does_not_say_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps({"status": "stopped", "reason": "stopped by SIGINT"}))
    assert provenance(read_run(run)) == {}


def test_one_report_makes_no_curve_and_the_page_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert plots.curve_panels(compare([run]))
    reports = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(reports[-1] + "\n")
    assert not plots.curve_panels(compare([run]))
    text = page_of(run).text
    assert "one report makes no curve" in text[text.index("Losses and bounds") + 1]


def test_grids_of_one_seed_stand_together_the_most_complete_first(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    summary = tmp_path / "0-gen_div-kl_seed-0/summary.json"
    summary.write_text(summary.read_text().replace("finished", "failed"))
    text = page_of(tmp_path).text
    first, second = text.index("seed 1"), text.index("seed 0")
    assert first < text.index("data", first) < second
    assert "1,000 images, failed" in text[second:]


def test_a_single_run_is_a_comparison_too(gantrain: Gantrain, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    before = sorted(tmp_path.glob("run/**/*"))
    answer = gantrain("compare", "run")
    assert answer.code == 0
    assert "the report is comparison/report.html" in answer.out
    assert sorted(tmp_path.glob("run/**/*")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "compare needs runs"),
        (["out=x"], 2, "compare needs runs"),
        (["nowhere"], 3, "nowhere is not a folder"),
        (["."], 3, "no run that can be read in ."),
        ([".", "ouT=x"], 2, "did you mean out?"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    gantrain: Gantrain, arguments: list[str], code: int, words: str
) -> None:
    answer = gantrain("compare", *arguments)
    assert answer.code == code
    assert words in answer.err
    assert answer.err.count("\n") <= 2


def test_comparing_needs_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    code = "import sys; from gantrain.cli import main; main(['compare', 'run']); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "False"


def test_a_sweep_ends_with_its_report(gantrain: Gantrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_checksums(monkeypatch.setattr)
    tiny = ("dataset=ring", "train.images=100", "train.batch_size=50", "train.held_out_images=20")
    answer = gantrain("train", "-m", "gen_div=kl,js", *tiny, "run_dir=s")
    assert answer.code == 0
    assert (tmp_path / "s/report.html").is_file()
    assert "the report is s/report.html" in answer.out
    unmeasured = "{} no numbers of sample quality and diversity, which are added by: gantrain evaluate s"
    assert unmeasured.format("2 runs have") in answer.out.splitlines()
    assert unmeasured.format("2 runs have") in (tmp_path / "s/report.html").read_text()
    assert gantrain("evaluate", "s/0-gen_div-kl", "metrics=pairwise_distance", "count=20").code == 0
    assert unmeasured.format("1 run has") in gantrain("compare", "s").out.splitlines()
    assert gantrain("evaluate", "s", "metrics=pairwise_distance", "count=20").code == 0
    assert "which are added by" not in gantrain("compare", "s").out
    assert "which are added by" not in (tmp_path / "s/report.html").read_text()
    assert list(pending_notes([Path("s")])) == []
    shutil.rmtree(tmp_path / "s/1-gen_div-js")
    told = "1 of 2 runs of s have not begun: gen_div=js. Unless it is still running, go on with: gantrain resume s"
    assert told in gantrain("compare", "s").out.splitlines()
    assert told in (tmp_path / "s/report.html").read_text()
    assert list(pending_notes([Path("s/0-gen_div-kl")])) == [], "nobody asked about the others"


def begin_sweep(
    root: Path, typed: list[str], of_files: dict[str, str] | None = None, begun: tuple[int, ...] = (0,)
) -> Path:
    """Make a sweep's folder with the command as Hydra keeps it, and the runs of these numbers."""
    for number in begun:
        make_run(root / f"{number}-run", {"seed": number})
    command = {"hydra": {"overrides": {"task": typed, "hydra": []}, "sweeper": {"params": of_files}}}
    (root / "multirun.yaml").write_text(yaml.safe_dump(command))
    return root


@pytest.mark.parametrize(
    ("typed", "of_files", "begun", "told"),
    [
        (
            ["gen_div=kl,js", "train.images=5", "++seed=1,2"],
            None,
            (0, 3),
            "2 of 4 runs: gen_div=kl seed=2, gen_div=js seed=1",
        ),
        (["seed=range(5)"], None, (0,), "4 of 5 runs: seed=1, seed=2, seed=3 and 1 more"),
        (["disc_div=glob(j*)"], None, (1,), "1 of 2 runs: disc_div=jeffreys"),
        (["seed=1,2"], {"gen_div": "${a:${b}},kl", "seed": "7,8,9"}, (1, 2, 3), "1 of 4 runs: gen_div=? seed=1"),
        (["seed=4"], {"gen_div": "js,kl", "seed": "7,8,9"}, (1,), "1 of 2 runs: gen_div=js"),
        (["gen_div=kl,js"], None, (0, 1), ""),
        (["gen_div=kl"], None, (0,), ""),
    ],
)
def test_runs_that_have_not_begun_are_named(
    typed: list[str], of_files: dict[str, str] | None, begun: tuple[int, ...], told: str, tmp_path: Path
) -> None:
    notes = list(pending_notes([begin_sweep(tmp_path / "tree/s", typed, of_files, begun), tmp_path / "tree"]))
    assert [note.split(". Unless")[0].replace(f" of {tmp_path}/tree/s have not begun", "") for note in notes] == (
        [told] if told else []
    )


@pytest.mark.parametrize(
    "typed",
    [
        ["seed=range(1,9,0)"],
        ["a b=1,2"],
        ["disc_div=glob(q*)"],
        ["seed=interval(0,1)"],
        ["seed=range(0,1000000000)"],
        [f"key{index}=range(999)" for index in range(9)],
    ],
    ids=lambda typed: typed[0],
)
def test_a_command_that_cannot_be_read_is_told(typed: list[str], tmp_path: Path) -> None:
    (note,) = pending_notes([begin_sweep(tmp_path, typed)])
    assert note.startswith(f"which runs of {tmp_path} have not begun cannot be determined: ")


def test_a_sweep_whose_runs_have_names_of_their_own_is_left_alone(tmp_path: Path) -> None:
    (begin_sweep(tmp_path, ["gen_div=kl,js"]) / "0-run").rename(tmp_path / "mine")
    assert list(pending_notes([tmp_path])) == []


def test_a_run_that_never_trained_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "s/0-run")
    make_run(tmp_path / "s/1-run")
    (run / "summary.json").unlink()
    ((path, _, status, reason),) = compare([tmp_path / "s"]).failures
    assert (path, status) == (run, "unreadable")
    assert reason.startswith("summary.json is missing or empty: it has not begun to train")
    assert "unreadable" in page_of(tmp_path / "s").text
    with pytest.raises(DataError, match=r"summary\.json is missing"):
        compare([run])


@pytest.mark.parametrize("out", ["file", "file/inside"])
def test_a_file_in_place_of_the_folder_for_the_report(gantrain: Gantrain, tmp_path: Path, out: str) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    answer = gantrain("compare", "run", f"out={out}")
    message = f"gantrain: out={out}: file is a file; give a folder, which is made if it is missing\n"
    assert (answer.code, answer.err) == (2, message)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_report_that_fails_changes_no_sweeps_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_run(tmp_path / "run").parent / "compare.csv").mkdir()
    compare_sweep(tmp_path)
    assert f"the runs could not be compared: out={tmp_path} cannot be written" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Nothing in a folder is trusted


HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e$\\frac"


def test_no_text_becomes_markup(gantrain: Gantrain, tmp_path: Path) -> None:
    dressed = {"dataset": {"label": HOSTILE}, "gen_div": {"name": HOSTILE}}
    strange = {"metrics": {f"quality/{HOSTILE}": 1.0}, "split": HOSTILE, "class_histogram": {"samples": {HOSTILE: 1}}}
    make_run(tmp_path / "s/<b>bold", dressed, {HOSTILE: 1}, strange, data={"label": HOSTILE}, device=HOSTILE)
    make_run(tmp_path / "s/[red]x", status="failed", reason=f"[blink]{HOSTILE}\n{HOSTILE}")
    answer = gantrain("compare", "s")
    assert answer.code == 0
    assert "\x1b" not in answer.out + answer.err
    assert "[blink]" in answer.out
    text = (tmp_path / "s/report.html").read_text()
    page = Page(text)
    assert not {"script", "b"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(source.startswith("data:image/") for source in page.sources())
    assert not {"\x1b", "\u202e"} & set(text)
    assert any("<script>alert(1)</script>" in each for each in page.text), "it is shown as what it is"
    for svg in (tmp_path / "s").glob("*.svg"):
        assert "<script" not in svg.read_text()


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<svg onload=alert(1)>", "not a picture"),
        (b"", "not a picture"),
        (png(20, 20)[:-20], "not a picture"),
        (png(5000, 5000), "pixels"),
        (b"GIF89a" + bytes(50), "not a picture"),
    ],
)
def test_only_whole_pngs_of_a_size_that_can_be_shown_are_pictures(data: bytes, words: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "samples/images_000000002000.png").write_bytes(data)
    page = page_of(run)
    assert page.tags.count("img") == 1, "real.png is well"
    assert any(words in text for text in page.text)


@pytest.mark.parametrize("name", ["summary.json", ".hydra/config.yaml", "metrics.jsonl", "evaluation.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "loop", "huge"])
def test_what_is_no_file_of_the_run_is_not_read(name: str, kind: str, tmp_path: Path) -> None:
    good, bad = make_run(tmp_path / "s/good"), make_run(tmp_path / "s/bad", evaluation={})
    path = bad / name
    outside = tmp_path / path.name
    path.rename(outside)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, LARGEST_BYTES[path.suffix] + 1)
    found = compare([tmp_path / "s"])
    assert [run.path for run in found.runs] == [good]
    # A config that is no file makes no run.
    assert list(found.unreadable) == ([] if name.endswith(".yaml") and kind in ("pipe", "loop") else [bad])


@pytest.mark.parametrize("name", ["multirun.yaml", ".multirun.yaml"])
def test_a_sweeps_command_is_read_only_where_it_lies(name: str, tmp_path: Path) -> None:
    root = begin_sweep(tmp_path / "s", ["gen_div=kl,js"])
    outside = tmp_path / "secret.yaml"
    outside.write_text("secret: [")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(outside)
    (note,) = pending_notes([root])
    assert "leads out of the folder" in note


def test_links_between_folders_are_not_followed(tmp_path: Path) -> None:
    secret = make_run(tmp_path / "secret", {"gen_div": {"name": "js"}})
    run = make_run(tmp_path / "s/run")
    (tmp_path / "s/linked").symlink_to(secret)
    (run / "samples/real.png").unlink()
    (run / "samples/real.png").symlink_to(secret / "samples/real.png")
    page = page_of(tmp_path / "s")
    assert any("link out of the run folder" in text for text in page.text)
    assert [found.path for found in compare([tmp_path / "s"]).runs] == [run]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", "[1, 2]"),
        ("summary.json", "[" * 100_000),
        ("summary.json", '{"status": '),
        ("summary.json", '{"images": ' + "9" * 5000 + "}"),
        ("evaluation.json", '"text"'),
        (".hydra/config.yaml", "a: [1"),
        (".hydra/config.yaml", "a: !!python/object/apply:os.system [id]"),
        (".hydra/config.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"),
        (".hydra/config.yaml", "[" * 900),
        (".hydra/config.yaml", "[" * 100_000),
        (".hydra/config.yaml", "- " * 10_000),
        (".hydra/config.yaml", f"0x{'f' * 20_000}: 1"),
        (".hydra/config.yaml", "\0"),
        (".hydra/config.yaml", "a: !!int ''"),
        (".hydra/config.yaml", "a: !!float ''"),
        (".hydra/config.yaml", "a: !!bool x"),
        (".hydra/config.yaml", "a: !!timestamp x"),
        (".hydra/config.yaml", f"a: !!set {{? 0x{'f' * 20_000}}}"),
        (".hydra/config.yaml", f"a: 1{':00' * 400}.5"),  # a number to the base 60
    ],
)
def test_a_damaged_run_is_named_and_the_others_are_compared(name: str, text: str, tmp_path: Path) -> None:
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    (bad / name).write_text(text)
    found = compare([tmp_path])
    assert [run.path for run in found.runs] == [good]
    ((path, label, status, reason),) = found.failures
    assert (path, label, status) == (bad, "", "unreadable")
    assert reason.startswith(name)


def test_a_run_that_was_killed_is_no_longer_running(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    make_run(tmp_path / "killed", {"seed": 1}, status="running")
    assert [failure[2] for failure in compare([tmp_path]).failures] == ["killed"]
    with RunFolder(tmp_path / "killed").lock():
        assert [failure[2] for failure in compare([tmp_path]).failures] == ["running"]


def test_odd_values_are_no_numbers(tmp_path: Path) -> None:
    odd = {"a": math.nan, "b": math.inf, "c": True, "d": "1", "e": [1], "f": 10**400, "g": 1e300, "h": None, "i": 2}
    run = make_run(tmp_path / "run", {"latent": {"size": 10**400}}, status=["x"], metrics={})
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"metrics": odd, "data": 3, "images": "many"}))
    (run / "metrics.jsonl").write_text('{"images": 1, "loss/generator": NaN}\n[]\n{"images": "x"}\n{"images": 10, "lo')
    read = read_run(run)
    assert read.metrics == {"i": 2.0}
    assert (read.status, read.reports) == ("unknown", [{"images": 1.0}])
    assert "many" not in page_of(run).text


def test_the_names_of_metrics_are_cleaned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[str] = []
    monkeypatch.setattr("gantrain.comparison.untrusted.printable", lambda text: cleaned.append(text) or text)
    names = [f"bound/\x1b{number}" for number in range(500)]
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"images": i} | dict.fromkeys(names, i)) + "\n" for i in (1, 2))
    )
    assert len(read_run(run).reports) == 2
    assert all(cleaned.count(name) == 1 for name in names)


def test_numbers_of_any_size_are_drawn(tmp_path: Path) -> None:
    for seed, size in enumerate((1e100, -1e100, 1e-100, 0.0)):
        make_run(tmp_path / f"{seed}", {"seed": seed}, {"bound/gan": size}, {"metrics": {"diversity/recall": size}})
    found = compare([tmp_path])
    assert all(b"<path" in files["svg"] for files in plots.encode_plots(found).values())
    assert found.configurations[0].format_metric("bound/gan").endswith(" ± 8.2e+99")


def test_a_folder_of_damaged_runs_is_refused_with_the_reasons(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"no run that can be read in .*\n  .*run: summary\.json is not JSON"):
        compare([run])

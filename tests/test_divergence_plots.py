"""The figures of divergences: what is drawn, how lines are told apart, and that files never change."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from gantrain.objectives import divergences
from gantrain.objectives.divergences import CATALOGUE
from gantrain.theory import plots

ALL = list(CATALOGUE.values())
TWO = [divergences.kl, divergences.get("alpha_0.3")]
FIGURES = [draw for name, draw in plots.FIGURES.items() if name != "effective"]


def curves(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if len(line.get_xdata()) == plots.POINTS]


def curve(axes: Axes, name: str, chosen: list[divergences.Divergence]) -> tuple[np.ndarray, np.ndarray]:
    line = curves(axes)[[divergence.name for divergence in chosen].index(name)]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def names(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_position()[0] > 1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of two divergences."""
    folder = tmp_path_factory.mktemp("figures")
    assert plots.save(TWO, folder) == list(plots.FIGURES)
    return folder


def test_the_same_divergences_give_the_same_files(saved: Path, tmp_path: Path) -> None:
    plots.save(TWO, tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {*written} == {f"{name}.{kind}" for name in plots.FIGURES for kind in ("png", "svg")}
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == written


def test_files_are_pictures_without_a_date(saved: Path) -> None:
    for path in saved.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert "Software" not in picture.info
    for path in saved.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert "dc:date" not in path.read_text()


@pytest.mark.parametrize("draw", FIGURES)
def test_every_line_has_a_name_and_a_look_of_its_own(draw) -> None:
    looks: dict[str, set[str]] = {}
    for axes in draw(ALL).axes:
        lines, shown = curves(axes), names(axes)
        assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == len(lines)
        assert len(lines) == len(shown) == len({*shown})
        assert {*shown} <= {*CATALOGUE}
        for leader in (line for line in axes.lines if len(line.get_xdata()) == 4):
            label = next(text for text in axes.texts if text.get_position()[1] == leader.get_ydata()[-1])
            looks.setdefault(label.get_text(), set()).add(f"{leader.get_color()} {leader._unscaled_dash_pattern}")
    assert {name: len(found) for name, found in looks.items()} == dict.fromkeys(looks, 1)  # the same in every panel


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("count", [1, 5, 12])
def test_names_keep_apart_and_stay_beside_the_axes(draw, count: int) -> None:
    for axes in draw(ALL[:count]).axes:
        heights = sorted(text.get_position()[1] for text in axes.texts if text.get_position()[0] > 1)
        assert 0 <= heights[0] <= heights[-1] <= 1
        assert (np.diff(heights) > 0.04).all()


def test_a_lone_name_stands_at_the_end_of_its_line() -> None:
    (axes,) = plots.draw_f([divergences.kl]).axes
    (name,) = (text for text in axes.texts if text.get_text() == "kl")
    height = axes.transAxes.inverted().transform(axes.transData.transform((3, 3 * math.log(3))))[1]
    assert name.get_position()[1] == pytest.approx(height)


def test_lines_are_the_functions_that_they_are_named_after() -> None:
    chosen = [divergences.pearson, divergences.gan]
    (axes,) = plots.draw_f(chosen).axes
    u, f = curve(axes, "pearson", chosen)
    np.testing.assert_allclose(f, (u - 1) ** 2, atol=1e-12)
    real, fake = plots.draw_real_fake(chosen).axes
    r, values = curve(real, "gan", chosen)
    np.testing.assert_allclose(values, -np.log1p(np.exp(-r)))
    r, values = curve(fake, "pearson", chosen)
    np.testing.assert_allclose(values, np.exp(2 * r) - 1, atol=1e-12)


def test_the_lecture_notes_generator_losses() -> None:
    chosen = [divergences.gan, divergences.kl]
    matched, _, alternative = plots.draw_losses(chosen).axes
    d, minimax = curve(matched, "gan", chosen)
    np.testing.assert_allclose(minimax, np.log(1 - d), rtol=1e-10)
    d, likelihood = curve(matched, "kl", chosen)
    np.testing.assert_allclose(likelihood, -d / (1 - d), rtol=1e-10)
    d, heuristic = curve(alternative, "gan", chosen)
    np.testing.assert_allclose(heuristic, -np.log(d), rtol=1e-10)


def test_the_pull_of_ratio_is_shaded_where_it_leaves_the_data() -> None:
    matched, ratio, alternative = plots.draw_pulls([divergences.kl]).axes
    r, pull = curve(ratio, "kl", [divergences.kl])
    np.testing.assert_allclose(pull, -np.exp(r) * (1 + r), atol=1e-10)
    assert [len(axes.patches) for axes in (matched, ratio, alternative)] == [0, 1, 0]


def test_an_objective_that_cannot_train_is_left_out() -> None:
    (axes,) = plots.draw_losses([divergences.total_variation]).axes
    assert "gen_objective=ratio" in axes.get_title()


@pytest.mark.parametrize(
    ("name", "affine", "convex_to"),
    [("kl", 0, 1 / math.e), ("js", 0, 1), ("gan", 0, 4), ("reverse_kl", 0.5, 2), ("pearson", 4, 0)],
)
def test_effective_divergences_are_shaded_where_all_are_convex(name: str, affine: float, convex_to: float) -> None:
    (axes,) = plots.draw_effective([divergences.get(name).shifted(affine)]).axes
    (shade,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert (shade.get_x(), shade.get_width()) == pytest.approx((0, convex_to))


def test_effective_divergences_have_a_panel_each() -> None:
    panels = plots.draw_effective(ALL).axes
    assert len(panels) == len(ALL)
    kl = curves(panels[0])
    u = torch.from_numpy(np.asarray(kl[1].get_xdata()))
    np.testing.assert_allclose(kl[1].get_ydata(), -u * u.log() ** 2 / 2, atol=1e-10)

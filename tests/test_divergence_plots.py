"""The figures of divergences: their curves, the looks of lines, and reproducible files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from gantrain.objectives import divergences
from gantrain.objectives.divergence import Divergence
from gantrain.objectives.divergences import CATALOGUE
from gantrain.theory import plots

ALL = list(CATALOGUE.values())
TWO = [divergences.kl, divergences.get("alpha_0.3")]
FIGURES = [draw for name, draw in plots.FIGURES.items() if name != "effective"]


def curves(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if len(line.get_xdata()) == plots.POINTS]


def curve(axes: Axes, name: str, chosen: list[Divergence]) -> tuple[np.ndarray, np.ndarray]:
    line = curves(axes)[[divergence.name for divergence in chosen].index(name)]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def names(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_the_same_divergences_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "FIGURES", {name: plots.FIGURES[name] for name in ("f", "effective")})
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        assert plots.save_divergence_figures(TWO, folder) == ["f", "effective"]
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert {*written[0]} == {"f.png", "f.svg", "effective.png", "effective.svg"}
    assert b"dc:date" not in written[0]["f.svg"]


@pytest.mark.parametrize("draw", FIGURES)
def test_every_line_has_a_look_of_its_own_and_a_name_in_the_order_of_their_ends(draw) -> None:
    looks: dict[str, set[str]] = {}
    for axes in draw(ALL).axes:
        found = {str(line.get_label()): f"{line.get_color()} {line._unscaled_dash_pattern}" for line in curves(axes)}
        assert len({*found.values()}) == len(found) == len(curves(axes))
        assert {*found} <= {*CATALOGUE}
        ends = {str(line.get_label()): np.asarray(line.get_ydata())[-1] for line in curves(axes)}
        assert names(axes) == sorted(found, key=lambda name: -ends[name])
        for name, look in found.items():
            looks.setdefault(name, set()).add(look)
    assert {name: len(found) for name, found in looks.items()} == dict.fromkeys(looks, 1)  # the same in every panel


def test_lines_are_the_functions_that_they_are_named_after() -> None:
    chosen = [divergences.pearson, divergences.gan]
    (axes,) = plots.draw_f(chosen).axes
    u, f = curve(axes, "pearson", chosen)
    np.testing.assert_allclose(f, (u - 1) ** 2, atol=1e-12)
    _, fake = plots.draw_real_fake(chosen).axes
    r, values = curve(fake, "pearson", chosen)
    np.testing.assert_allclose(values, np.exp(2 * r) - 1, atol=1e-12)


def test_generator_losses_and_pulls_are_drawn_by_objective() -> None:
    matched, _, alternative = plots.draw_losses([divergences.gan, divergences.kl]).axes
    d, likelihood = curve(matched, "kl", [divergences.gan, divergences.kl])
    np.testing.assert_allclose(likelihood, -d / (1 - d), rtol=1e-10)
    d, heuristic = curve(alternative, "gan", [divergences.gan, divergences.kl])
    np.testing.assert_allclose(heuristic, -np.log(d), rtol=1e-10)
    _, ratio, _ = plots.draw_pulls([divergences.kl]).axes
    r, pull = curve(ratio, "kl", [divergences.kl])
    np.testing.assert_allclose(pull, -np.exp(r) * (1 + r), atol=1e-10)


def test_an_objective_that_cannot_train_is_left_out() -> None:
    (axes,) = plots.draw_losses([divergences.total_variation]).axes
    assert "gen_objective=ratio" in axes.get_title()


@pytest.mark.parametrize(
    ("name", "affine", "convex_to"),
    [("kl", 0, 1 / math.e), ("gan", 0, 4), ("reverse_kl", 0.5, 2), ("pearson", 4, 0)],
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

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from support.pictures import draw_checksums

from gantrain import plotting
from gantrain.data import published
from gantrain.errors import DivergedError
from gantrain.reporting import pictures


def digits(count: int) -> torch.Tensor:
    return published.read_digits(Path(), 8, "error").train[:count] / 255  # [N, 1, 8, 8] in [0, 1]


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(picture.astype(int) - wanted).max(-1) <= 2).any())


def row(images: int, **scalars: float | None) -> dict[str, float | None]:
    return {"images": images, **{name.replace("__", "/"): value for name, value in scalars.items()}}


def many_rows(count: int) -> list[dict[str, float | None]]:
    return [
        row(
            1000 * i,
            loss__discriminator=1.3 - 1 / i,
            loss__generator=0.7 + math.sin(i),
            bound__kl=1 / i,
            bound__neyman=-10.0 * i,
            ratio__real_mean=1 / i,
            ratio__fake_mean=-1 / i,
            ratio__calibration_q=1 + 1 / i,
            ratio__calibration_p=0.0,
        )
        for i in range(1, count + 1)
    ]


@pytest.mark.parametrize(("count", "columns", "rows"), [(2, 2, 1), (5, 3, 2), (64, 8, 8)])
def test_each_cell_of_a_grid_is_its_image_enlarged(tmp_path, count, columns, rows):
    images = digits(count)
    plotting.save_grid(images, tmp_path / "grid.png")
    picture, step = pixels(tmp_path / "grid.png"), 48 + 2  # an 8×8 digit is enlarged six times; the gap is 2
    assert picture.shape == (rows * step + 2, columns * step + 2, 3)
    for index, image in enumerate(images):
        top, left = 2 + index // columns * step, 2 + index % columns * step
        cell = picture[top : top + 48, left : left + 48]
        expected = np.kron(np.round(image[0].numpy() * 255), np.ones((6, 6)))
        for channel in range(3):
            np.testing.assert_array_equal(cell[..., channel], expected)
    assert (picture[:2] == 255).all()
    assert (picture[:, :2] == 255).all()


def test_large_colour_images_keep_their_size_and_channels(tmp_path):
    levels = torch.randint(256, (4, 3, 50, 70))
    plotting.save_grid(levels / 255, tmp_path / "grid.png")
    picture = pixels(tmp_path / "grid.png")
    assert picture.shape == (2 * 52 + 2, 2 * 72 + 2, 3)
    np.testing.assert_array_equal(picture[54:104, 74:144], levels[3].permute(1, 2, 0).numpy())


def test_single_images_are_numbered_and_unscaled(tmp_path):
    plotting.save_images(digits(5), tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"0000{i}.png" for i in range(5)]
    np.testing.assert_array_equal(
        pixels(tmp_path / "images/00004.png")[..., 0], np.round(digits(5)[4, 0].numpy() * 255)
    )


def test_values_outside_the_unit_interval_saturate(tmp_path):
    plotting.save_images(torch.tensor([-0.5, 1.5]).reshape(1, 1, 1, 2), tmp_path)
    assert pixels(tmp_path / "00000.png")[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_pictures_of_what_is_not_finite_are_refused(tmp_path, bad):
    images = digits(4)
    images[2, 0, 3, 3] = bad
    with pytest.raises(DivergedError, match="1 of 256 pixels"):
        plotting.save_grid(images, tmp_path / "grid.png")
    with pytest.raises(DivergedError, match="1 of 4 samples"):
        pictures.save_scatter(torch.tensor([[0.0], [1.0], [bad], [2.0]]), tmp_path / "scatter.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (4, 2, 8, 8), (4, 8, 8)])
def test_a_grid_names_the_shape_it_cannot_draw(tmp_path, shape):
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        plotting.save_grid(torch.zeros(shape), tmp_path / "grid.png")


@pytest.mark.parametrize("shape", [(0, 2), (5, 0), (5,)])
def test_a_scatter_names_the_shape_it_cannot_draw(tmp_path, shape):
    with pytest.raises(ValueError, match=r"\[N, d\]"):
        pictures.save_scatter(torch.zeros(shape), tmp_path / "scatter.png")


def test_a_scatter_shows_the_first_two_coordinates(tmp_path):
    points = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    for name, drawn in (("all", points), ("two", points[:, :2])):
        pictures.save_scatter(drawn, tmp_path / f"{name}.png", real=drawn + 1)
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_points_are_drawn_where_they_are(tmp_path):
    corners = torch.tensor([[-0.8, -0.8], [0.8, 0.8]])  # with the margin, the view is from −0.96 to 0.96
    pictures.save_scatter(torch.tensor([[0.72, -0.72]]), tmp_path / "points.png", real=corners)
    plot = pixels(tmp_path / "points.png").astype(int)[60:]  # without the legend
    height, width, _ = plot.shape
    row, column = np.argwhere(plot[..., 0] - plot[..., 2] > 60).mean(0)
    assert row / height == pytest.approx(0.83, abs=0.07)
    assert column / width == pytest.approx(0.88, abs=0.07)


def test_the_view_is_that_of_the_real_points(tmp_path):
    real = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    pictures.save_scatter(torch.full((5, 2), 100.0), tmp_path / "scatter.png", real=real)
    plot = pixels(tmp_path / "scatter.png").astype(int)[60:]
    assert not (plot[..., 0] - plot[..., 2] > 60).any()
    assert has_colour(plot, "#8c8c8c")


@pytest.mark.parametrize("dimension", [1, 2])
def test_a_density_is_drawn_under_its_samples(tmp_path, dimension):
    samples = torch.randn(500, dimension, generator=torch.Generator().manual_seed(0))

    def log_density(x: torch.Tensor) -> torch.Tensor:
        return -(x**2).sum(1) / 2 - dimension * math.log(2 * math.pi) / 2

    pictures.save_scatter(samples, tmp_path / "without.png", real=samples + 0.1)
    pictures.save_scatter(samples, tmp_path / "with.png", real=samples + 0.1, log_density=log_density)
    assert not has_colour(pixels(tmp_path / "without.png"), plotting.BLUE)
    assert has_colour(pixels(tmp_path / "with.png"), plotting.BLUE)


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("first", "second"):
        plotting.save_grid(digits(9), tmp_path / f"{name}-grid.png")
        pictures.save_scatter(digits(9).reshape(-1, 2), tmp_path / f"{name}-scatter.png")
        pictures.save_curves(many_rows(30), tmp_path / f"{name}-curves.png", highlight=["kl"])
    for kind in ("grid", "scatter", "curves"):
        first, second = (tmp_path / f"{name}-{kind}.png" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
        assert b"tEXt" not in first.read_bytes()


def test_checksums_tell_figures_apart_by_what_is_in_them(tmp_path, monkeypatch):
    """They take the place of pictures in the tests of runs."""
    draw_checksums(monkeypatch.setattr)
    rows, points = many_rows(5), digits(9).reshape(-1, 2)
    other = [*rows[:-1], rows[-1] | {"ratio/fake_mean": 0.5}]
    for number, (drawn, look) in enumerate([(rows, {}), (other, {}), (rows, {"highlight": ["kl"]})]):
        pictures.save_curves(drawn, tmp_path / f"{number}.png", **look)
        pictures.save_curves(drawn, tmp_path / f"{number} again.png", **look)
    for number, drawn in enumerate([points, points + 0.01, points[:-1], points[:, :1]], 3):
        pictures.save_scatter(drawn, tmp_path / f"{number}.png", real=points)
        pictures.save_scatter(drawn, tmp_path / f"{number} again.png", real=points)
    files = [(tmp_path / f"{number}.png").read_bytes() for number in range(7)]
    assert len(set(files)) == 7
    assert files == [(tmp_path / f"{number} again.png").read_bytes() for number in range(7)]
    assert pixels(tmp_path / "0.png").shape == (4, 8, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 1000])
def test_curves_of_any_length_are_drawn(tmp_path, count):
    pictures.save_curves(many_rows(count), tmp_path / "losses.png", highlight=["kl", "absent"])
    picture = pixels(tmp_path / "losses.png")
    assert has_colour(picture, plotting.BLUE)
    assert has_colour(picture, plotting.ORANGE)
    assert has_colour(picture, plotting.GREY)


@pytest.mark.filterwarnings("error")
def test_missing_null_and_huge_values_are_tolerated(tmp_path):
    rows = [
        row(0, loss__discriminator=None),
        row(10, loss__generator=1e30, bound__neyman=-1e38, bound__kl=None),
        row(20, loss__discriminator=math.inf, ratio__calibration_q=math.nan),
    ]
    pictures.save_curves(rows, tmp_path / "losses.png")


@pytest.mark.filterwarnings("error")
def test_bounds_have_a_band_of_two_errors_where_these_are_finite(tmp_path):
    for name, error in {"none": {}, "narrow": {"bound__kl_error": 0.05}, "infinite": {"bound__kl_error": None}}.items():
        rows = [row(clock, bound__kl=0.5, **error) for clock in (10, 20, 30)]
        pictures.save_curves(rows, tmp_path / f"{name}.png", highlight=["kl"])
    without, narrow, infinite = (pixels(tmp_path / f"{name}.png") for name in ("none", "narrow", "infinite"))
    assert np.array_equal(without, infinite)
    pale = np.round(255 - 0.15 * (255 - 255 * np.array(to_rgb(plotting.BLUE))))
    near = (np.abs(narrow[..., :3].astype(float) - pale) <= 3).all(-1)
    rows_of_band = np.flatnonzero(near.sum(1) > 100)
    assert len(rows_of_band) > 5
    assert not (np.abs(without[..., :3].astype(float) - pale) <= 3).all(-1).sum(1).max() > 100


def test_panels_without_a_value_are_left_out(tmp_path):
    for name, rows in {"one": [row(10, loss__discriminator=1.0)], "two": [row(10, training_bound__kl=0.5)]}.items():
        pictures.save_curves(rows, tmp_path / f"{name}.png")
    assert pixels(tmp_path / "one.png").shape[0] < pixels(tmp_path / "two.png").shape[0]


def test_many_rows_are_averaged_over_what_is_there():
    rows = np.array([[1.0, 2.0], [3.0, math.nan], [5.0, 6.0], [7.0, 8.0], [9.0, math.nan], [11.0, math.nan]])
    np.testing.assert_array_equal(plotting.average_rows(rows, 6), rows)
    np.testing.assert_array_equal(plotting.average_rows(rows, 3), [[2.0, 2.0], [6.0, 7.0], [10.0, math.nan]])


def test_a_failed_write_leaves_the_last_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    plotting.save_grid(digits(4), path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        plotting.save_grid(digits(9), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

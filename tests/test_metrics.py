"""Every number of quality and diversity against independent arithmetic: SciPy, brute force in NumPy, closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg, special, stats
from scipy.spatial.distance import pdist, squareform
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gantrain import data
from gantrain.console import no_progress
from gantrain.evaluation import classes, distances, formulas
from gantrain.evaluation import metrics as catalogue
from gantrain.evaluation.features import Features, point_extractor


def cloud(count: int, size: int = 6, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated Gaussian features."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(size, size))
    return torch.from_numpy(scale * random.normal(size=(count, size)) @ mixing + shift)


# Distances of clouds


def frechet_by_scipy(x: Tensor, y: Tensor) -> float:
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = linalg.sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(a + b - 2 * root)


@pytest.mark.parametrize(("n", "m", "shift"), [(300, 200, 0.0), (100, 500, 1.5), (50, 50, 0.1)])
def test_the_frechet_distance_equals_scipys(n: int, m: int, shift: float) -> None:
    x, y = cloud(n), cloud(m, seed=1, shift=shift)
    assert distances.frechet_distance(x, y) == pytest.approx(frechet_by_scipy(x, y), rel=1e-9)


def test_the_frechet_distance_of_gaussians_has_its_closed_form() -> None:
    x = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, 0.0])
    assert distances.frechet_distance(x, y) == pytest.approx(1 + (2 - 1) ** 2 + (1 - 0.5) ** 2, abs=0.02)
    assert distances.frechet_distance(x[:, :1], y[:, :1]) == pytest.approx(2, abs=0.02)


def test_fewer_points_than_features_have_a_frechet_distance_too() -> None:
    x, y = cloud(5, size=20), cloud(7, size=20, seed=1)
    means = float((x.mean(0) - y.mean(0)).square().sum())
    # Tr (Σ₁Σ₂)^½ from eigenvalues, of which those that should be 0 are known to the root of the rounding error only.
    a, b = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
    cross = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    assert distances.frechet_distance(x, y) == pytest.approx(means + np.trace(a + b) - 2 * cross, rel=1e-6)
    assert distances.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def kernel_distance_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    mine = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    theirs = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return mine + theirs - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_the_kernel_distance_and_its_jackknife_equal_loops() -> None:
    x, y = cloud(12, 3).numpy(), cloud(9, 3, seed=1, shift=0.5).numpy()
    value, error = distances.kernel_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert value == pytest.approx(kernel_distance_by_loops(x, y), rel=1e-10)
    without_x = [kernel_distance_by_loops(np.delete(x, i, 0), y) for i in range(len(x))]
    without_y = [kernel_distance_by_loops(x, np.delete(y, i, 0)) for i in range(len(y))]
    variance = (len(x) - 1) * np.var(without_x) + (len(y) - 1) * np.var(without_y)
    assert error == pytest.approx(math.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_kernel_distance_is_unbiased_and_knows_its_error(shift: float) -> None:
    found = [
        distances.kernel_distance(cloud(60, 4, seed=2 * k), cloud(60, 4, seed=2 * k + 1, shift=shift))
        for k in range(200)
    ]
    values, errors = np.array(found).T
    large, _ = distances.kernel_distance(cloud(4000, 4, seed=900), cloud(4000, 4, seed=901, shift=shift))
    spread = values.std(ddof=1)
    assert values.mean() == pytest.approx(large, abs=4 * spread / math.sqrt(200) + 0.02)
    assert 0.7 * spread < errors.mean() < 2.5 * spread


# Neighbours


def manifolds_by_brute_force(real: np.ndarray, fake: np.ndarray) -> tuple[float, ...]:
    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))

    def reach(points: np.ndarray, k: int) -> np.ndarray:
        return np.sort(between(points, points), axis=1)[:, k]  # column 0 is the point itself

    pairs = between(real, fake)  # [N, M]
    precision = (pairs <= reach(real, 3)[:, None]).any(0).mean()
    recall = (pairs <= reach(fake, 3)[None]).any(1).mean()
    inside = pairs <= reach(real, 5)[:, None]
    return precision, inside.sum(0).mean() / 5, recall, inside.any(1).mean()


@pytest.mark.parametrize(("n", "m", "shift", "scale"), [(90, 70, 0.0, 1.0), (40, 110, 1.0, 0.5), (200, 50, 0.5, 2.0)])
def test_precision_recall_density_and_coverage_equal_brute_force(n: int, m: int, shift: float, scale: float) -> None:
    real, fake = cloud(n), cloud(m, seed=1, shift=shift, scale=scale)
    expected = manifolds_by_brute_force(real.numpy(), fake.numpy())
    assert distances.compute_prdc(real, fake) == pytest.approx(expected, abs=1e-12)


def test_real_against_real_is_as_good_as_it_gets() -> None:
    x = cloud(300)
    assert distances.compute_prdc(x, x) == (1, pytest.approx(1.2), 1, 1)  # each point is also in its own ball: 6 of 5
    halves = distances.compute_prdc(x[:150], x[150:])
    assert min(halves) > 0.8
    assert distances.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "shift"), [(300, 0.0), (2500, 0.0), (300, 1e6), (2500, -1e4)])
def test_ties_are_in_the_ball_wherever_the_points_are(n: int, shift: float) -> None:
    """Each point's neighbours are as far away as its balls reach, and copies are at no distance, in every block."""
    x = cloud(n, 40, seed=2) + shift
    x[n // 2 : n // 2 + 10] = x[:10]
    again = x[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    expected = manifolds_by_brute_force(x[:300].numpy(), again[:300].numpy())
    assert distances.compute_prdc(x[:300], again[:300]) == pytest.approx(expected, abs=1e-12)
    found = distances.compute_prdc(x, again)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert 1.2 <= found.density < 1.21  # six of five, and seven where the copies of an image are the fifth


def test_a_planted_collapse_keeps_precision_and_loses_recall() -> None:
    real = torch.cat([cloud(100, 2), cloud(100, 2, shift=30)])
    collapsed = cloud(200, 2, seed=5)
    found = distances.compute_prdc(real, collapsed)
    assert found.precision > 0.9
    assert found.recall <= 0.5
    assert found.coverage <= 0.5
    spread_out = distances.compute_prdc(collapsed, real)
    assert spread_out.precision <= 0.5


def test_samples_that_are_all_the_same_have_no_diversity() -> None:
    same = torch.zeros(50, 3)
    found = distances.compute_prdc(cloud(50, 3), same)
    assert (found.recall, distances.mean_distance(same)) == (0, 0)


@pytest.mark.parametrize("samples", [torch.zeros(50, 3), cloud(50, 3)])
def test_no_distance_is_relative_to_data_that_are_all_the_same(samples: Tensor) -> None:
    real, found = (Features(each, torch.zeros(0, dtype=torch.int64)) for each in (torch.zeros(50, 3), samples))
    numbers = formulas.measure(real, found, {"pairwise_distance": catalogue.PAIRWISE_DISTANCE})
    assert math.isnan(numbers["diversity/pairwise_distance"])


def test_the_mean_distance_equals_scipys() -> None:
    x = cloud(130)
    assert distances.mean_distance(x) == pytest.approx(pdist(x.numpy()).mean(), rel=1e-12)


@pytest.mark.parametrize("size", [5, 20, 80])
def test_the_support_size_of_equally_likely_images_is_their_number(size: int) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 64), generator=random, dtype=torch.uint8)
    real = torch.randint(0, 256, (100, 64), generator=random, dtype=torch.uint8)
    draws = torch.randint(0, size, (600,), generator=random)
    noise = torch.randint(0, 2, (600, 64), generator=random, dtype=torch.uint8)
    samples = images[draws].clamp(max=254) + noise
    assert distances.support_size(samples, real)[0] == pytest.approx(size, rel=0.1)


def test_without_a_duplicate_the_support_is_at_least_the_number_of_pairs() -> None:
    random = torch.Generator().manual_seed(0)
    real, samples = torch.randint(0, 256, (2, 40, 64), generator=random, dtype=torch.uint8)
    assert distances.support_size(samples, real)[0] == 40 * 39 / 2


class CopyCounter(TorchDispatchMode):
    """Counts the float64 tensors of a shape that are made, apart from views and results in place."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (self.shape, torch.float64):
            given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
            self.count += found.untyped_storage().data_ptr() not in given
        return found


def test_the_support_size_needs_one_copy_of_each_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, in which 8-bit images are eight times as large."""
    monkeypatch.setattr(distances, "BLOCK", 16)
    real, samples = torch.randint(0, 256, (2, 64, 128), generator=torch.Generator().manual_seed(0)).byte()
    before = real.clone(), samples.clone()
    with CopyCounter((64, 128)) as copies:
        distances.support_size(samples, real)
    assert copies.count == 2
    assert torch.equal(real, before[0])
    assert torch.equal(samples, before[1])


@pytest.mark.parametrize("different", [1, 4, 200])
def test_where_data_repeat_themselves_equal_samples_are_duplicates(different: int) -> None:
    """The closest 1 % of such data are at no distance."""
    random = torch.Generator().manual_seed(0)
    real, images = torch.randint(0, 256, (2, 200, 64), generator=random, dtype=torch.uint8)
    real[:4] = real[0]
    samples = images[:different].repeat(200 // different, 1)
    equal = different * math.comb(200 // different, 2)
    size, ratio = distances.support_size(samples, real)
    assert size == math.comb(200, 2) / max(equal, 1)
    assert ratio == pytest.approx(math.comb(4, 2) / max(equal, 1)), "four equal images are six pairs"


@pytest.mark.parametrize("count", [100, 150, 400])
def test_the_support_ratio_is_that_of_two_birthday_estimates(count: int) -> None:
    random = np.random.default_rng(0)
    samples, real = (random.integers(0, 4, (n, 5), dtype=np.uint8).astype(float) for n in (count, 150))
    nearest = (squareform(pdist(real, "sqeuclidean")) + np.diag(np.full(150, np.inf))).min(1)
    threshold = np.quantile(nearest, 0.01) + 1e-9
    of_samples, own = (np.mean(pdist(each, "sqeuclidean") <= threshold) for each in (samples, real))
    size, ratio = distances.support_size(*(torch.from_numpy(each.astype(np.uint8)) for each in (samples, real)))
    assert size == pytest.approx(1 / of_samples)
    assert ratio == pytest.approx(own / of_samples)


def test_the_nearest_images_equal_brute_force() -> None:
    images, among = torch.randint(0, 256, (5, 64)).byte(), torch.randint(0, 256, (3000, 64)).byte()
    squares = ((images.numpy()[:, None].astype(int) - among.numpy()[None]) ** 2).sum(2)
    found = distances.find_nearest(images, among, 4).numpy()
    assert np.array_equal(np.take_along_axis(squares, found, 1), np.sort(squares, axis=1)[:, :4])


def test_an_exact_copy_is_nearer_than_near_copies() -> None:
    image = torch.randint(128, 255, (3 * 64 * 64,), generator=torch.Generator().manual_seed(0)).byte()
    among = image.repeat(200, 1)
    among[torch.arange(199), torch.arange(199)] += 1
    assert distances.find_nearest(image[None], among, 1).tolist() == [[199]]


# Classes


def test_the_inception_score_equals_scipys_and_has_its_range() -> None:
    probabilities = special.softmax(3 * np.random.default_rng(0).normal(size=(500, 10)), axis=1)
    divergences = [stats.entropy(row, probabilities.mean(0)) for row in probabilities]
    found = classes.inception_score(torch.from_numpy(probabilities))
    assert found == pytest.approx(math.exp(np.mean(divergences)), rel=1e-10)
    assert classes.inception_score(torch.eye(10).repeat(3, 1)) == pytest.approx(10)
    assert classes.inception_score(torch.full((5, 10), 0.1)) == pytest.approx(1)
    assert classes.inception_score(torch.eye(10)[:1].repeat(8, 1)) == pytest.approx(1)


def test_histograms_are_compared_as_scipy_does() -> None:
    q, p = np.array([5, 0, 20, 75]), np.array([10, 20, 30, 40])
    samples, real = torch.from_numpy(q), torch.from_numpy(p)
    assert float(classes.entropy(samples)) == pytest.approx(stats.entropy(q))
    assert classes.kl_divergence(samples, real) == pytest.approx(stats.entropy(q, p))
    assert classes.total_variation(samples, real) == pytest.approx(0.35)
    assert classes.find_missing(samples, real) == [1]
    assert classes.kl_divergence(real, samples) == math.inf
    assert classes.find_missing(torch.zeros(4, dtype=torch.int64), real) == [0, 1, 2, 3]


def test_a_class_is_counted_where_it_is_most_probable() -> None:
    probabilities = torch.tensor([[0.6, 0.4, 0], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    assert classes.count_classes(probabilities).tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", ["ring", "grid25", "mixture1d"])
def test_draws_of_a_density_find_every_mode_and_the_chi_distributions_share(name: str) -> None:
    density = data.load(name)
    assert isinstance(density, data.Density)
    points = density.held_out(20_000)
    counts = classes.count_modes(points, density.mixture)
    share = stats.chi(points.shape[1]).cdf(3)
    assert int(counts.sum()) / len(points) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / len(points)))
    assert counts.double() / counts.sum() == pytest.approx(np.array(density.mixture.weights), abs=0.02)


def test_modes_are_found_by_a_single_point_within_three_deviations() -> None:
    ring = data.load("ring")
    assert isinstance(ring, data.Density)
    means, std = torch.tensor(ring.mixture.means), ring.mixture.stds[0]
    points = means[[0, 0, 3, 5]] + torch.tensor([[0.0, 0], [2.9 * std, 0], [0, 2.9 * std], [0, 3.1 * std]])
    assert classes.count_modes(points, ring.mixture).tolist() == [2, 0, 0, 1, 0, 0, 0, 0]
    extract = point_extractor(ring).extract
    found = formulas.measure(
        extract(ring.held_out(500), no_progress), extract(points, no_progress), {"modes": catalogue.POINTS["modes"]}
    )
    assert found == {"quality/high_quality_share": 0.75, "diversity/modes": 2, "diversity/modes_assigned": 3}


def test_a_point_is_assigned_to_the_mode_with_the_largest_responsibility() -> None:
    """However far it is, and also if another mode is nearer in its standard deviations."""
    mixture = data.mixtures.Mixture((0.7, 0.2, 0.1), ((0.0, 0.0), (3.0, 0.0), (-5.0, 4.0)), (0.5, 2.0, 1.0))
    points = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 4
    densities = [
        weight * stats.multivariate_normal(mean, std**2).pdf(points.numpy())
        for weight, mean, std in zip(*mixture, strict=True)
    ]
    expected = np.bincount(np.argmax(densities, 0), minlength=3)
    assert classes.assign_modes(points, mixture).tolist() == expected.tolist()
    assert classes.assign_modes(points, mixture).sum() == 500


# Laws of all


def features_of(count: int, seed: int) -> Features:
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 8, generator=random).double()
    pixels = torch.randint(0, 4, (count, 3), generator=random, dtype=torch.uint8)
    return Features(vectors, classes.count_classes(vectors), vectors.softmax(1), pixels)


def rearranged(features: Features) -> Features:
    order = torch.randperm(len(features.vectors), generator=torch.Generator().manual_seed(7))
    assert features.probabilities is not None
    assert features.pixels is not None
    return Features(features.vectors[order], features.counts, features.probabilities[order], features.pixels[order])


@pytest.mark.parametrize("name", sorted(formulas.FORMULAS))
def test_neither_order_nor_block_changes_a_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, samples = features_of(150, 0), features_of(130, 1)
    once = formulas.FORMULAS[name](real, samples)
    monkeypatch.setattr(distances, "BLOCK", 37)
    assert formulas.FORMULAS[name](rearranged(real), rearranged(samples)) == pytest.approx(once, rel=1e-10)


def test_every_number_has_a_group_and_belongs_to_one_metric() -> None:
    ring = data.load("ring")
    assert isinstance(ring, data.Density)
    points = point_extractor(ring).extract(ring.held_out(50), no_progress)
    for metrics, features in ((catalogue.IMAGES, features_of(50, 0)), (catalogue.POINTS, points)):
        names = list(formulas.measure(features, features, metrics))
        assert len(names) == sum(len(metric.directions) for metric in metrics.values())
        assert all(name.startswith(("quality/", "diversity/")) for name in names)

"""Each augmentation against independent arithmetic: torch's and NumPy's own maps, the published colour matrices, a
controller written as a loop of Python numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.tolerance import assert_close_to_largest
from torch import Tensor, nn
from torch.nn import functional

from gantrain import data, networks
from gantrain.augmentation import transforms
from gantrain.augmentation.augmentations import ADA, AUGMENTATIONS, MEASURES, Augmentation, DiffAugment, Outputs
from gantrain.data import Batch
from gantrain.distributed import Part
from gantrain.errors import ConfigError
from gantrain.files import CONF
from gantrain.networks.latents import Latents
from gantrain.objectives.critic_objective import CriticObjective
from gantrain.objectives.critics import CRITICS
from gantrain.objectives.objective import Objective
from gantrain.regularizers.gradient_penalties import R1, R2, Dragan, GradientPenalty
from gantrain.regularizers.regularizer import Regularizer
from gantrain.regularizers.regularizers import Consistency, InstanceNoise
from gantrain.reporting.reporter import Reporter
from gantrain.runs.folder import RunFolder
from gantrain.training.losses import Losses
from gantrain.training.outputs import Writer
from gantrain.training.setup import Schedule, TrainingSetup
from gantrain.training.state import State, create_regularizer_states, evaluation_mode

# Every group of changes at its full strength, together and alone.
ALONE = {"blit": 0.0, "geometry": 0.0, "color": 0.0, "cutout": 0.0}
STRONG: dict[str, Augmentation] = {
    "diffaugment": DiffAugment(),
    "ada": ADA(p=1, measure="none", cutout=1),
    **{name: ADA(**{"p": 1, "measure": "none", **ALONE, name: 1}) for name in ALONE},
}
SHAPES = [(1, 8, 8), (3, 32, 32), (4, 64, 64), (3, 9, 14)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=dtype)


def alike(augmentation: Augmentation, x: Tensor, seed: int = 1, **options) -> Tensor:
    """Augment with the same draws for the same seed."""
    torch.manual_seed(seed)
    return augmentation.augment(x, **options)


def share_changed(before: Tensor, after: Tensor) -> float:
    return float((before != after).flatten(1).any(1).double().mean())


# ---------------------------------------------------------------------------------------------------------------------
# All augmentations


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", AUGMENTATIONS.values())
def test_nothing_changes_at_p_0_bit_for_bit(kind: type[Augmentation], shape: tuple[int, ...]) -> None:
    x = images(6, *shape, dtype=torch.float32)
    assert torch.equal(kind(p=0.0).augment(x), x)
    assert share_changed(x, kind(p=0.8).augment(x)) == 1
    state = {"p": torch.zeros(())}
    assert torch.equal(kind(p=0.8).augment(x, state), x), "the p of the state counts"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("augmentation", STRONG.values(), ids=STRONG)
def test_the_gradient_is_the_transposed_map(augmentation: Augmentation, shape: tuple[int, ...]) -> None:
    """For fixed draws T is affine: ⟨T(x + h) − T(x), y⟩ = ⟨h, Tᵀy⟩, and Tᵀy does not depend on x."""
    x, h, y = (images(3, *shape) for _ in range(3))
    gradients = []
    for at in (x, h):
        leaf = at.clone().requires_grad_()
        gradients.append(torch.autograd.grad(alike(augmentation, leaf), leaf, y)[0])
    moved = alike(augmentation, x + h) - alike(augmentation, x)
    torch.testing.assert_close((moved * y).sum(), (h * gradients[0]).sum())
    torch.testing.assert_close(gradients[0], gradients[1])
    assert float(gradients[0].abs().max()) > 0


@pytest.mark.parametrize("augmentation", STRONG.values(), ids=STRONG)
def test_gradients_are_differentiable_as_finite_differences_are(augmentation: Augmentation) -> None:
    """Penalties on D's gradient go through the augmentation twice."""
    x = images(2, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: alike(augmentation, x).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: alike(augmentation, x).square(), x)


@pytest.mark.parametrize("augmentation", STRONG.values(), ids=STRONG)
def test_no_image_and_no_precision_makes_it_inexact_or_not_finite(augmentation: Augmentation) -> None:
    """bfloat16 from a network, autocast around it, black, white and values far outside."""
    black = torch.zeros(64, 3, 8, 8, dtype=torch.bfloat16)
    for x in (black, black + 1, black + 1e4, black - 1e4, torch.rand(64, 3, 8, 8).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            rounded = alike(augmentation, x)
        assert rounded.dtype == torch.float32
        assert bool(rounded.isfinite().all())
        assert torch.equal(rounded, alike(augmentation, x.float()))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("augmentation", STRONG.values(), ids=STRONG)
def test_ranks_draw_for_the_whole_batch_and_take_their_part(augmentation: Augmentation, ranks: int) -> None:
    x = images(12, 3, 8, 8)
    parts = [Part(rank, ranks) for rank in range(ranks)]
    torch.testing.assert_close(
        torch.cat([alike(augmentation, part.take(x), part=part) for part in parts]), alike(augmentation, x)
    )


@pytest.mark.parametrize("augmentation", STRONG.values(), ids=STRONG)
def test_images_and_calls_have_draws_of_their_own(augmentation: Augmentation) -> None:
    x = images(1, 3, 8, 8).expand(40, -1, -1, -1)
    first, second = augmentation.augment(x), augmentation.augment(x)
    assert share_changed(first, second) > 0.8
    assert len(first.flatten(1).unique(dim=0)) > 20 or augmentation.name == "diffaugment"


@pytest.mark.parametrize("p", [0.3, 0.7])
@pytest.mark.parametrize("group", ["blit", "geometry", "color", "cutout"])
def test_changes_happen_with_probability_p_times_their_groups_share(group: str, p: float) -> None:
    """Each of n independent changes is left out with 1 − p·share; of flips and turns some are the identity."""
    x = images(4000, 3, 4, 4)
    augmented = ADA(**{"p": p, "measure": "none", **ALONE, group: 0.5}).augment(x)
    half = p / 2
    neutral = {
        "blit": (1 - half / 2) * (1 - 3 / 4 * half),  # of 4 pixels an eighth rounds to no move
        "geometry": (1 - half) ** 4,  # of two rotations either has the probability: together one factor
        "color": (1 - half) ** 4 * (1 - half / 2),
        "cutout": 1 - half,
    }[group]
    # A half turn and a mirroring may undo a quarter turn for no random image, so that what is changed is seen.
    assert share_changed(x, augmented) == pytest.approx(1 - neutral, abs=0.025)


def test_flips_at_p_1_mirror_half_of_the_images() -> None:
    x = torch.tensor([0.0, 1.0]).expand(4000, 1, 1, 2).double()
    drawn = transforms.Draws(x, Part(), 24)
    inverse = transforms.blit(transforms.Affine.identity(x), drawn, 1.0, (1, 2))
    turned = inverse.across[:, 0] * inverse.down[:, 1] - inverse.across[:, 1] * inverse.down[:, 0]  # −1 if mirrored
    assert float((turned < 0).double().mean()) == pytest.approx(0.5, abs=0.025)


# ---------------------------------------------------------------------------------------------------------------------
# Geometry


def affine(**steps: tuple[float, ...]) -> transforms.Affine:
    inverse = transforms.Affine.identity(torch.zeros(1, dtype=torch.float64))
    for name, numbers in steps.items():
        inverse = getattr(inverse, name)(*(torch.tensor([number], dtype=torch.float64) for number in numbers))
    return inverse


@pytest.mark.parametrize("size", [8, 9])
def test_flips_and_quarter_turns_are_exact(size: int) -> None:
    x = images(1, 3, size, size)
    assert torch.equal(transforms.warp(x, affine(scale=(-1, 1))), x.flip(-1))
    for quarters in range(4):
        cosine, sine = round(math.cos(quarters * math.pi / 2)), round(math.sin(quarters * math.pi / 2))
        assert torch.equal(transforms.warp(x, affine(rotate=(cosine, sine))), x.rot90(quarters, (-2, -1)))


@pytest.mark.parametrize("across", [-11, -3, 0, 2, 40])
def test_moves_by_whole_pixels_are_exact_and_edges_mirrors(across: int) -> None:
    x = images(1, 2, 5, 7)
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 0), (50, 50)), mode="symmetric")
    moved = transforms.warp(x, affine(translate=(across, 0)))
    assert np.array_equal(moved.numpy(), wide[..., 50 + across : 57 + across])


def test_a_warp_is_torchs_bicubic_one() -> None:
    x = images(20, 3, 9, 12)
    inverse = transforms.Affine.identity(x)
    for _ in range(2):
        inverse = transforms.deform(inverse, transforms.Draws(x, Part(), 24), 1.0, (9, 12))
    to_pixels = torch.diag(torch.tensor([6, 4.5, 1], dtype=torch.float64))  # torch's coordinates end at ±1
    matrix = torch.zeros(20, 3, 3, dtype=torch.float64)
    matrix[:, :2], matrix[:, 2, 2] = torch.stack(inverse, -1), 1
    grid = functional.affine_grid((to_pixels.inverse() @ matrix @ to_pixels)[:, :2], x.shape, align_corners=False)
    expected = functional.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(transforms.warp(x, inverse), expected)


def test_a_map_applies_its_last_step_first() -> None:
    """As G⁻¹ of the published code: a product of inverses, the first one on the left."""
    angle = 0.3
    c, s = math.cos(angle), math.sin(angle)
    expected = np.diag([2.0, 0.5, 1]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    expected = expected @ np.array([[1, 0, 4.0], [0, 1, -3], [0, 0, 1]])
    made = torch.stack(affine(scale=(2, 0.5), rotate=(c, s), translate=(4, -3)), -1)[0]
    np.testing.assert_allclose(made.numpy(), expected[:2])


def test_diffaugment_moves_by_up_to_an_eighth_and_fills_with_grey() -> None:
    x = torch.zeros(6000, 1, 32, 32)
    x[:, :, 16, 16] = 1
    moved = DiffAugment(color=0, cutout=0).augment(x)
    _, _, rows, columns = (moved == 1).nonzero().unbind(1)
    for found in (rows, columns):
        counts = (found - 16).bincount(minlength=5) if found.min() >= 16 else torch.bincount(found)[12:]
        assert len(counts) == 9
        assert counts.double().std() / counts.double().mean() < 0.15
    filled = (moved == 0.5).flatten(1).sum(1)
    assert torch.equal(filled, 1024 - (32 - (rows - 16).abs()) * (32 - (columns - 16).abs()))


def test_diffaugment_cuts_squares_of_half_the_side_and_clips_them() -> None:
    x = torch.zeros(6000, 2, 32, 32)
    cut = DiffAugment(color=0, translation=0).augment(x) == 0.5
    assert torch.equal(cut[:, 0], cut[:, 1])
    heights, widths = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].flatten(1).sum(1), heights * widths)
    # The centre lies on one of 33 lines between pixels, edges included: 17 of them cut nothing off.
    for sizes in (heights, widths):
        assert (int(sizes.min()), int(sizes.max())) == (8, 16)
        assert float((sizes == 16).double().mean()) == pytest.approx(17 / 33, abs=0.03)


# ---------------------------------------------------------------------------------------------------------------------
# Colour


def test_colours_are_the_published_matrices() -> None:
    """The 4×4 matrices of stylegan2-ada for pixels in [−1, 1]: brightness, contrast, luma flip, hue, saturation."""
    count, rng = 30, np.random.default_rng(0)
    b, c, s = rng.normal(0, 0.2, count), 2 ** rng.normal(0, 0.5, count), 2 ** rng.normal(0, 1, count)
    flip, theta = rng.integers(0, 2, count), rng.uniform(-np.pi, np.pi, count)
    x = images(count, 3, 4, 4)
    v, eye = np.array([1, 1, 1, 0]) / np.sqrt(3), np.eye(4)
    expected = []
    for n in range(count):
        shift = np.eye(4)
        shift[:3, 3] = b[n]
        cross = np.zeros((4, 4))
        cross[:3, :3] = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
        along = np.outer(v, v)
        spatial = np.diag([1.0, 1, 1, 0])
        hue = along + np.cos(theta[n]) * (spatial - along) + np.sin(theta[n]) * cross + np.diag([0, 0, 0, 1.0])
        matrix = (along + (eye - along) * s[n]) @ hue @ (eye - 2 * along * flip[n]) @ np.diag([c[n]] * 3 + [1]) @ shift
        pixels = 2 * x[n].reshape(3, -1).numpy() - 1
        expected.append(((matrix[:3, :3] @ pixels + matrix[:3, 3:] + 1) / 2).reshape(3, 4, 4))
    brightness, contrast, luma, angle, saturation = (torch.tensor(each).double() for each in (b / 2, c, flip, theta, s))
    made = transforms.scale_about(transforms.brighten(x, brightness), transforms.GREY, contrast)
    made = transforms.rotate_hue(transforms.flip_luma(made, luma), angle)
    made = transforms.scale_about(made, made.mean(1, keepdim=True), saturation)
    np.testing.assert_allclose(made.numpy(), np.stack(expected), atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_luma_flip_undoes_itself_and_leaves_grey(channels: int) -> None:
    x, ones = images(2, channels, 3, 3), torch.ones(2).double()
    once = transforms.flip_luma(x, ones)
    torch.testing.assert_close(once.mean(1), 1 - x.mean(1))
    torch.testing.assert_close(transforms.flip_luma(once, ones), x)


def test_the_strengths_of_colours_are_the_published_ones() -> None:
    """From a dark, grey and a bright pixel alike: brightness and contrast of grey images, in units of [0, 1]."""
    x = torch.full((20_000, 3, 1, 2), 0.5).double()
    x[..., 1] = 0.6
    made = DiffAugment(translation=0, cutout=0).augment(x)
    assert float((made - made[:, :1]).abs().max()) < 1e-12, "a grey image stays grey under saturation"
    brightness, contrast = made.mean((1, 2, 3)) - 0.55, (made[..., 1] - made[..., 0])[:, 0, 0] / 0.1
    assert float(brightness.mean()) == pytest.approx(0, abs=0.005)
    assert (float(brightness.min()), float(brightness.max())) == pytest.approx((-0.25, 0.25), abs=1e-3)
    assert (float(contrast.min()), float(contrast.max())) == pytest.approx((0.5, 1.5), abs=1e-3)

    made = ADA(**{"p": 1, "measure": "none", **ALONE, "color": 1}).augment(x)
    contrast = (made[..., 1] - made[..., 0]).mean(1).flatten() / 0.1
    assert float((contrast < 0).double().mean()) == pytest.approx(0.5, abs=0.02), "half of the lumas are mirrored"
    assert float(contrast.abs().log2().std()) == pytest.approx(0.5, abs=0.02)
    at_grey = (made[..., 0].mean((1, 2)) - 0.5) / contrast
    assert float(at_grey.std()) == pytest.approx(0.1, abs=0.005)


def test_hue_turns_all_the_way_and_saturation_has_the_published_strength() -> None:
    """Of a red pixel: the angle and the length of what is left without its mean."""
    x = torch.zeros(20_000, 3, 1, 1).double()
    x[:, 0] = 1
    along = torch.tensor([2.0, -1, -1]).double() / math.sqrt(6)
    across = torch.tensor([0.0, 1, -1]).double() / math.sqrt(2)

    def measure(made: Tensor) -> tuple[Tensor, Tensor]:
        centred = (made - made.mean(1, keepdim=True)).flatten(1)
        u, v = centred @ along, centred @ across
        return torch.atan2(v, u), (u.square() + v.square()).sqrt() / math.sqrt(2 / 3)

    angle, length = measure(ADA(**{"p": 1, "measure": "none", **ALONE, "color": 1}).augment(x))
    counts = torch.histc(angle, 8, -math.pi, math.pi)
    assert float(counts.std() / counts.mean()) < 0.05, "every hue is as frequent"
    # Contrast scales it too: 2^N(0, 1/2²) times 2^N(0, 1).
    assert float(length.log2().std()) == pytest.approx(math.hypot(0.5, 1), abs=0.02)

    angle, length = measure(DiffAugment(translation=0, cutout=0).augment(x))
    assert float(angle.abs().max()) < 1e-6
    # Contrast in [1/2, 3/2) times saturation in [0, 2), whose means are 1; its square has the mean 13/12 · 4/3.
    assert (float(length.min()), float(length.max())) == pytest.approx((0, 3), abs=0.05)
    assert float(length.mean()) == pytest.approx(1, abs=0.02)
    assert float(length.square().mean()) == pytest.approx(13 / 12 * 4 / 3, abs=0.04)


def draw_maps(change: Callable[..., transforms.Affine], side: int) -> tuple[Tensor, Tensor]:
    """The matrices [B, 2, 2] and offsets [B, 2] that a group of geometric changes draws at p = 1."""
    x = torch.empty(20_000, 1, side, side).double()
    drawn = change(transforms.Affine.identity(x), transforms.Draws(x, Part(), columns=24), 1.0, (side, side))
    return torch.stack([drawn.across, drawn.down], 2), drawn.offset


def test_the_strengths_of_the_geometry_are_the_published_ones() -> None:
    """Scales 2^N(0, 0.2²), stretches the same, any rotation, and moves of N(0, 0.125²) of the side."""
    matrix, offset = draw_maps(transforms.deform, 64)
    scale = matrix.det().log2() / 2
    assert float(scale.mean()) == pytest.approx(0, abs=0.01)
    assert float(scale.std()) == pytest.approx(0.2, abs=0.005)
    stretch = (torch.linalg.svdvals(matrix)[:, 0] / matrix.det().sqrt()).log2()
    assert float(stretch.square().mean().sqrt()) == pytest.approx(0.2, abs=0.005)
    # Both rotations are made with the probability 1 at p = 1: where a circle's points go is uniform.
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    counts = torch.histc(angle, 8, -math.pi, math.pi)
    assert float(counts.std() / counts.mean()) < 0.06
    moved = torch.linalg.solve(matrix, offset)
    assert float(moved.std()) == pytest.approx(0.125 * 64, rel=0.02)


def test_blits_mirror_turn_and_move_by_up_to_an_eighth() -> None:
    matrix, offset = draw_maps(transforms.blit, 64)
    _, counts = matrix.round().flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 8, "the symmetries of a square"
    assert float(counts.double().std() / counts.double().mean()) < 0.05
    assert torch.equal(offset, offset.round())
    assert (float(offset.min()), float(offset.max())) == (-8, 8)
    assert float(offset.std()) == pytest.approx(16 / math.sqrt(12), rel=0.02)


def test_images_of_other_channels_have_no_hue() -> None:
    x = images(3, 4, 2, 2)
    assert torch.equal(transforms.rotate_hue(x, torch.ones(3)), x)


# ---------------------------------------------------------------------------------------------------------------------
# The controller of p


def outputs(real: Tensor, fake: Tensor | None = None, held_out: Tensor | None = None) -> Outputs:
    return Outputs(real, real, torch.zeros_like(real) if fake is None else fake, held_out)


def test_p_reaches_1_after_exactly_its_ramp_if_d_is_always_right() -> None:
    ada, v = ADA(max_p=1.0, ramp_images=500_000), torch.ones(1000)
    state = ada.create_state()
    for _ in range(496):
        ada.adjust(outputs(v), 1000, state)
    assert float(state["p"]) == pytest.approx(0.992, abs=1e-5)
    for _ in range(3):
        ada.adjust(outputs(v), 1000, state)
    assert float(state["p"]) == pytest.approx(0.992, abs=1e-5), "it moves every fourth batch"
    ada.adjust(outputs(v), 1000, state)
    assert float(state["p"]) == pytest.approx(1, abs=1e-5)


def test_p_stays_between_0_and_its_greatest_value() -> None:
    ada, v = ADA(p=0.1, ramp_images=1000), torch.ones(10)
    state = ada.create_state()
    for sign in (-1, 1):
        for _ in range(200):
            ada.adjust(outputs(sign * v), 10, state)
        assert float(state["p"]) == pytest.approx(0 if sign < 0 else 0.8)


@pytest.mark.parametrize("measure", ["signs", "held_out"])
def test_p_follows_the_published_loop(measure: str) -> None:
    """As stylegan2-ada's training loop does with Python numbers; r_v as its paper defines it."""
    ada, generator = ADA(p=0.4, measure=measure, interval=3, ramp_images=5000, target=0.21), torch.Generator()
    state, p, seen, moves = ada.create_state(), 0.4, [], set()
    for number in range(300):
        real, fake, held = (torch.randn(25, generator=generator) + mean for mean in (0.4, -0.2, 0.3))
        statistics = ada.adjust(outputs(real, fake, held[:9]), 25, state)
        assert float(statistics["augment/p"]) == pytest.approx(p, abs=1e-5)
        assert float(statistics["augment/sign"]) == pytest.approx(float(real.sign().mean()))
        seen.append([float(real.sign().mean()), float(real.mean()), float(fake.mean()), float(held[:9].mean())])
        if number % 3 == 2:
            sign, real_mean, fake_mean, held_mean = np.mean(seen, 0)
            spread = real_mean - fake_mean
            r = sign if measure == "signs" else (real_mean - held_mean) / spread if spread > 0 else 0
            if measure == "held_out":
                assert float(statistics["augment/held_out_gap"]) == pytest.approx(r, abs=1e-4)
            moves.add(float(np.sign(r - 0.21)))
            p, seen = min(max(p + np.sign(r - 0.21) * 25 * 3 / 5000, 0), 0.8), []
        assert float(state["p"]) == pytest.approx(p, abs=1e-5)
    assert moves == {-1, 1}


def test_a_fixed_p_has_no_state_and_is_reported() -> None:
    for augmentation in (ADA(p=0.9, measure="none"), DiffAugment()):
        assert augmentation.create_state() == {}
        statistics = augmentation.adjust(outputs(torch.tensor([1.0, 2.0, -1.0, 0.5])), 4)
        assert float(statistics["augment/p"]) == pytest.approx(augmentation.p)
        assert float(statistics["augment/sign"]) == 0.5


def test_the_sign_of_a_critic_without_a_zero_is_that_of_a_difference() -> None:
    v_real, v_fake, signs = torch.tensor([3.0, 3, 0.3, -3]), torch.tensor([4.0, 4, -2, -4]), {}
    ratio = Objective("pearson", "kl", head="ratio")  # v is softplus⁻¹(u), which is 0.5413 at u = 1
    for game in (Objective("gan", "kl"), ratio, *(CriticObjective(name) for name in CRITICS)):
        losses = Losses(game, augmentation=DiffAugment(p=0.0))
        name = game.critic.name if isinstance(game, CriticObjective) else game.head.name
        signs[name] = float(losses.adjust_augmentation(lambda x: x, v_real, v_fake)["augment/sign"])
    with_zero = {"log_ratio": 0.5, "ratio": 0.0, "hinge": 0.5, "least_squares": 0.0}  # whose labels are 0 and 1
    without = ["relativistic", "relativistic_average", "wasserstein", "donsker_varadhan"]
    assert signs == dict.fromkeys(without, 0.0) | with_zero


# ---------------------------------------------------------------------------------------------------------------------
# In the losses


class Halved(Augmentation):
    """Half of every image, by which the order shows."""

    name = "halved"

    def transform(self, x: Tensor, part: Part, p: Tensor | float) -> Tensor:
        return x / 2


class Recorder:
    """A discriminator that sums its pixels and keeps what it is shown."""

    is_samplewise = True

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach())
        return x.flatten(1).sum(1)


def test_what_both_players_see_is_augmented_and_then_disturbed() -> None:
    x, losses = torch.ones(50, 1, 16, 16), Losses(Objective("gan", "kl"), (InstanceNoise(),), augmentation=Halved())
    for discriminator in (of_d := Recorder(), of_g := Recorder()):
        if discriminator is of_d:
            losses.discriminator_loss(discriminator, Batch(x), x)
        else:
            losses.generator_loss(discriminator, x)
    assert [len(shown) for shown in of_d.shown + of_g.shown] == [100, 50]
    for shown in of_d.shown + of_g.shown:
        assert float(shown.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(shown.std()) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("augmentation", STRONG.values(), ids=STRONG)
def test_a_penalty_sees_the_augmentations_jacobian(augmentation: Augmentation) -> None:
    """R1 of D(x) = ⟨a, T(x)⟩ is ½‖Tᵀa‖²: the columns of T are the images of unit vectors."""
    x, a = images(3, 1, 4, 4), images(1, 4, 4)
    losses = Losses(Objective("gan", "kl"), (R1(weight=1.0),), augmentation=augmentation)
    torch.manual_seed(1)
    penalty = losses.penalty(lambda x: (x * a).flatten(1).sum(1), Batch(x), x)
    expected = torch.zeros(3, dtype=torch.float64)
    for pixel in torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4):
        column = alike(augmentation, x + pixel) - alike(augmentation, x)
        expected += (column * a).flatten(1).sum(1).square()
    torch.testing.assert_close(penalty[0], expected.mean() / 2)


@pytest.mark.parametrize(
    ("regularizer", "is_augmented"),
    [
        *((R1(), True), (R2(), True), (GradientPenalty(), True), (Dragan(), True)),
        *((R1(sigma=0.1), False), (R2(sigma=0.1), False), (Consistency(fake_weight=1.0), False)),
    ],
    ids=["r1", "r2", "gradient_penalty", "dragan", "r1 with sigma", "r2 with sigma", "consistency"],
)
def test_gradients_pass_through_the_augmentation_and_compared_outputs_do_not(
    regularizer: Regularizer, is_augmented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(DiffAugment, "transform", lambda self, x, part, p: seen.append(x) or x)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    losses = Losses(Objective("gan", "kl"), [regularizer], augmentation=DiffAugment())
    losses.penalty(discriminator, Batch(torch.rand(2, 1, 8, 8)), torch.rand(2, 1, 8, 8))
    assert bool(seen) == is_augmented


def test_held_out_images_are_augmented_and_drawn_for_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "gather", lambda part, rows: rows)  # there is one process
    ada = ADA(p=0.8, measure="held_out", interval=2)
    pool = images(30, 1, 8, 8, dtype=torch.float32)
    states = create_regularizer_states([ada])
    held, v = {}, torch.ones(20)
    for part in (Part(), Part(0, 2), Part(1, 2)):
        losses = Losses(Objective("gan", "kl"), (), states, ada, pool, part)
        torch.manual_seed(1)
        recorder = Recorder()
        losses.adjust_augmentation(recorder, v, v)
        held[part] = recorder.shown[0]
    assert len(held[Part()]) == 10
    torch.testing.assert_close(torch.cat([held[Part(0, 2)], held[Part(1, 2)]]), held[Part()])
    assert not any((image == pool).flatten(1).all(1).any() for image in held[Part()])


def test_held_out_estimates_see_what_there_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = yaml.safe_load((CONF / "architecture" / "mlp_digits.yaml").read_text())
    generator, discriminator = networks.build(table, (1, 8, 8), 16)
    optimizers = (torch.optim.SGD(network.parameters()) for network in (generator, discriminator))
    state, dataset = State(generator, discriminator, *optimizers), data.load("digits")
    schedule = Schedule(images=1000, held_out_images=50)
    setup = TrainingSetup(Objective("gan", "kl"), dataset, Latents(16), schedule, augmentation=Halved())
    with Reporter(tmp_path, 1000) as reporter:
        v_real, v_fake = Writer(state, setup, RunFolder(tmp_path), reporter, {}).compute_held_out_outputs()
    with evaluation_mode(discriminator), torch.no_grad():
        assert_close_to_largest(v_real, discriminator(dataset.held_out(50)))
    assert len(v_fake) == 50


def test_what_an_augmentation_cannot_do_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="points of 2 numbers"):
        DiffAugment().refuse_unfit((2,), has_held_out=True)
    held_out = ADA(measure="held_out")
    with pytest.raises(ConfigError, match="none are held out"):
        held_out.refuse_unfit((1, 8, 8), has_held_out=False)
    for is_samplewise in (False, None):
        with pytest.raises(ConfigError, match="known to depend on it alone"):
            held_out.refuse_unfit((1, 8, 8), has_held_out=True, is_samplewise=is_samplewise)
    with pytest.raises(ConfigError, match=r"augment.p=0.9 begins above augment.max_p=0.8"):
        ADA(p=0.9)
    for augmentation in (ADA(), ADA(p=0.9, measure="none"), DiffAugment()):
        augmentation.refuse_unfit((1, 8, 8), has_held_out=False, is_samplewise=None)


def test_every_measure_has_a_target_that_a_setting_replaces() -> None:
    for name, measure in MEASURES.items():
        if measure is None:
            continue
        moved = []
        for target in (None, 1.0, -1.0):
            ada = ADA(p=0.4, measure=name, target=target, interval=1)
            state = ada.create_state()
            just_above = torch.full((1000,), measure.target + 0.05)
            real = torch.where(torch.arange(1000) < 1000 * (1 + just_above) / 2, 1.0, -1.0)  # of this mean, and sign
            ada.adjust(outputs(real, real - 1, real - just_above), 100, state)
            moved.append(float(state["p"]) - 0.4)
        assert moved[0] > 0 > moved[1]
        assert moved[2] > 0

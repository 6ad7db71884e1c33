"""Each state of a run is told when it has lasted, once, with its remedy; a healthy run is told nothing."""

import math

import pytest

from gantrain.objectives import divergences
from gantrain.reporting.health import Health

HEALTHY = {
    "bound/gan": 0.2,
    "discriminator/accuracy": 0.7,
    "grad_norm/generator": 1.0,
    "grad_norm/discriminator": 2.0,
    "ratio/calibration_q": 0.9,
    "ratio/effective_sample_size": 0.5,
}
ILL = {
    "the discriminator has won": ({"bound/gan": 1.38}, 3),
    "the generator's gradient has vanished": ({"grad_norm/generator": 1e-5}, 3),
    "the generator has collapsed": ({"diversity/pixel_distance": 0.02}, 1),
    "the ratio is uncalibrated": ({"ratio/calibration_q": 12.0}, 5),
    "few samples carry the ratio's weight": ({"ratio/effective_sample_size": 0.01}, 5),
}


def gan_health():
    return Health(divergences.get("gan"), supremum=2 * math.log(2))


def test_a_healthy_run_is_told_nothing():
    health = gan_health()
    assert [sentence for _ in range(100) for sentence in health.check(HEALTHY)] == []


def test_an_untrained_generator_has_not_collapsed():
    health = gan_health()
    grown = [HEALTHY | {"diversity/pixel_distance": distance} for distance in (0.009, 0.023, 0.028, 0.04, 0.5)]
    assert [sentence for scalars in grown for sentence in health.check(scalars)] == []
    assert health.check(HEALTHY | {"diversity/pixel_distance": 0.02})
    assert gan_health().check(HEALTHY | {"diversity/pixel_distance": 1e-6})


def test_missing_and_non_finite_figures_are_no_alarm_of_their_own():
    assert gan_health().check({}) == []


@pytest.mark.parametrize("name", ILL)
def test_a_state_is_told_when_it_has_lasted_and_again_after_it_was_left(name):
    change, reports = ILL[name]
    health = gan_health()
    assert health.check(HEALTHY) == []
    told = [health.check(HEALTHY | change) for _ in range(3 * reports)]
    assert [number for number, sentences in enumerate(told, start=1) if sentences] == [reports]
    (sentence,) = told[reports - 1]
    assert sentence.startswith(name)
    assert health.check(HEALTHY) == []
    assert [bool(health.check(HEALTHY | change)) for _ in range(reports)] == [False] * (reports - 1) + [True]


@pytest.mark.parametrize(
    "change",
    [
        {"discriminator/accuracy": 0.995},
        {"training_bound/gan": 1.38},
        {"ratio/calibration_q": 0.05},
        {"ratio/calibration_q": 0.0},
    ],
    ids=str,
)
def test_other_ways_into_a_state(change):
    health = gan_health()
    assert any(health.check(HEALTHY | change) for _ in range(5))


def test_a_single_bad_report_is_forgiven():
    health = gan_health()
    for _ in range(20):
        assert health.check(HEALTHY | {"ratio/calibration_q": 100.0, "bound/gan": 1.38}) == []
        assert health.check(HEALTHY) == []


def test_a_critic_that_bounds_nothing_is_not_judged_by_bounds() -> None:
    health = Health(None, supremum=math.inf)
    told = [s for _ in range(9) for s in health.check(HEALTHY | {"bound/gan": 9.0, "discriminator/pair_accuracy": 1.0})]
    assert told == []


def test_no_supremum_no_victory_by_bound():
    health = Health(divergences.get("kl"), supremum=math.inf)
    assert [s for _ in range(9) for s in health.check(HEALTHY | {"bound/kl": 1e9})] == []

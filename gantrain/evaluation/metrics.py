"""Which numbers there are, under which names, and from what each is made.

A name begins with `quality/` or `diversity/`, the group in which it is reported; a distance between features ends in
the name of the network that they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from gantrain.evaluation import classes, distances, prdc


class Seen(NamedTuple):
    """N images, or points of a density, as metrics see them.

    For points, `features` are the points themselves and `counts` the points of high quality at each mode. A network
    that does not know the classes of the data counts none of them.
    """

    features: Tensor  # float [N, F]
    counts: Tensor  # int64 [K]
    probabilities: Tensor | None = None  # float [N, K], of images
    pixels: Tensor | None = None  # uint8 [N, P], of images
    network: str = "classifier"  # that the features come from


def fid(real: Seen, samples: Seen) -> dict[str, float]:
    """The Fréchet distance."""
    return {f"quality/fid_{samples.network}": distances.frechet_distance(real.features, samples.features)}


def kid(real: Seen, samples: Seen) -> dict[str, float]:
    """The kernel distance and its standard error."""
    value, error = distances.kernel_distance(real.features, samples.features)
    name = f"quality/kid_{samples.network}"
    return {name: value, f"{name}_error": error}


def inception_score(real: Seen, samples: Seen) -> dict[str, float]:
    """The score of samples alone; only with the Inception network it has its plain name."""
    assert samples.probabilities is not None
    name = "quality/inception_score" + ("" if samples.network == "inception" else f"_{samples.network}")
    return {name: classes.inception_score(samples.probabilities)}


def manifolds(real: Seen, samples: Seen) -> dict[str, float]:
    """Precision, density, recall, coverage."""
    found = prdc.manifolds(real.features, samples.features)
    quality = {"quality/precision": found.precision, "quality/density": found.density}
    return quality | {"diversity/recall": found.recall, "diversity/coverage": found.coverage}


def histogram(real: Seen, samples: Seen) -> dict[str, float]:
    """How the classes, or modes, of samples differ from the data's."""
    return {
        "diversity/class_entropy": classes.entropy(samples.counts),
        "diversity/class_tv": classes.total_variation(samples.counts, real.counts),
        "diversity/class_kl": classes.kl(samples.counts, real.counts),
        "diversity/missing_classes": float(len(classes.missing(samples.counts, real.counts))),
    }


def pairwise_distance(real: Seen, samples: Seen) -> dict[str, float]:
    """The mean distance of two samples, in units of that of two real ones."""
    apart = prdc.mean_distance(samples.features) / prdc.mean_distance(real.features)
    return {"diversity/pairwise_distance": apart}


def support_size(real: Seen, samples: Seen) -> dict[str, float]:
    """How many different samples there are."""
    assert real.pixels is not None
    assert samples.pixels is not None
    return {"diversity/support_size": prdc.support_size(samples.pixels, real.pixels)}


def modes(real: Seen, samples: Seen) -> dict[str, float]:
    """The modes found, and the share of samples near any."""
    near = float(samples.counts.sum()) / len(samples.features)
    return {"quality/high_quality_share": near, "diversity/modes": float((samples.counts > 0).sum())}


def stacked_modes(real: Seen, samples: Seen) -> dict[str, float]:
    """The classes found, which are equally frequent modes, and how far samples are from finding all equally often."""
    equal = classes.kl(samples.counts, samples.counts.new_ones(samples.counts.shape))
    return {"diversity/modes": float((samples.counts > 0).sum()), "diversity/modes_kl": equal}


Metric = Callable[[Seen, Seen], dict[str, float]]  # (real, samples) → numbers by name

POINTS: dict[str, Metric] = {
    "modes": modes,
    "prdc": manifolds,
    "classes": histogram,
    "pairwise_distance": pairwise_distance,
}
IMAGES: dict[str, Metric] = {
    "fid": fid,
    "kid": kid,
    "inception_score": inception_score,
    "prdc": manifolds,
    "classes": histogram,
    "pairwise_distance": pairwise_distance,
    "support_size": support_size,
}
# Of 1,000 classes a set of real images may lack some: they are compared with what is known of them.
STACKS: dict[str, Metric] = {**{name: IMAGES[name] for name in IMAGES if name != "classes"}, "modes": stacked_modes}


def measure(real: Seen, samples: Seen, metrics: Iterable[Metric]) -> dict[str, float]:
    """The numbers of all `metrics`, by name."""
    return {name: value for metric in metrics for name, value in metric(real, samples).items()}

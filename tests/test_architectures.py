"""Every table in conf/architecture, the appendix against its published numbers, and error messages."""

import copy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gantrain.errors import ConfigError
from gantrain.networks import build, describe
from gantrain.networks.fast_layers import Conv2d, ConvTranspose2d, Maxout
from gantrain.networks.layers import ACTIVATIONS, NORMALISATIONS, OPERATIONS, Affine
from gantrain.networks.tables import ACTIVATIONS as ACTIVATION_NAMES
from gantrain.networks.tables import NORMS, OPS

FOLDER = Path(__file__).parent.parent / "conf" / "architecture"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
MEANT_FOR = {  # name → (latent size, data shapes)
    "affine": (None, [(1,), (2,)]),
    "appendix": (64, [(3, 32, 32)]),
    "conv8": (64, [(1, 8, 8), (3, 8, 8)]),
    "dcgan28": (100, [(1, 28, 28)]),
    "dcgan32": (100, [(3, 32, 32)]),
    "dcgan48": (100, [(3, 48, 48)]),
    "dcgan64": (100, [(3, 64, 64)]),
    "dirac": (1, [(1,)]),
    "mlp": (2, [(1,), (2,), (5,)]),
    "mlp_digits": (64, [(1, 8, 8)]),
    "resnet32": (128, [(1, 32, 32)]),
}
CASES = [(name, shape, MEANT_FOR[name][0] or shape[0]) for name in NAMES for shape in MEANT_FOR[name][1]]


def table(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def pair(generator, discriminator, **settings):
    return {"name": "tried", "generator": generator, "discriminator": discriminator, **settings}


LINEAR_1 = {"op": "linear", "features": 1}
LINEAR_DATA = {"op": "linear", "features": "data"}


@pytest.mark.parametrize(("name", "shape", "latent_size"), CASES)
def test_every_table_maps_latents_to_data_and_data_to_one_number_and_trains_every_parameter(name, shape, latent_size):
    torch.manual_seed(0)
    generator, discriminator = build(table(name), shape, latent_size)
    samples = generator(torch.randn(3, latent_size))
    values = discriminator(samples)
    assert samples.shape == (3, *shape)
    assert values.shape == (3,)
    assert values.dtype == torch.float32
    if len(shape) == 3:
        assert 0 <= samples.min() <= samples.max() <= 1
    (values**2).sum().backward()
    for parameter in [*generator.parameters(), *discriminator.parameters()]:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize(("name", "shape", "latent_size"), CASES)
def test_describe_agrees_with_the_networks_that_build_makes(name, shape, latent_size):
    networks = build(table(name), shape, latent_size)
    for network, layers in zip(networks, describe(table(name), shape, latent_size), strict=True):
        assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in network.parameters())
        x = torch.zeros(1, *((latent_size,) if network is networks[0] else shape))
        for layer, child in zip(layers, list(network.eval()), strict=False):  # a change of shape may follow the rows
            x = child(x)
            assert x.shape == (1, *layer.output)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_begins_with_a_comment_and_has_a_discriminator_that_sees_each_sample_alone(name):
    """A log-ratio is a function of one sample, and one pass may then hold real and fake samples together."""
    assert (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")
    assert table(name)["name"] == name
    assert {row.get("norm", "none") for row in table(name)["discriminator"]} == {"none"}


def test_the_appendix_has_the_published_shapes_parameters_and_multiply_adds():
    generator, discriminator = describe(table("appendix"), (3, 32, 32), 64)
    assert [layer.output[1] for layer in generator] == [4, 10, 13, 28, 32, 32, 32]
    assert [layer.output[0] for layer in generator] == [256, 128, 64, 32, 32, 32, 3]
    assert [layer.output[1] for layer in discriminator] == [28, 13, 10, 4, 1, 1, 1, 1]
    assert [layer.output[0] for layer in discriminator] == [32, 64, 128, 256, 512, 1024, 1024, 1]
    assert sum(layer.parameters for layer in generator) == 978_083
    assert sum(layer.parameters for layer in discriminator) == 8_728_193
    assert round(sum(layer.multiply_adds for layer in generator) / 1e6, 2) == 48.51
    assert round(sum(layer.multiply_adds for layer in discriminator) / 1e6, 2) == 65.17


def test_maps_counted_before_maxout_make_a_smaller_discriminator():
    """ALI's code: 32 maps are 16 after maxout, so the discriminator has 2,185,025 parameters instead of 8,728,193."""
    _, discriminator = describe({**table("appendix"), "maxout_counts": "before"}, (3, 32, 32), 64)
    assert [layer.output[0] for layer in discriminator] == [16, 32, 64, 128, 256, 512, 512, 1]
    kernels, maps = [5, 4, 4, 4, 4, 1, 1, 1], [32, 64, 128, 256, 512, 1024, 1024, 1]
    inputs = [3, 16, 32, 64, 128, 256, 512, 512]
    by_hand = sum(k * k * i * m + m for k, i, m in zip(kernels, inputs, maps, strict=True))
    assert sum(layer.parameters for layer in discriminator) == by_hand == 2_185_025


def test_weights_are_gaussian_and_biases_zero():
    torch.manual_seed(0)
    for network in build(table("appendix"), (3, 32, 32), 64):
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                tolerance = 4 * 0.01 / module.weight.numel() ** 0.5
                assert abs(module.weight.mean().item()) < tolerance
                assert module.weight.std().item() == pytest.approx(0.01, abs=tolerance + 1e-9)
                assert module.bias is None or not module.bias.any()


def test_a_layer_has_a_bias_exactly_where_no_batch_norm_follows():
    for network in build(table("dcgan32"), (3, 32, 32), 100):
        for row in network.modules():
            parts = dict(row.named_children())
            for part in (part for key, part in parts.items() if key in ("conv", "conv_transpose", "linear")):
                assert (part.bias is None) == isinstance(parts.get("norm"), _BatchNorm)


def test_dropout_falls_on_the_input_of_a_layer():
    """With input 1, weight 1 and rate 0.5 the output is 0 or 2; dropped outputs would lose the bias of 10 too."""
    rows = [{"op": "linear", "features": "data", "dropout": 0.5}]
    generator, _ = build(pair(rows, [LINEAR_1]), (2000,), 2000)
    linear = next(module for module in generator.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2000))
        linear.bias.fill_(10)
    torch.manual_seed(0)
    samples = generator(torch.ones(1, 2000))[0]
    assert set(samples.tolist()) == {10.0, 12.0}
    assert abs((samples == 10).float().mean().item() - 0.5) < 4 * 0.5 / 2000**0.5
    assert torch.equal(generator.eval()(torch.ones(1, 2000)), torch.full((1, 2000), 11.0))


@pytest.mark.parametrize("pieces", [2, 3])
@pytest.mark.parametrize("tail", [(), (2, 1)])
def test_maxout_keeps_the_largest_of_channels_that_lie_c_apart(pieces, tail):
    x = torch.randn(2, 3 * pieces, *tail, dtype=torch.float64, requires_grad=True)
    y = Maxout(pieces)(x)
    for channel in range(3):
        largest = x[:, channel::3].amax(1)
        assert torch.equal(y[:, channel], largest)
    assert torch.autograd.gradcheck(Maxout(pieces), x)
    assert torch.autograd.gradgradcheck(Maxout(pieces), x)


def test_the_matrix_products_give_what_the_convolutions_give():
    torch.manual_seed(0)
    for bias in (True, False):
        for kernel, padding in ((4, 0), (4, 1), (1, 0), (3, 0)):
            x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
            ours = Conv2d(5, 7, kernel, 1, padding, bias=bias).double()
            torch.testing.assert_close(ours(x), nn.functional.conv2d(x, ours.weight, ours.bias, 1, padding))
            one = torch.randn(2, 5, 1, 1, dtype=torch.float64)
            up = ConvTranspose2d(5, 7, kernel, 2, 0, bias=bias).double()
            torch.testing.assert_close(up(one), nn.functional.conv_transpose2d(one, up.weight, up.bias, 2, 0))


def test_the_affine_generator_is_mean_plus_scale_times_latent():
    generator, _ = build(table("affine"), (2,), 2)
    (affine,) = (module for module in generator.modules() if isinstance(module, Affine))
    z = torch.randn(5, 2)
    assert torch.equal(generator(z), z)
    with torch.no_grad():
        affine.mean.copy_(torch.tensor([1.0, -2.0]))
        affine.scale.copy_(torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(generator(z), torch.stack([1 + 0.5 * z[:, 0], -2 + 3 * z[:, 1]], dim=1))


def test_the_last_layer_stays_in_float32_under_autocast():
    generator, discriminator = build(table("conv8"), (1, 8, 8), 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        samples = generator(torch.randn(2, 16))
        assert samples.dtype == torch.float32
        assert discriminator(samples).dtype == torch.float32


def test_every_word_of_the_vocabulary_has_its_part():
    assert set(OPERATIONS) | {"residual"} == set(OPS)
    assert set(NORMALISATIONS) == set(NORMS)
    assert set(ACTIVATIONS) == set(ACTIVATION_NAMES)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("op", sorted(OPS))
def test_every_operation_takes_every_norm_and_activation_or_is_rejected_with_the_reason(op, norm, activation):
    row = {"op": op, "norm": norm, "activation": activation}
    row |= {"kernel": 3} if "kernel" in OPS[op] else {}
    row |= {"features": "data" if op == "affine" else 4} if "features" in OPS[op] else {}
    first = {"op": "conv", "kernel": 1, "features": 4} if op != "affine" else LINEAR_DATA
    tables = pair([LINEAR_DATA], [first, row, LINEAR_1])
    if norm == "spectral" and op not in ("conv", "conv_transpose", "linear", "residual"):
        with pytest.raises(
            ConfigError, match=rf"discriminator row 2: (norm: spectral .* {op} has no matrix|affine needs)"
        ):
            build(tables, (2, 6, 6), 3)
        return
    if activation == "maxout" and op in ("residual", "affine", "minibatch_stddev"):
        with pytest.raises(ConfigError, match=r"discriminator row 2: .*(maxout|latents|dimension)"):
            build(tables, (2, 6, 6), 3)
        return
    _, discriminator = build(tables, (2, 6, 6), 3)
    assert discriminator(torch.rand(2, 2, 6, 6)).isfinite().all()


REFUSED = [  # (rows of the generator, what the message must hold)
    ([{"op": "convolution"}], ["generator row 1", "op=convolution", "did you mean conv"]),
    ([LINEAR_DATA, {**LINEAR_1, "activation": "leaky"}], ["generator row 2", "did you mean leaky_relu"]),
    ([{"op": "conv", "kernal": 3, "features": 1}], ["row 1", "kernal", "did you mean kernel"]),
    ([{"op": "linear", "features": 3, "kernel": 3}], ["row 1", "kernel"]),
    ([{"op": "conv", "features": 3}], ["row 1", "conv needs kernel"]),
    ([{"op": "linear", "features": 0}], ["row 1", "features=0", "at least 1"]),
    ([{**LINEAR_DATA, "dropout": float("nan")}], ["row 1", "dropout=nan"]),
    (["linear"], ["row 1", "'linear'"]),
    ([], ["architecture.generator", "at least one row"]),
    ([{"op": "conv", "kernel": 3, "features": 1}], ["row 1", "conv does not fit", "shape 8"]),
    ([{"op": "linear", "features": 9}], ["9", "1×4×4"]),
    ([{"op": "conv_transpose", "kernel": 5, "features": "data"}], ["1×5×5", "1×4×4"]),
    ([{"op": "affine", "features": "data"}], ["latents", "latent.size=16"]),
    ([{"op": "linear", "features": 5, "activation": "maxout"}], ["row 1", "maxout_counts=before", "5"]),
    ([{"op": "linear", "features": 3}, {"op": "identity", "activation": "maxout"}], ["row 2", "maxout_pieces=2", "3"]),
]


@pytest.mark.parametrize(("rows", "words"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_tables_that_cannot_work_are_rejected_with_what_was_found(rows, words):
    with pytest.raises(ConfigError) as refusal:
        build(pair(rows, [LINEAR_1], maxout_counts="before"), (1, 4, 4), 8)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"maxout_count": "after"}, r"architecture has no key maxout_count; did you mean maxout_counts\?"),
        ({"maxout_counts": "afterwards"}, "did you mean after"),
        ({"init_std": 0}, "init_std=0"),
    ],
)
def test_settings_that_cannot_work_are_rejected(setting, words):
    with pytest.raises(ConfigError, match=words):
        build(pair([LINEAR_DATA], [LINEAR_1], **setting), (2,), 2)


def test_a_table_for_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ConfigError, match=r"3×32×32.*3×48×48"):
        build(table("appendix"), (3, 48, 48), 64)
    tables = pair([LINEAR_DATA], [{"op": "conv", "kernel": 16, "stride": 16, "features": 1}])
    with pytest.raises(ConfigError, match=r"one number a sample.*3×32×32.*ends in 1×2×2"):
        build(tables, (3, 32, 32), 64)


@pytest.fixture
def own_networks(monkeypatch):
    """A module of the user's own, importable by name."""
    module = types.ModuleType("own_networks")
    monkeypatch.setitem(sys.modules, "own_networks", module)
    module.good = lambda data_shape, latent_size: (
        nn.Linear(latent_size, data_shape[0]),
        nn.Sequential(nn.Linear(data_shape[0], 1), nn.Flatten(0)),
    )
    module.wide = lambda data_shape, latent_size: (nn.Linear(latent_size, 9), nn.Linear(data_shape[0], 1))
    module.column = lambda data_shape, latent_size: (
        module.good(data_shape, latent_size)[0],
        nn.Linear(data_shape[0], 1),
    )
    module.two = lambda data_shape, latent_size: (
        module.good(data_shape, latent_size)[0],
        nn.Linear(data_shape[0], 2),
    )
    module.single = lambda data_shape, latent_size: nn.Linear(latent_size, data_shape[0])
    return module


def test_networks_of_the_users_own_are_called_with_the_shapes(own_networks):
    architecture = {**table("mlp"), "object": "own_networks:good"}
    generator, discriminator = build(architecture, (3,), 5)
    assert discriminator(generator(torch.randn(2, 5))).shape == (2,)
    assert generator.training
    (line,), _ = describe(architecture, (3,), 5)
    assert (line.op, line.output, line.parameters, line.multiply_adds) == ("Linear", (3,), 18, 15)


def test_one_number_a_sample_may_be_a_column(own_networks):
    torch.manual_seed(0)
    _, column = build({"name": "own", "object": "own_networks:column"}, (3,), 5)
    points = torch.randn(4, 3)
    assert torch.equal(column(points), nn.functional.linear(points, column.weight, column.bias)[:, 0])
    assert list(column.state_dict()) == ["weight", "bias"]
    assert torch.equal(copy.deepcopy(column)(points[:1]), column(points[:1]))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("own_networks", "package:function"),
        ("no_such_package:good", "no module no_such_package, neither in the current folder"),
        ("own_networks:missing", "AttributeError.*missing"),
        ("own_networks:single", "own_networks:single"),
        ("own_networks:wide", "ends in shape 9, but .* 3;"),
        ("own_networks:two", r"return \[B\], one number a sample"),
    ],
)
def test_networks_of_the_users_own_that_cannot_work_are_rejected(own_networks, path, words):
    with pytest.raises(ConfigError, match=words):
        build({"name": "own", "object": path}, (3,), 5)


def test_torch_is_not_imported_by_the_package_nor_for_unknown_words():
    program = """
import sys
from gantrain.networks import build
from gantrain.errors import ConfigError
try:
    build({"name": "x", "generator": [{"op": "convolution"}], "discriminator": []}, (3, 32, 32), 64)
except ConfigError:
    sys.exit("torch" in sys.modules)
sys.exit("not refused")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=FOLDER.parent.parent)

"""Rows of D that compare the samples of a batch, against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.states import MLP, assert_same, experiment, game, new_state

from gantrain import networks
from gantrain.data import Batch
from gantrain.networks.layers import MinibatchDiscrimination, MinibatchStddev
from gantrain.training.acceleration import compile_losses
from gantrain.training.iteration import Iteration

STDDEV = {"op": "minibatch_stddev", "group": 4}
DISCRIMINATION = {"op": "minibatch_discrimination", "kernels": 3, "dimensions": 2}
CONVOLUTION = {"op": "conv", "kernel": 3, "features": 4, "activation": "leaky_relu"}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def build(*rows: dict) -> torch.nn.Module:
    last = {"op": "linear", "features": 1}
    tables = {"generator": [{"op": "linear", "features": "data"}], "discriminator": [*rows, last]}
    return networks.build(tables, (1, 8, 8), 4)[1]


def test_the_deviation_is_the_mean_over_a_strided_group() -> None:
    x = torch.randn(12, 3, 5, 5)
    found = MinibatchStddev(4)(x)
    assert torch.equal(found[:, :3], x)
    for n in range(12):
        members = x[n % 3 :: 3].numpy()  # n goes with n + N/G, …
        expected = np.sqrt(members.var(0) + 1e-8).mean()
        np.testing.assert_allclose(found[n, 3].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 3), (8, 2, 4, 4)])
def test_equal_samples_have_the_smallest_deviation_and_finite_gradients(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, requires_grad=True)
    found = MinibatchStddev(4)(x)
    torch.testing.assert_close(found[:, -1].detach(), torch.full_like(found[:, -1], 1e-4), rtol=1e-6, atol=0)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_an_order_inside_a_group_changes_nothing() -> None:
    network, x = build(CONVOLUTION, STDDEV), torch.rand(8, 1, 8, 8)
    order = torch.tensor([2, 1, 4, 7, 6, 3, 0, 5])  # n, n + 2, n + 4 and n + 6 are a group
    torch.testing.assert_close(network(x[order]), network(x)[order])
    mixed = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])
    assert not torch.allclose(network(x[mixed]), network(x)[mixed], atol=1e-7)


def test_a_batch_that_the_group_does_not_divide_has_smaller_groups() -> None:
    layer = MinibatchStddev(4)
    x = torch.randn(6, 2)
    torch.testing.assert_close(layer(x), MinibatchStddev(3)(x))
    assert layer(x[:1])[0, 2] == pytest.approx(1e-4)


def test_minibatch_discrimination_is_the_mean_closeness_to_the_others() -> None:
    layer, x = MinibatchDiscrimination(6, 3, 2), torch.randn(5, 6)
    found = layer(x).detach().numpy()
    projected = (x.numpy() @ layer.projection.weight.detach().numpy().T).reshape(5, 3, 2)
    for i in range(5):
        for k in range(3):
            others = [np.exp(-np.abs(projected[i, k] - projected[j, k]).sum()) for j in range(5) if j != i]
            assert found[i, 6 + k] == pytest.approx(np.mean(others), abs=1e-6)
    np.testing.assert_array_equal(found[:, :6], x.numpy())
    same = layer(torch.ones(4, 6).requires_grad_())
    np.testing.assert_allclose(same[:, 6:].detach().numpy(), 1, rtol=1e-6)
    same.sum().backward()
    assert layer.projection.weight.grad is not None
    assert layer.projection.weight.grad.isfinite().all()
    assert layer(x[:1]).isfinite().all()


@pytest.mark.parametrize("row", [STDDEV, DISCRIMINATION])
def test_a_discriminator_with_such_a_row_judges_no_single_sample(row: dict) -> None:
    network = build(CONVOLUTION, row)
    assert not network.is_samplewise
    x = torch.rand(8, 1, 8, 8)
    assert not torch.allclose(network(x)[:4], network(x[:4]), atol=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x).dtype == torch.float32


@pytest.mark.parametrize("row", [STDDEV, DISCRIMINATION], ids=["stddev", "discrimination"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_outputs_and_gradients_are_finite_at_every_size(row: dict, size: float, dtype: torch.dtype) -> None:
    network = build(row)
    x = (size * torch.randn(8, 1, 8, 8)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        v = network(x)
    v.sum().backward()
    assert v.isfinite().all()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in (x, *network.parameters()))


@pytest.mark.parametrize("row", [STDDEV, DISCRIMINATION], ids=["stddev", "discrimination"])
def test_a_run_with_such_a_row_is_the_same_watched_by_the_device_and_compiled(row: dict) -> None:
    table = {**MLP, "discriminator": [MLP["discriminator"][0], row, MLP["discriminator"][1]]}
    by_host, by_device = new_state(table), new_state(table)
    ours, theirs = Iteration(by_host, experiment()), Iteration(by_device, experiment(), guard_on_device=True)
    for _ in range(4):
        ours.play()
        theirs.play()
    assert theirs.synchronize()
    assert_same(by_host, by_device)

    plain, discriminator = game(), by_host.discriminator.eval()
    compiled = compile_losses(plain, backend="aot_eager")
    x, y = torch.rand(2, 16, 1, 8, 8)
    for name, arguments in (("discriminator_loss", (Batch(x), y)), ("generator_loss", (y, Batch(x)))):
        eager, traced = (getattr(each, name)(discriminator, *arguments)[0] for each in (plain, compiled))
        torch.testing.assert_close(traced, eager, rtol=1e-6, atol=1e-6)

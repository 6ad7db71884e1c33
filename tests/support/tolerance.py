"""Comparison of results that different kernels, batch sizes or numbers of threads compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def assert_close_to_largest(actual: Any, expected: Any, rtol: float = 1e-5, name: str = "") -> None:
    """Assert that two arrays or tensors differ nowhere by more than `rtol` times the largest magnitude in `expected`.

    Sums are rounded in another order by each kind of processor, batch size and number of threads. The error is
    relative to the terms, not to their sum, so an element near zero has no tolerance of its own. Elements that are not
    finite must be equal.
    """
    ours, theirs = (torch.as_tensor(each).detach().cpu().double().numpy() for each in (actual, expected))
    assert ours.shape == theirs.shape, name
    largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * largest, err_msg=name)

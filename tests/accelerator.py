"""A stand-in for an accelerator, on machines without one: `device=cuda` in a process that called `stand_in`.

Its tensors are kept and computed on the CPU, so that a run on it must come to the CPU's weights, but they say that they
lie elsewhere. As with CUDA, an operation refuses tensors of both places, unless one is a scalar in elementwise
arithmetic, and what brings values to the host, or to the device, waits for all that was queued before. Each such wait
is printed, with the line of gantrain that caused it.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_iter, tree_map

import gantrain

NAME = "elsewhere"
OURS = str(Path(gantrain.__file__).parent)
WAIT = "the host waits for the device in"
# What reads values on the host: here, or in a kernel that has to know how large its result will be.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "repeat_interleave"}
MIXING = {"copy_", "_to_copy", "_foreach_copy_", "_copy_from"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Elsewhere(torch.Tensor):
    """A tensor on the stand-in; `here` is the CPU's tensor that it stands for."""

    here: torch.Tensor
    has_float64 = True
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Elsewhere:
        if here.dtype == torch.float64 and not cls.has_float64:
            raise TypeError("like MPS, the stand-in has no float64")
        layout = {"strides": here.stride(), "dtype": here.dtype, "device": torch.device(NAME, 0)}
        tensor = torch.Tensor._make_wrapper_subclass(cls, here.shape, **layout)
        tensor.here = here
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, given: Any = (), keys: Any = None) -> Any:
        return computed(operation, *given, **keys or {})

    def tolist(self) -> list[Any]:
        waits()
        return self.here.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        waits()
        return self.here.__reduce_ex__(protocol)


class Generator(torch.Generator):
    """The CPU's, on any device."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")


def stand_in() -> None:
    """From now on `device=cuda` is the stand-in, and the device watches over updates as it does on CUDA."""
    from gantrain import precision
    from gantrain.commands import evaluate, sample
    from gantrain.evaluation import classifier_training
    from gantrain.launch import build
    from gantrain.training import loop
    from gantrain.training.acceleration import can_guard_on_device
    from gantrain.training.iteration import Iteration

    backend_registration._setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: []
    LIBRARIES.append(everything := torch.library.Library("_", "IMPL"))
    everything.fallback(computed, "PrivateUse1")
    LIBRARIES.append(aten := torch.library.Library("aten", "IMPL"))
    aten.impl("empty.memory_format", partial(made, torch.empty), "PrivateUse1")
    aten.impl("empty_strided", partial(made, torch.empty_strided), "PrivateUse1")
    aten.impl("_copy_from", copied, "PrivateUse1")

    torch.Generator = Generator
    for module in (classifier_training, precision):
        module.has_fast_bf16 = lambda _: False  # on either device: it has no autocast
    for module in (build, evaluate, sample):
        module.choose_device = lambda name: torch.device(NAME if name == "cuda" else "cpu")
    loop.Iteration = lambda state, *given: Iteration(state, *given, guard_on_device=can_guard_on_device(state))


def stand_in_without_float64() -> None:
    """The stand-in as MPS, where slopes are computed in float32."""
    from gantrain.objectives import slopes

    stand_in()
    Elsewhere.has_float64 = False
    slopes.widen = lambda r: r


LIBRARIES: list[torch.library.Library] = []  # what they register ends with them


def made(make: Any, *sizes: Any, dtype: Any = None, **_: Any) -> Elsewhere:
    return Elsewhere(make(*sizes, dtype=dtype or torch.get_default_dtype()))


def copied(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What `copy_` does from one place to another."""
    waits()
    here(target).copy_(here(source))
    return target


def computed(operation: Any, *given: Any, **keys: Any) -> Any:
    """What an operation comes to, of tensors that all lie on the stand-in, or for it."""
    name = operation.__name__.partition(".")[0]
    tensors = [value for value in tree_iter((given, keys)) if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    refuse_mixed(operation, name, tensors, bool(ours))
    to = keys.pop("device", None)
    stays = bool(ours) if to is None else torch.device(to).type == NAME
    masked = name in INDEXING and any(tensor.dtype == torch.bool for tensor in tensors[1:])
    moves = (name in MIXING and len(ours) < len(tensors)) or bool(ours) != stays
    if (ours and (name in WAITING or masked)) or moves:
        waits()
    result = operation(*tree_map(here, given), **tree_map(here, keys), **({} if to is None else {"device": "cpu"}))
    known = {id(tensor.here): tensor for tensor in ours}  # in place, it is the tensor that was given

    def elsewhere(value: Any) -> Any:
        if not (isinstance(value, torch.Tensor) and stays):
            return value
        return known[id(value)] if id(value) in known else Elsewhere(value)

    return tree_map(elsewhere, result)


def refuse_mixed(operation: Any, name: str, tensors: list[torch.Tensor], any_ours: bool) -> None:
    """Raise RuntimeError for tensors of both places."""
    scalars = torch.Tag.pointwise in operation.tags
    for tensor in tensors:
        fits = isinstance(tensor, Elsewhere) or name in MIXING | INDEXING or (scalars and tensor.dim() == 0)
        if any_ours and not fits:
            raise RuntimeError(f"{operation} of tensors of both places; {tuple(tensor.shape)} is on the CPU")


def here(value: Any) -> Any:
    return value.here if isinstance(value, Elsewhere) else value


def waits() -> None:
    """Print where in gantrain the host waits."""
    frame = sys._getframe()
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    print(WAIT, f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}", flush=True)

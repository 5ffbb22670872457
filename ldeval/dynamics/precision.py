"""Float64 throughout a transformers model, for the checks that need its digits.

Models in double precision still compute their norms, their attention weights and their
rotary angles in float32, because their code says so; an error of second order is lost
in that noise. Inside :func:`whole_precision` such a conversion gives float64 instead.
Apart because it reaches into how a model computes, which nothing else here does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Widened(TorchFunctionMode):
    """Every float32 that is asked for becomes float64."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if options.get("dtype") is torch.float32:
            options["dtype"] = torch.float64
        if func is torch.Tensor.to:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **options)


@contextlib.contextmanager
def whole_precision(dtype: torch.dtype) -> Iterator[None]:
    """Compute in float64 without exception where ``dtype`` is float64; else nothing."""
    if dtype is not torch.float64:
        yield
        return
    with _Widened():
        yield

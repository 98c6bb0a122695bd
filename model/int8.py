"""Weights as int8 with one scale for each output row: half the bytes of float16, and fast products."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.precision import sums_int8_in_full


@dataclass(frozen=True)
class Int8Weight:
    """A weight of shape (rows, …) as `values * scales`.

    Attributes:
        values: int8, of the weight's shape, in [-127, 127].
        scales: bfloat16 (rows,).
    """

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "Int8Weight":
        """Round a float32 weight; one that came from `dense` comes back exactly."""
        rows = weight.detach().float().flatten(1)
        scales = (rows.abs().amax(1) / 127).clamp(min=1e-12).to(torch.bfloat16)
        values = (rows / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return cls(values.view(weight.shape), scales)

    @property
    def dense(self) -> Tensor:
        """The weight in float32."""
        scales = self.scales.float()
        return self.values.float() * scales.view(-1, *[1] * (self.values.ndim - 1))


class Int8Linear(nn.Module):
    """A linear layer on a CPU whose product is in int8.

    Its input is rounded to 8 bits, or 7 where the CPU's sums would overflow, between its least and its
    greatest value each time ("dynamic quantization"): for the few rows of a search, which wait for the
    weights to come from memory, a third of bfloat16's time and less than that of float32's. An encoder
    gains less and loses more by it (docs/experiments.md).

    Args:
        weight: (out_features, in_features).
        bias: float32 (out_features,).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        rounded = Int8Weight.of(weight)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        values = torch._make_per_channel_quantized_tensor(
            rounded.values, rounded.scales.double(), zeros, axis=0
        )
        with _engine():
            self.packed = torch.ops.quantized.linear_prepack(
                values, None if bias is None else bias.detach().float()
            )

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) of any type → float32 (…, out_features)."""
        product: Tensor = torch.ops.quantized.linear_dynamic.default(
            x.float(), self.packed, reduce_range=not sums_int8_in_full()
        )
        return product


def use_int8(module: nn.Module) -> None:
    """Replace the linear layers within a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child.weight, child.bias))
        else:
            use_int8(child)


@contextmanager
def _engine() -> Iterator[None]:
    """FBGEMM packs the weights; what is packed brings its engine along."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before

"""Weights as int8 with one scale for each output row: half the bytes of float16."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Up to so many rows the product waits for the weights to arrive from memory, and fewer bytes win;
# beyond, the bfloat16 product of matrix units does (on 2 cores with AMX int8 was 3 to 4 times as fast
# for 1 row, and no faster for 4).
FEW_ROWS = 2


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

    def product(self, x: Tensor) -> Tensor:
        """`x` (…, columns) bfloat16 times the weight's transpose: (…, rows), on a CPU."""
        flat = x.reshape(-1, x.shape[-1])
        product = torch._weight_int8pack_mm(flat, self.values, self.scales)
        return product.view(*x.shape[:-1], -1)


def is_few(x: Tensor) -> bool:
    """Whether `x` (…, columns) has so few rows that int8 weights pay."""
    return x.numel() <= FEW_ROWS * x.shape[-1]

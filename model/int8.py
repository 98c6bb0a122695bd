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
    def of(cls, weight: Tensor, *, in_pairs: bool = False) -> "Int8Weight":
        """Round a float32 weight; one that came from `dense` comes back exactly, but for pairs.

        Args:
            weight: (rows, …).
            in_pairs: for CPUs whose sums of two products have 16 bits (`sums_int8_in_full`): two values
                that follow each other in a row, (0, 1), (2, 3), …, of which there must be an even
                number, have a sum of 128 at most, which an input of 8 bits cannot make overflow
                (255 · 128 < 2^15). It costs half a bit or less, where half the range would cost one.
        """
        rows = weight.detach().float().flatten(1)
        greatest = rows.abs()
        if in_pairs:
            greatest = greatest.unflatten(1, (-1, 2)).sum(-1)
        scales = (greatest.amax(1) / 127).clamp(min=1e-12).to(torch.bfloat16)
        values = (rows / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return cls(values.view(weight.shape), scales)

    @property
    def dense(self) -> Tensor:
        """The weight in float32."""
        scales = self.scales.float()
        return self.values.float() * scales.view(-1, *[1] * (self.values.ndim - 1))


class Int8Linear(nn.Module):
    """A linear layer on a CPU whose product is in int8.

    Its input is rounded to 8 bits each time ("dynamic quantization"), between the least and the greatest
    value of all rows. For the few rows of a search, which wait for the weights to come from memory, it
    takes a third of bfloat16's time.

    Args:
        weight: (out_features, in_features).
        bias: float32 (out_features,).
        by_row: scale each row to the same greatest value first. An encoder needs it: it has a few frames
            with values twenty times as large as the others have, which would be left with two or three
            bits (docs/experiments.md). A row then hardly depends on the others.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, by_row: bool = False) -> None:
        super().__init__()
        rounded = Int8Weight.of(weight, in_pairs=not sums_int8_in_full())
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        values = torch._make_per_channel_quantized_tensor(
            rounded.values, rounded.scales.double(), zeros, axis=0
        )
        if bias is not None:
            bias = bias.detach().float()
        self.by_row = by_row
        self.register_buffer("bias", bias if by_row else None, persistent=False)
        with _engine():
            self.packed = torch.ops.quantized.linear_prepack(values, None if by_row else bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) of any type → float32 (…, out_features)."""
        x = x.float()
        if not self.by_row:
            return self._product(x)
        # Not `aminmax`, nor a norm: along rows they take twenty times as long.
        greatest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
        greatest.clamp_(min=1e-12)
        product = self._product(x / greatest)
        if self.bias is None:
            return product.mul_(greatest)
        return torch.addcmul(self.bias, product, greatest, out=product)

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic.default(x, self.packed)
        return product


def use_int8(module: nn.Module, *, by_row: bool = False) -> None:
    """Replace the linear layers within a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child.weight, child.bias, by_row=by_row))
        else:
            use_int8(child, by_row=by_row)


@contextmanager
def _engine() -> Iterator[None]:
    """FBGEMM packs the weights; what is packed brings its engine along."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before

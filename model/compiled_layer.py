"""A layer of the decoder in int8, compiled by TorchScript.

A search's passes are over few tokens, and each layer is made of some hundred small operations; with
Python between them half of a pass was spent on calling them (docs/experiments.md). `torch.compile`
would need a C++ compiler where the recognizer runs.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.int8 import Int8Linear
from model.precision import has_amx_tiles


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, added: Tensor | None, in_products: bool
) -> Tensor:
    """(batch, length, width) of queries, keys and values, (batch, heads, length, head width)."""
    queries = queries.to(keys.dtype)
    if in_products:
        scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2))
        if added is not None:
            scores += added
        mixed = torch.matmul(scores.softmax(-1), values)
    elif queries.shape[2] == 2 and keys.dtype == torch.bfloat16:
        mixed = _attend_one_by_one(queries, keys, values, added)
    else:
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=added)
    return mixed.transpose(1, 2).flatten(-2)


def _attend_one_by_one(
    queries: Tensor, keys: Tensor, values: Tensor, added: Tensor | None
) -> Tensor:
    """`scaled_dot_product_attention` in two thirds of its time for two queries in bfloat16.

    A search of many clips feeds two tokens of each. torch's kernel takes twice as long for two
    queries as for one, though both need the same keys, which are most of what is read. So each query
    becomes a head of its own, and these share the keys (docs/experiments.md).
    """
    rows, heads, length, width = queries.shape
    frames = keys.shape[2]
    if added is not None:
        added = added.expand(rows, heads, -1, frames).reshape(rows * heads, -1, 1, frames)
    mixed = F.scaled_dot_product_attention(
        queries.reshape(rows * heads, length, 1, width),
        keys.reshape(rows * heads, 1, frames, width).expand(-1, length, -1, -1),
        values.reshape(rows * heads, 1, frames, width).expand(-1, length, -1, -1),
        attn_mask=added,
    )
    return mixed.view(rows, heads, length, width)


def _layer(
    x: Tensor,
    norms: list[tuple[Tensor, Tensor]],
    products: list[torch.classes.quantized.LinearPackedParamsBase],  # type: ignore[name-defined]
    text: tuple[Tensor, Tensor],
    places: Tensor,
    start: int | None,
    end: int,
    text_added: Tensor | None,
    audio: tuple[Tensor, Tensor],
    audio_added: Tensor | None,
    in_products: bool,
) -> Tensor:
    rows, length, width = x.shape
    all_keys, all_values = text
    heads, head_width = all_keys.shape[1], all_keys.shape[3]

    normed = F.layer_norm(x, [width], norms[0][0], norms[0][1])
    projected = torch.ops.quantized.linear_dynamic(normed, products[0])
    queries, keys, values = projected.view(rows, length, 3 * heads, head_width).chunk(3, 2)
    if start is not None:
        all_keys[:, :, start:end] = keys.transpose(1, 2)
        all_values[:, :, start:end] = values.transpose(1, 2)
    else:
        row = torch.arange(rows)[:, None]
        all_keys[row, :, places] = keys
        all_values[row, :, places] = values
    mixed = _attend(
        queries.transpose(1, 2),
        all_keys[:, :, :end],
        all_values[:, :, :end],
        text_added,
        in_products,
    )
    x = x + torch.ops.quantized.linear_dynamic(mixed, products[1])

    # The rows of a clip attend to one copy of its audio, as if they were one text.
    normed = F.layer_norm(x, [width], norms[1][0], norms[1][1]).view(len(audio[0]), -1, width)
    queries = torch.ops.quantized.linear_dynamic(normed, products[2])
    queries = queries.view(normed.shape[0], -1, heads, head_width).transpose(1, 2)
    mixed = _attend(queries, audio[0], audio[1], audio_added, in_products)
    x = x + torch.ops.quantized.linear_dynamic(mixed.float(), products[3]).view(x.shape)

    normed = F.layer_norm(x, [width], norms[2][0], norms[2][1])
    inner = F.gelu(torch.ops.quantized.linear_dynamic(normed, products[4]))
    return x + torch.ops.quantized.linear_dynamic(inner, products[5])


@cache
def _compiled() -> Any:
    with warnings.catch_warnings():  # in favour of `torch.compile`
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(_layer)


class CompiledLayer:
    """A decoder's layer; the arithmetic is that of `model.network.DecoderLayer`.

    Args:
        norms: before attention to the text, attention to the audio, and feed-forward.
        products: queries, keys and values of the text in one, the text's output, queries to the audio,
            their output, feed-forward's first and second.
    """

    def __init__(self, norms: list[nn.LayerNorm], products: list[Int8Linear]) -> None:
        assert not any(product.by_row for product in products)
        self._norms = [(norm.weight, norm.bias) for norm in norms]
        self._products = [product.packed for product in products]
        self._in_products = not has_amx_tiles()
        self._run = _compiled()

    def __call__(
        self,
        x: Tensor,
        text: tuple[Tensor, Tensor],
        places: Tensor,
        start: int | None,
        end: int,
        text_added: Tensor | None,
        audio: tuple[Tensor, Tensor],
        audio_added: Tensor | None,
    ) -> Tensor:
        """Compute the layer for the next tokens of each row.

        Args:
            x: (rows, length, width).
            text: the tokens' keys and values, (rows, heads, room, head width), which get those of x.
            places: int64 (rows, length), where these stand.
            start: where all rows begin, if it is one place.
            end: of the longest row.
            text_added: to the scores of each row's tokens, -inf for what must not be seen.
            audio: keys and values of each clip's audio.
            audio_added: to the scores of its frames.
        """
        y: Tensor = self._run(
            x,
            self._norms,
            self._products,
            text,
            places,
            start,
            end,
            text_added,
            audio,
            audio_added,
            self._in_products,
        )
        return y

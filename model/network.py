"""The hybrid CTC/attention network: Whisper's encoder and decoder, and a CTC head on the encoder.

Parameters carry the names of Hugging Face's Whisper files, so that any `openai/whisper-*` file can be
the start (see `model.whisper`). Unlike Whisper, the encoder runs at the audio's own length: frames
beyond a clip's end are masked wherever they could reach a valid one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.compiled_layer import CompiledLayer
from model.int8 import Int8Linear, use_int8
from model.precision import has_amx_tiles

# All of Whisper's sizes use heads of 64 dimensions.
HEAD_WIDTH = 64
# Tokens for which the decoder's memory gets room at once.
ROOM_STEP = 32
# An encoder's attention has so many queries and more, a search's decoder fewer.
MANY_QUERIES = 64
# Queries and keys are brought to a multiple of so many before torch compiles kernels for them.
KERNEL_STEP = 32


@dataclass(frozen=True)
class ModelDimensions:
    """Sizes of a network; they travel inside its checkpoint.

    Attributes:
        n_mels: mel bands of the features.
        audio_positions: longest input, in encoder frames (1500 = 30 s).
        audio_width, audio_layers: of the encoder.
        text_positions: longest text, in tokens, prompt included.
        text_width, text_layers: of the decoder; its width equals the encoder's.
        vocabulary: tokens of the decoder.
        ctc_layers: Transformer layers of the CTC head, on top of the encoder.
        ctc_labels: labels of the CTC head, the blank (0) included.
    """

    n_mels: int
    audio_positions: int
    audio_width: int
    audio_layers: int
    text_positions: int
    text_width: int
    text_layers: int
    vocabulary: int
    ctc_layers: int
    ctc_labels: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            minimum = 0 if name in ("ctc_layers",) else 1
            if not isinstance(value, int) or value < minimum:
                raise ValueError(f"{name} is {value!r}; it must be an integer >= {minimum}")
        if self.audio_width != self.text_width or self.audio_width % HEAD_WIDTH:
            raise ValueError(
                f"audio_width is {self.audio_width} and text_width {self.text_width}; "
                f"they must be equal and a multiple of {HEAD_WIDTH}"
            )


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal positions (length, width) with Whisper's spacing (max timescale 10,000)."""
    rates = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def frame_mask(frames: Tensor, length: int) -> Tensor | None:
    """True for valid frames, bool (batch, length); None if all are, which lets attention run faster."""
    if int(frames.min()) >= length:
        return None
    return torch.arange(length, device=frames.device)[None, :] < frames[:, None]


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to scores in place of a mask that is True where they count."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


def _attend_in_products(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool
) -> Tensor:
    """What `scaled_dot_product_attention` computes, for a CPU without AMX, where that is slow.

    On an AMD EPYC (Zen 4) it takes two to ten times as long for the few queries of the decoder, and
    nearly twice for many in bfloat16. With AMX it takes half of the time for many, and no more for few.
    """
    by_key = mask is None or mask.shape[2] == 1
    if len(queries) > 1 and queries.shape[2] >= MANY_QUERIES and by_key:
        # One clip after the other: its scores stay in the CPU's cache.
        counts = [keys.shape[2]] * len(keys) if mask is None else mask.sum(-1).flatten().tolist()
        return torch.cat(
            [
                _attend_in_products(q[None], k[None, :, :n], v[None, :, :n], None, is_causal)
                for q, k, v, n in zip(queries, keys, values, counts, strict=True)
            ]
        )
    scores = queries * HEAD_WIDTH**-0.5 @ keys.transpose(-1, -2)
    if is_causal:
        scores += scores.new_full(scores.shape[-2:], -torch.inf).triu(1)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return scores.softmax(-1) @ values


def _attend_in_steps(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool
) -> Tensor:
    """`scaled_dot_product_attention` on queries and keys brought to a multiple of KERNEL_STEP.

    On a CPU with AMX torch compiles kernels for each remainder of the lengths, and each thread keeps
    its own for ever: 1.4 MB for a remainder, 700 MB in all. The multiples have few, and faster ones.
    """
    lengths = queries.shape[2], keys.shape[2]
    more_queries, more_keys = (-length % KERNEL_STEP for length in lengths)
    if mask is None and more_keys and not is_causal:  # what is causal sees no later keys
        mask = torch.ones(1, 1, 1, lengths[1], dtype=torch.bool)
    if mask is not None:
        mask = F.pad(mask, (0, more_keys, 0, more_queries if mask.shape[2] > 1 else 0))
    if more_queries:  # padding by nothing copies
        queries = F.pad(queries, (0, 0, 0, more_queries))
    if more_keys:
        keys, values = (F.pad(each, (0, 0, 0, more_keys)) for each in (keys, values))
    mixed = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=is_causal
    )
    return mixed[:, :, : lengths[0]]


class Attention(nn.Module):
    """Multi-head attention as in Whisper: no bias on the key projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.int8_qkv: Int8Linear | None = None

    def fuse_qkv_in_int8(self, *, by_row: bool = False) -> None:
        """Project to queries, keys and values in one product of int8 from here on."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        no_bias = torch.zeros(self.q_proj.out_features)
        self.int8_qkv = Int8Linear(
            torch.cat([part.weight for part in parts]),
            torch.cat([no_bias if part.bias is None else part.bias for part in parts]),
            by_row=by_row,
        )
        del self.q_proj, self.k_proj, self.v_proj

    def split(self, x: Tensor) -> Tensor:
        """(batch, length, width) → (batch, heads, length, HEAD_WIDTH)."""
        return x.unflatten(-1, (self.heads, HEAD_WIDTH)).transpose(1, 2)

    def queries(self, x: Tensor) -> Tensor:
        """Queries of `x` (batch, length, width): (batch, heads, length, HEAD_WIDTH)."""
        return self.split(self.q_proj(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `x`, as `queries`, but contiguous."""
        return self.split(self.k_proj(x)).contiguous(), self.split(self.v_proj(x)).contiguous()

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Queries, and keys and values, of `x`, for attention within it."""
        if self.int8_qkv is None:
            return self.queries(x), self.keys_values(x)
        queries, keys, values = map(self.split, self.int8_qkv(x).chunk(3, -1))
        return queries, (keys, values)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        causal: bool = False,
    ) -> Tensor:
        """Attend from the queries; `mask` is True where a key may be seen.

        Returns:
            (batch, length, width).
        """
        queries = queries.to(keys.dtype)
        few = queries.shape[2] < MANY_QUERIES
        bfloat16 = keys.dtype == torch.bfloat16
        attend: Callable[..., Tensor] = F.scaled_dot_product_attention
        if keys.device.type == "cpu" and not torch.is_grad_enabled():
            if not has_amx_tiles() and (few or bfloat16):
                attend = _attend_in_products
            elif bfloat16 and not few:
                attend = _attend_in_steps
        mixed = attend(queries, keys, values, mask, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def use_int8(self) -> None:
        """Compute the matrix products in int8 from here on, see `model.int8`; for a CPU."""
        self.self_attn.fuse_qkv_in_int8(by_row=True)
        use_int8(self, by_row=True)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` (batch, frames, width); `mask` (batch, 1, 1, frames), True for valid keys."""
        queries, own = self.self_attn.queries_keys_values(self.self_attn_layer_norm(x))
        x = x + self.self_attn(queries, *own, mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention, attention to the encoder, feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def use_int8(self) -> None:
        """Compute the matrix products in int8 from here on, see `model.int8`; for a CPU."""
        audio = self.encoder_attn.k_proj, self.encoder_attn.v_proj
        self.self_attn.fuse_qkv_in_int8()
        use_int8(self)
        if has_amx_tiles():  # many rows, whose products tiles make in half of the time
            self.encoder_attn.k_proj, self.encoder_attn.v_proj = (p.bfloat16() for p in audio)

    def compiled(self) -> CompiledLayer:
        """The layer for passes over few tokens, once its products are in int8."""
        norms = self.self_attn_layer_norm, self.encoder_attn_layer_norm, self.final_layer_norm
        text, audio = self.self_attn, self.encoder_attn
        products = (
            *(text.int8_qkv, text.out_proj),
            *(audio.q_proj, audio.out_proj),
            *(self.fc1, self.fc2),
        )
        return CompiledLayer(list(norms), [cast(Int8Linear, product) for product in products])


class Encoder(nn.Module):
    """Log-mel features to one vector every 20 ms."""

    embed_positions: Tensor

    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        width = dims.audio_width
        self.conv1 = nn.Conv1d(dims.n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        positions = sinusoids(dims.audio_positions, width)
        self.register_buffer("embed_positions", positions, persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(width) for _ in range(dims.audio_layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Encode a batch.

        Args:
            features: (batch, n_mels, 2 * length), see `model.features.LogMel`.
            frames: int64 (batch,), valid encoder frames of each clip, at most `length`.

        Returns:
            (batch, length, width); what lies beyond a clip's frames is meaningless.

        Raises:
            ValueError: the input is longer than the network's positions.
        """
        length = features.shape[-1] // 2
        if length > len(self.embed_positions):
            raise ValueError(
                f"the input has {length} encoder frames; "
                f"this network takes at most {len(self.embed_positions)}"
            )
        mask = frame_mask(frames, length)
        x = features.to(self.conv1.weight.dtype)
        if mask is None:
            x = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        else:
            # Each convolution looks one frame past the clip's end, where it must find the zeros that
            # it finds when the clip is alone.
            halves = mask.repeat_interleave(2, dim=1)[:, None, :]
            x = F.gelu(self.conv1(x * halves)) * halves
            x = F.gelu(self.conv2(x))
        # Sums keep the convolutions' order in memory, in which each layer's norms would copy first.
        x = x.transpose(1, 2).contiguous() + self.embed_positions[:length]
        key_mask = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, key_mask)
        return self.layer_norm(x)


@dataclass
class DecoderCache:
    """What the decoder remembers of a batch while it writes.

    Each row has its own length. What stands beyond it, such as tokens that were taken back by making
    it shorter, is not seen and gets written over.

    Attributes:
        audio: for each layer, keys and values of the encoder's output, once for each clip.
        mask: bool (clips, 1, 1, frames), True for valid frames; None if all are.
        text: for each layer, keys and values of the tokens so far, (rows, heads, room, HEAD_WIDTH);
            none if nothing shall be remembered. A clip has one row, or as many as every other clip.
        lengths: tokens so far of each row.
    """

    audio: list[tuple[Tensor, Tensor]]
    mask: Tensor | None
    text: list[tuple[Tensor, Tensor]]
    lengths: list[int]

    def make_room(self, length: int) -> None:
        """Have room for rows of so many tokens, and for some more, so that it is seldom made."""
        lacking = length - self.text[0][0].shape[2] if self.text else 0
        if lacking > 0:  # with zeros, since what is not seen still is multiplied by 0
            more = (0, 0, 0, lacking + ROOM_STEP)
            self.text = [(F.pad(k, more), F.pad(v, more)) for k, v in self.text]

    def append(
        self, layer: int, more: tuple[Tensor, Tensor], places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Remember the next tokens of each row; there must be room for them.

        Args:
            layer: of the decoder.
            more: its keys and values of the tokens, (rows, heads, length, HEAD_WIDTH).
            places: int64 (rows, length), where they stand.

        Returns:
            Keys and values of the rows from the first token to the last of the longest.
        """
        all_keys, all_values = self.text[layer]
        keys, values = more
        length = keys.shape[2]
        end = max(self.lengths) + length
        if min(self.lengths) == max(self.lengths):  # as of a clip alone; faster
            all_keys[:, :, end - length : end] = keys
            all_values[:, :, end - length : end] = values
        else:
            row = torch.arange(len(keys), device=keys.device)[:, None]
            all_keys[row, :, places] = keys.transpose(1, 2)
            all_values[row, :, places] = values.transpose(1, 2)
        return all_keys[:, :, :end], all_values[:, :, :end]

    def select(self, rows: list[int], clips: list[int] | None = None) -> None:
        """Keep only the given rows, in their order; one may stand there several times.

        Args:
            rows: of the texts.
            clips: whose audio stays; None: a clip for each row. The texts of a clip follow each other,
                as many of each clip as of any other.
        """
        chosen = torch.tensor(rows, device=self.audio[0][0].device)
        self.text = [(k[chosen], v[chosen]) for k, v in self.text]
        self.lengths = [self.lengths[row] for row in rows]
        if clips == list(range(len(self.audio[0][0]))):
            return
        if clips is not None:
            chosen = torch.tensor(clips, device=chosen.device)
        self.audio = [(k[chosen], v[chosen]) for k, v in self.audio]
        self.mask = None if self.mask is None else self.mask[chosen]


class Decoder(nn.Module):
    """Writes the text, token by token, from the encoder's output."""

    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        width = dims.text_width
        self.embed_tokens = nn.Embedding(dims.vocabulary, width)
        self.embed_positions = nn.Embedding(dims.text_positions, width)
        self.layers = nn.ModuleList(DecoderLayer(width) for _ in range(dims.text_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.int8_output: Int8Linear | None = None
        self._compiled: list[CompiledLayer] = []

    def _layers(self) -> Iterator[DecoderLayer]:
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer

    def use_int8(self) -> None:
        """Compute the matrix products in int8 from here on, see `model.int8`; for a CPU.

        All else is in float32: a pass over few tokens is made of small steps, and each conversion is one
        more. Only what is made of the encoder's output stays in its type, since it is much to read.
        """
        for layer in self._layers():
            layer.use_int8()
        self._compiled = [layer.compiled() for layer in self._layers()]
        self.int8_output = Int8Linear(self.embed_tokens.weight)
        self.embed_tokens.bfloat16()  # rows are looked up in it, no more

    def start(self, encoded: Tensor, frames: Tensor, remember: bool = False) -> DecoderCache:
        """Begin a batch.

        Args:
            encoded: (batch, length, width), the encoder's output.
            frames: int64 (batch,), valid frames of each clip.
            remember: keep the tokens that are fed, so that more can follow; without it there is one
                pass over a whole text, as in training.
        """
        mask = frame_mask(frames, encoded.shape[1])
        batch, _, width = encoded.shape
        int8 = self.int8_output is not None
        whole = encoded
        if int8:  # once for all layers
            whole = encoded.bfloat16() if has_amx_tiles() else encoded.float()
        pairs = [layer.encoder_attn.keys_values(whole) for layer in self._layers()]
        # Under autocast keys differ from `encoded` in precision; in int8 those of text are float32.
        none = pairs[0][0].new_empty(
            (batch, width // HEAD_WIDTH, 0, HEAD_WIDTH), dtype=torch.float32 if int8 else None
        )
        if int8:
            pairs = [(k.to(encoded.dtype), v.to(encoded.dtype)) for k, v in pairs]
        return DecoderCache(
            audio=pairs,
            mask=None if mask is None else mask[:, None, None, :],
            text=[(none, none)] * len(pairs) if remember else [],
            lengths=[0] * batch,
        )

    def forward(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Feed the next tokens of each row; each sees itself and those before it.

        Args:
            tokens: int64 (rows, length).
            cache: from `start`; every row of it grows by `length`.

        Returns:
            (rows, length, width), which `scores` turns into the next token after each.

        Raises:
            ValueError: a text grows longer than the network's positions.
        """
        length = tokens.shape[1]
        longest = max(cache.lengths) + length
        if longest > self.embed_positions.num_embeddings:
            raise ValueError(
                f"the text has {longest} tokens; "
                f"this network takes at most {self.embed_positions.num_embeddings}"
            )
        cache.make_room(longest)
        past = torch.tensor(cache.lengths, device=tokens.device)
        places = past[:, None] + torch.arange(length, device=tokens.device)
        # The table of tokens may be in fewer bits than the rest.
        x = self.embed_positions(places) + self.embed_tokens(tokens)
        mask = None
        if cache.text and (length > 1 or min(cache.lengths) < max(cache.lengths)):
            mask = torch.arange(longest, device=tokens.device) <= places[:, None, :, None]
        if self._compiled and cache.text and length < MANY_QUERIES:
            x = self._pass_compiled(x, mask, places, cache)
        else:
            x = self._pass(x, mask, places, cache)
        cache.lengths = [n + length for n in cache.lengths]
        return self.layer_norm(x)

    def _pass(self, x: Tensor, mask: Tensor | None, places: Tensor, cache: DecoderCache) -> Tensor:
        for i, layer in enumerate(self._layers()):
            queries, own = layer.self_attn.queries_keys_values(layer.self_attn_layer_norm(x))
            keys, values = cache.append(i, own, places) if cache.text else own
            x = x + layer.self_attn(queries, keys, values, mask, causal=not cache.text)
            # The rows of a clip attend to one copy of its audio, as if they were one text.
            normed = layer.encoder_attn_layer_norm(x).view(len(cache.audio[i][0]), -1, x.shape[-1])
            queries = layer.encoder_attn.queries(normed)
            x = x + layer.encoder_attn(queries, *cache.audio[i], cache.mask).view_as(x)
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        return x

    def _pass_compiled(
        self, x: Tensor, mask: Tensor | None, places: Tensor, cache: DecoderCache
    ) -> Tensor:
        start = min(cache.lengths)
        end = max(cache.lengths) + x.shape[1]
        together = start == max(cache.lengths)
        masks = _added(mask, x.dtype), _added(cache.mask, cache.audio[0][0].dtype)
        for layer, text, audio in zip(self._compiled, cache.text, cache.audio, strict=True):
            where = places, start if together else None, end
            x = layer(x, text, *where, masks[0], audio, masks[1])
        return x

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, (…, vocabulary), after each place of `hidden` (…, width)."""
        if self.int8_output is not None:
            scores: Tensor = self.int8_output(hidden)
            return scores
        return F.linear(hidden, self.embed_tokens.weight)


class CTCHead(nn.Module):
    """Encoder output to log-probabilities of characters, one row every 20 ms; label 0 is the blank."""

    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        width = dims.audio_width
        self.layers = nn.ModuleList(EncoderLayer(width) for _ in range(dims.ctc_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, dims.ctc_labels)

    def forward(self, encoded: Tensor, frames: Tensor) -> Tensor:
        """(batch, length, width) → float32 log-probabilities (batch, length, labels)."""
        mask = frame_mask(frames, encoded.shape[1])
        key_mask = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            encoded = layer(encoded, key_mask)
        return self.output(self.layer_norm(encoded)).float().log_softmax(-1)


class Network(nn.Module):
    """Encoder, decoder and CTC head.

    Args:
        dims: the sizes. Parameters start random (normal, 0.02, as in GPT-2; norms at identity).
    """

    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)
        self.ctc = CTCHead(dims)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                    nn.init.zeros_(module.bias)

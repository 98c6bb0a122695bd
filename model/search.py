"""From the encoder's output to text: greedy attention search and greedy CTC."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.features import ENCODER_FRAMES_PER_SECOND
from model.network import Decoder
from model.tokenizer import Characters, Tokenizer

# Thresholds of Whisper's own transcribe loop (Radford et al., 2022, section 4.5).
COMPRESSION_RATIO_LIMIT = 2.4
NO_SPEECH_LIMIT = 0.6
AVG_LOGPROB_LIMIT = -1.0

# Fast speech has about 6 tokens a second; a text beyond twice that is made up.
TOKENS_PER_SECOND = 12
TOKENS_AT_LEAST = 16
# A cycle of tokens is a loop once it has stood this often and covers so many tokens: "no, no, no, no"
# is speech.
LOOP_REPEATS = 4
LOOP_TOKENS = 20
LOOP_LONGEST_CYCLE = 30


@dataclass(frozen=True)
class Decoded:
    """What the decoder wrote for one clip.

    Attributes:
        tokens: without prompt and end.
        avg_logprob: natural logarithm, mean over the tokens and the end.
        no_speech_prob: probability of the no-speech token, in [0, 1].
        looped: the text ran into a cycle, or past the length that the audio can hold.
    """

    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    looped: bool


def compression_ratio(text: str) -> float:
    """UTF-8 bytes of a text for each byte of its zlib compression; above 2.4 it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def cycle_length(tokens: Sequence[int]) -> int | None:
    """Length of the cycle that the tokens end with, or None if they do not loop."""
    for period in range(1, LOOP_LONGEST_CYCLE + 1):
        span = max(LOOP_REPEATS * period, LOOP_TOKENS)
        if len(tokens) < span:
            continue
        tail = tokens[-span:]
        if tail[period:] == tail[:-period]:
            return period
    return None


def most_tokens(decoder: Decoder, frames: Tensor, prompt_length: int) -> list[int]:
    """How many tokens the text of each clip may have that has this many valid frames."""
    room = decoder.embed_positions.num_embeddings - prompt_length
    return [
        min(room, TOKENS_AT_LEAST + TOKENS_PER_SECOND * n // ENCODER_FRAMES_PER_SECOND)
        for n in frames.tolist()
    ]


def barred_tokens(decoder: Decoder, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """What is added to the scores so that some tokens are never written; and to those of the first."""
    weight = decoder.embed_tokens.weight
    barred = torch.zeros(len(weight), device=weight.device)
    barred[tokenizer.suppressed] = -torch.inf
    barred_first = barred.clone()
    barred_first[tokenizer.suppressed_first] = -torch.inf
    return barred, barred_first


def no_speech_probs(decoder: Decoder, hidden: Tensor, tokenizer: Tokenizer) -> list[float]:
    """Probability of no speech in each clip, from what the decoder made of the prompt."""
    # Whisper was taught it at the position of the start token.
    scores = decoder.scores(hidden[:, -len(tokenizer.prompt)]).float()
    return scores.softmax(-1)[:, tokenizer.no_speech].tolist()


@torch.inference_mode()
def greedy_search(
    decoder: Decoder,
    encoded: Tensor,
    frames: Tensor,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]] | None = None,
) -> list[Decoded]:
    """Write the most probable next token of every clip until each has ended.

    Rows that have ended leave the batch, so the work shrinks with it.

    Args:
        decoder: of the network.
        encoded: (batch, length, width), the encoder's output.
        frames: int64 (batch,), valid frames of each clip.
        tokenizer: says which tokens may not be written.
        prompts: of each clip, all of one length; `tokenizer.prompt` if None.

    Returns:
        One for each clip, in order.
    """
    device = encoded.device
    prompts = prompts or [tokenizer.prompt] * len(frames)
    cache = decoder.start(encoded, frames)
    limits = most_tokens(decoder, frames, len(prompts[0]))
    batch = len(limits)
    tokens: list[list[int]] = [[] for _ in range(batch)]
    totals = [0.0] * batch
    looped = [False] * batch
    barred, barred_first = barred_tokens(decoder, tokenizer)

    rows = list(range(batch))  # of the batch, those still being written
    hidden = decoder(torch.tensor(prompts, device=device), cache)
    no_speech = no_speech_probs(decoder, hidden, tokenizer)
    while rows:
        scores = decoder.scores(hidden[:, -1]).float()
        scores += barred if tokens[rows[0]] else barred_first
        highest, chosen = scores.max(-1)
        logprobs = highest - scores.logsumexp(-1)
        keep = []
        for i, (row, token, logprob) in enumerate(
            zip(rows, chosen.tolist(), logprobs.tolist(), strict=True)
        ):
            totals[row] += logprob
            if token == tokenizer.end:
                continue
            tokens[row].append(token)
            if len(tokens[row]) >= limits[row] or cycle_length(tokens[row]):
                looped[row] = True
            else:
                keep.append(i)
        if len(keep) < len(rows):
            rows = [rows[i] for i in keep]
            if not rows:
                break
            kept = torch.tensor(keep, device=device)
            cache.select(kept)
            chosen = chosen[kept]
        hidden = decoder(chosen[:, None], cache)
    return [
        Decoded(tuple(tokens[i]), totals[i] / (len(tokens[i]) + 1), no_speech[i], looped[i])
        for i in range(batch)
    ]


def greedy_ctc(logprobs: Tensor, frames: Tensor, characters: Characters) -> list[str]:
    """The most probable label of each frame, repeats merged, blanks left out.

    Args:
        logprobs: (batch, length, labels) of the CTC head.
        frames: int64 (batch,), valid frames of each clip.
        characters: the labels.

    Returns:
        Lower-case text for each clip, with single spaces.
    """
    best = logprobs.argmax(-1).cpu()
    texts = []
    for labels, n in zip(best, frames.tolist(), strict=True):
        merged = torch.unique_consecutive(labels[:n])
        text = characters.decode(merged[merged != Characters.BLANK].tolist())
        texts.append(" ".join(text.split()))
    return texts

"""From the encoder's output to text: greedy attention search and greedy CTC."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.draft import Draft
from model.features import ENCODER_FRAMES_PER_SECOND
from model.hypothesis import Hypothesis, cycle_length, doubled_length
from model.network import Decoder
from model.tokenizer import Characters, Tokenizer

# Thresholds of Whisper's own transcribe loop (Radford et al., 2022, section 4.5).
COMPRESSION_RATIO_LIMIT = 2.4
NO_SPEECH_LIMIT = 0.6
AVG_LOGPROB_LIMIT = -1.0

# Fast speech has about 6 tokens a second; a text beyond twice that is made up.
TOKENS_PER_SECOND = 12
TOKENS_AT_LEAST = 16
# Most places of the decoder in a pass of drafts: more cost more than the guesses save.
ROWS_A_PASS = 8
# What the decoder would have written after a wrong guess mends the draft if it is so probable.
FORESEEN_LOGPROB = math.log(0.6)
# Rows that have ended leave the batch once so few are left of it: each time the others are copied.
SHRINK = 0.75


@dataclass(frozen=True)
class Decoded:
    """What the decoder wrote for one clip.

    Attributes:
        tokens: without prompt and end.
        logprobs: natural logarithm of the probability of each token, and of the end unless the text
            was stopped before it.
        no_speech_prob: probability of the no-speech token, in [0, 1].
        looped: the text ran into a cycle, stands twice far beyond its draft, or went past the length
            that the audio can hold.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    no_speech_prob: float
    looped: bool

    @property
    def avg_logprob(self) -> float:
        """Mean over the tokens and the end."""
        return sum(self.logprobs) / (len(self.tokens) + 1)


def compression_ratio(text: str) -> float:
    """UTF-8 bytes of a text for each byte of its zlib compression; above 2.4 it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def until_repeated(tokens: Sequence[int]) -> Sequence[int]:
    """A text that ends with the same tokens again, up to where it begins to repeat itself.

    Any other is returned as it is, and so is one that repeats a few tokens only.
    """
    period = cycle_length(tokens) or doubled_length(tokens)
    if period is None:
        return tokens
    end = len(tokens)
    while end > period and tokens[end - 1] == tokens[end - 1 - period]:
        end -= 1
    return tokens[:end]


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
    """Probability of no speech in each clip.

    Args:
        decoder: of the network.
        hidden: (batch, length, width), what it made of the prompt, from the start token on.
        tokenizer: knows the no-speech token.
    """
    # Whisper was taught it at the position of the start token.
    probs = decoder.scores(hidden[:, 0]).float().softmax(-1)
    return probs[:, tokenizer.no_speech].tolist()


@torch.inference_mode()
def greedy_search(
    decoder: Decoder,
    encoded: Tensor,
    frames: Tensor,
    tokenizer: Tokenizer,
    drafts: Sequence[str] | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    reconsider: Sequence[bool] | None = None,
) -> list[Decoded]:
    """Write the most probable next token of every clip until each has ended.

    With drafts the decoder reads several tokens of a guess in one pass and keeps those that it would
    have written itself, and one of its own after them (speculative decoding, Leviathan et al., 2023).
    The texts are the same, in fewer passes, but for one that repeats itself far beyond its draft: it is
    stopped. Rows that have ended leave the batch, so the work shrinks with it.

    A clip that is to be reconsidered then gets other texts, each with the second-best token in a place
    of doubt, and keeps the most probable (`model.hypothesis`).

    Args:
        decoder: of the network.
        encoded: (batch, length, width), the encoder's output.
        frames: int64 (batch,), valid frames of each clip.
        tokenizer: says which tokens may not be written.
        drafts: for each clip, what its text may be like: lower-case words.
        prompts: of each clip, all of one length; `tokenizer.prompt` if None.
        reconsider: which clips; None: none.

    Returns:
        One for each clip, in order.
    """
    device = encoded.device
    prompts = prompts or [tokenizer.prompt] * len(encoded)
    prompt_length = len(prompts[0])
    limits = most_tokens(decoder, frames, prompt_length)
    rows = [
        Hypothesis(
            prompt,
            limit,
            tokenizer.end,
            tokenizer.word_starts,
            Draft(text, tokenizer) if text else None,
            more,
        )
        for prompt, limit, text, more in zip(
            prompts,
            limits,
            drafts or [""] * len(limits),
            reconsider or [False] * len(limits),
            strict=True,
        )
    ]
    cache = decoder.start(encoded, frames, remember=True)
    barred, barred_first = barred_tokens(decoder, tokenizer)

    no_speech: list[float] = []
    held = rows  # those that the cache holds
    while not all(row.ended for row in held):
        first = not no_speech
        most = min(row.limit - len(row.tokens) - 1 for row in held if not row.ended)
        most = min(most, max(1, ROWS_A_PASS // len(held) - 1))
        guesses = [[] if row.ended else row.guess(most) for row in held]
        fed = [
            [*(row.prompt if first else row.tokens[-1:]), *guess]
            for row, guess in zip(held, guesses, strict=True)
        ]
        longest = max(map(len, fed))
        fed = [tokens + [tokenizer.end] * (longest - len(tokens)) for tokens in fed]
        hidden = decoder(torch.tensor(fed, device=device), cache)
        if first:
            hidden = hidden[:, prompt_length - len(tokenizer.prompt) :]
            no_speech = no_speech_probs(decoder, hidden, tokenizer)
            hidden = hidden[:, len(tokenizer.prompt) - 1 :]
        # Of each row that is being written: the places after its last token and after each guess.
        places = [
            (i, place)
            for i, (row, guess) in enumerate(zip(held, guesses, strict=True))
            if not row.ended
            for place in range(len(guess) + 1)
        ]
        at = torch.tensor(places, device=device)
        scores = decoder.scores(hidden[at[:, 0], at[:, 1]]).float()
        scores += barred
        if first:
            scores[at[:, 1] == 0] += barred_first
        highest, best = scores.max(-1)
        odds = scores.sub_(highest[:, None]).exp_()  # to the best token
        logprobs = odds.sum(-1).log_().neg_().tolist()
        chosen = best.tolist()
        doubtful = [k for k, (i, _) in enumerate(places) if held[i].doubts(logprobs[k])]
        rivals = {}
        if doubtful:
            others = odds[doubtful].scatter_(1, best[doubtful][:, None], 0.0)
            share, second = others.max(-1)
            rivals = dict(
                zip(doubtful, zip(second.tolist(), share.tolist(), strict=True), strict=True)
            )
        start = 0
        for row, guess in zip(held, guesses, strict=True):
            if row.ended:
                continue
            for place, guessed in enumerate([*guess, None], start):
                goes_on = row.write(chosen[place], logprobs[place], rivals.get(place))
                if not goes_on or chosen[place] != guessed:
                    break
            if goes_on and place < start + len(guess):
                own = slice(start, start + len(guess))
                sure = [
                    token if logprob > FORESEEN_LOGPROB else None
                    for token, logprob in zip(chosen[own], logprobs[own], strict=True)
                ]
                row.mend_guess(guess, place - start, sure)
            start += len(guess) + 1
        going = [i for i, row in enumerate(held) if not row.ended]
        if len(going) <= SHRINK * len(held):
            if not going:
                break
            cache.select(going)
            held = [held[i] for i in going]
        # The last token has not been read yet, and guesses after it are taken back.
        cache.lengths = [0 if row.ended else prompt_length + len(row.tokens) - 1 for row in held]
    return [
        Decoded(tuple(row.tokens), tuple(row.logprobs), probability, row.looped)
        for row, probability in zip(rows, no_speech, strict=True)
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

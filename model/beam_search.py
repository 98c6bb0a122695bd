"""Beam search: attention search in which each clip keeps several texts at a time.

For clips that greedy search (`model.search`) leaves in doubt, and for hot words: a word is often lost at
its first token, where greedy search cannot see yet that the rest would fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.hotwords import TokenBias
from model.network import Decoder
from model.search import Decoded, barred_tokens, cycle_length, most_tokens, no_speech_probs
from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Text:
    """What may be the text of a clip.

    Attributes:
        tokens: without prompt and end.
        logprobs: of each token by the decoder alone, the end included once it is there.
        logprob: their sum.
        earned: by hot words.
        state: in the clip's `TokenBias`.
        looped: as in `Decoded`.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    logprob: float
    earned: float
    state: int
    looped: bool = False

    @property
    def score(self) -> float:
        return self.logprob + self.earned


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    encoded: Tensor,
    frames: Tensor,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    biases: Sequence[TokenBias | None],
    beam_size: int,
) -> list[Decoded]:
    """Find the text of every clip that is most probable with the bonus of its hot words.

    Arguments and result as for `model.search.greedy_search`; `biases` holds each
    clip's hot words or None, `beam_size` says how many texts are kept of each clip.
    """
    device = encoded.device
    cache = decoder.start(encoded, frames, remember=True)
    limits = most_tokens(decoder, frames, len(prompts[0]))
    barred, barred_first = barred_tokens(decoder, tokenizer)
    hidden = decoder(torch.tensor(prompts, device=device), cache)
    no_speech = no_speech_probs(decoder, hidden[:, -len(tokenizer.prompt) :], tokenizer)
    ended: list[_Text | None] = [None] * len(limits)
    # Beside each text its clip.
    live = [
        (row, _Text((), (), 0.0, 0.0, bias.start if bias else 0)) for row, bias in enumerate(biases)
    ]
    while live:
        scores = decoder.scores(hidden[:, -1]).float()
        scores += barred if live[0][1].tokens else barred_first
        total = scores.logsumexp(-1, keepdim=True)
        bonuses = torch.zeros_like(scores)
        for place, (row, text) in enumerate(live):
            if bias := biases[row]:
                bonuses[place] = bias.bonuses(text.state).to(device)
        # One more than goes on: the end may be among them.
        chosen = (scores + bonuses).topk(beam_size + 1).indices
        steps = zip(
            live,
            chosen.tolist(),
            (scores.gather(1, chosen) - total).tolist(),
            bonuses.gather(1, chosen).tolist(),
            strict=True,
        )
        grown: list[list[tuple[_Text, int, int]]] = [[] for _ in limits]
        for place, ((row, text), *columns) in enumerate(steps):
            for token, logprob, bonus in zip(*columns, strict=True):
                longer = replace(
                    text,
                    logprobs=(*text.logprobs, logprob),
                    logprob=text.logprob + logprob,
                    earned=text.earned + bonus,
                )
                grown[row].append((longer, token, place))
        before = [row for row, _ in live]
        live, places = [], []
        for row, candidates in enumerate(grown):
            candidates.sort(key=lambda candidate: candidate[0].score, reverse=True)
            kept = 0
            for text, token, place in candidates:
                rival = ended[row]
                if kept == beam_size or (rival is not None and rival.score >= text.score):
                    break  # what is added to a text hardly ever makes it more probable
                if token == tokenizer.end:
                    ended[row] = text
                    continue
                tokens = (*text.tokens, token)
                bias = biases[row]
                state = bias.step(text.state, token) if bias else 0
                looped = len(tokens) >= limits[row] or cycle_length(tokens) is not None
                text = replace(text, tokens=tokens, state=state, looped=looped)
                if looped:
                    ended[row] = text
                else:
                    live.append((row, text))
                    places.append(place)
                    kept += 1
        if live:
            same = [row for row, _ in live] == before
            cache.select(places, same_audio=same)
            last = torch.tensor([[text.tokens[-1]] for _, text in live], device=device)
            hidden = decoder(last, cache)
    found = []
    for best, probability in zip(ended, no_speech, strict=True):
        assert best is not None, "a text ends at its limit at the latest"
        found.append(Decoded(best.tokens, best.logprobs, probability, best.looped))
    return found

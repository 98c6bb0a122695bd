"""Beam search: attention search in which each clip keeps several texts at a time.

For hot words, and for callers who want it: a word is often lost at its first token, where greedy search
cannot see yet that the rest would fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.draft import Draft
from model.hotwords import TokenBias
from model.hypothesis import cycle_length
from model.network import Decoder
from model.search import Decoded, barred_tokens, most_tokens, no_speech_probs
from model.tokenizer import Tokenizer

# Letters of the draft that a text may lack where its end is a second choice: a word or two that the CTC
# head heard wrongly.
LEFT_LETTERS = 12


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


@dataclass(frozen=True)
class _Longer:
    """A text with one more token.

    Attributes:
        text: whose probability has the token's already, and whose tokens do not have it yet.
        token: that comes next.
        place: of the shorter text among all that were fed.
        is_best: whether no other token is more probable after the shorter text.
    """

    text: _Text
    token: int
    place: int
    is_best: bool


@dataclass(frozen=True)
class _Clip:
    """A clip that is being searched.

    Attributes:
        row: its place among the results.
        texts: that are kept, the best first.
    """

    row: int
    texts: list[_Text]


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    encoded: Tensor,
    frames: Tensor,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    biases: Sequence[TokenBias | None],
    beam_size: int,
    rivals: Sequence[Decoded | None] | None = None,
    drafts: Sequence[str] | None = None,
) -> list[Decoded]:
    """Find the text of every clip that is most probable with the bonus of its hot words.

    Arguments and result as for `model.search.greedy_search`, and:

    Args:
        biases: each clip's hot words, or None.
        beam_size: how many texts are kept of each clip.
        rivals: for a clip without hot words, a text that was found before. What is less probable is not
            followed, and it is the result where nothing more probable is found.
        drafts: as in `greedy_search`. A text ends before its draft's last words only where the end is
            the most probable token: its score would be the best for want of what is missing.
    """
    device = encoded.device
    cache = decoder.start(encoded, frames, remember=True)
    limits = most_tokens(decoder, frames, len(prompts[0]))
    barred, barred_first = barred_tokens(decoder, tokenizer)
    hidden = decoder(torch.tensor(prompts, device=device), cache)
    no_speech = no_speech_probs(decoder, hidden[:, -len(tokenizer.prompt) :], tokenizer)
    ended: list[_Text | None] = [
        _Text(rival.tokens, rival.logprobs, sum(rival.logprobs), 0.0, 0) if rival else None
        for rival in rivals or [None] * len(limits)
    ]
    live = [
        _Clip(row, [_Text((), (), 0.0, 0.0, bias.start if bias else 0)])
        for row, bias in enumerate(biases)
    ]
    heard = [Draft(text, tokenizer) if text else None for text in drafts or [""] * len(limits)]
    width = 1  # rows that the cache holds of each clip
    while live:
        rows = [
            clip * width + place for clip, c in enumerate(live) for place in range(len(c.texts))
        ]
        texts = [(clip.row, text) for clip in live for text in clip.texts]
        scores = decoder.scores(hidden[rows, -1]).float()
        scores += barred if texts[0][1].tokens else barred_first
        ranked = scores
        if any(biases):
            ranked = scores.clone()
            for place, (row, text) in enumerate(texts):
                if bias := biases[row]:
                    ranked[place] += bias.bonuses(text.state).to(device)
        grown: dict[int, list[_Longer]] = {clip.row: [] for clip in live}
        longer = _grown([text for _, text in texts], rows, scores, ranked, beam_size)
        for (row, _), own in zip(texts, longer, strict=True):
            grown[row] += own
        going, clips, places = [], [], []
        for clip, (row, candidates) in enumerate(grown.items()):
            candidates.sort(key=lambda candidate: candidate.text.score, reverse=True)
            kept: list[_Text] = []
            sources: list[int] = []
            for candidate in candidates:
                text, rival = candidate.text, ended[row]
                # What is added to a text hardly ever makes it more probable. One that loops is taken
                # for want of a better one, and lacks the probability of its end.
                beaten = rival is not None and not rival.looped and rival.score >= text.score
                if len(kept) == beam_size or beaten:
                    break
                if candidate.token == tokenizer.end:
                    if candidate.is_best or _is_whole(text, heard[row]):
                        ended[row] = text
                    continue
                text = _with_token(text, candidate.token, biases[row], limits[row])
                if text.looped:
                    ended[row] = ended[row] or text
                else:
                    kept.append(text)
                    sources.append(candidate.place)
            if kept:
                going.append(_Clip(row, kept))
                clips.append(clip)
                places.append(sources)
        live = going
        if live:
            width = max(map(len, places))
            lacking = [own[:1] * (width - len(own)) for own in places]  # fed, and not looked at
            cache.select(
                [row for own, more in zip(places, lacking, strict=True) for row in own + more],
                clips,
            )
            last = [
                [text.tokens[-1]]
                for clip in live
                for text in clip.texts + clip.texts[:1] * (width - len(clip.texts))
            ]
            hidden = decoder(torch.tensor(last, device=device), cache)
    found = []
    for best, probability in zip(ended, no_speech, strict=True):
        assert best is not None, "a text ends at its limit at the latest"
        found.append(Decoded(best.tokens, best.logprobs, probability, best.looped))
    return found


def _grown(
    texts: Sequence[_Text],
    places: Sequence[int],
    scores: Tensor,
    ranked: Tensor,
    beam_size: int,
) -> list[list[_Longer]]:
    """What each text may become with one more token.

    Args:
        texts: of all clips.
        places: of the texts among all that were fed.
        scores: (texts, vocabulary), of the decoder alone.
        ranked: the same with the bonuses of hot words.
        beam_size: as in `beam_search`; there is one more, since the end may be among them.
    """
    total = scores.logsumexp(-1, keepdim=True)
    highest, chosen = ranked.topk(beam_size + 1)
    own = scores.gather(1, chosen)
    columns = (chosen.tolist(), (own - total).tolist(), (highest - own).tolist())
    return [
        [
            _Longer(
                replace(
                    text,
                    logprobs=(*text.logprobs, logprob),
                    logprob=text.logprob + logprob,
                    earned=text.earned + bonus,
                ),
                token,
                place,
                token == tokens[0],
            )
            for token, logprob, bonus in zip(tokens, logprobs, bonuses, strict=True)
        ]
        for text, place, tokens, logprobs, bonuses in zip(texts, places, *columns, strict=True)
    ]


def _is_whole(text: _Text, draft: Draft | None) -> bool:
    """Whether a text may end here though its end is not the most probable token."""
    return draft is None or draft.after(text.tokens).left <= LEFT_LETTERS


def _with_token(text: _Text, token: int, bias: TokenBias | None, limit: int) -> _Text:
    """A text with the token that `_grown` has counted; it loops at `limit` tokens at the latest."""
    tokens = (*text.tokens, token)
    state = bias.step(text.state, token) if bias else 0
    looped = len(tokens) >= limit or cycle_length(tokens) is not None
    return replace(text, tokens=tokens, state=state, looped=looped)

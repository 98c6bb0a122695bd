"""Give lower-case transcripts back their capitals and punctuation.

    python -m training.punctuate --checkpoint START --manifest train.jsonl --output train.written.jsonl

START is a checkpoint that writes punctuation: the shipped one, or with --padded one of Whisper's own.

Speech corpora hold bare words; training a decoder on them would unlearn punctuation. Here a recognizer
writes each utterance its own way, and the words that were really said, taken from the manifest, are put
into its text: where it heard the word, its spelling stands; where it misheard, the right word takes the
wrong one's place, capital and punctuation kept. The result is the key `written` of the new manifest;
`text` stays as it was.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from whisper_normalizer.english import EnglishSpellingNormalizer, EnglishTextNormalizer

from model.audio import AudioError, load_audio
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.precision import has_bfloat16_units
from model.recognizer import Recognizer, TranscribeOptions
from training.manifest import Utterance, read_manifest, write_manifest
from training.padded import transcribe_padded

# Utterances decoded from their files at once.
_CHUNK = 64
_PUNCTUATION = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)
_normalize = EnglishTextNormalizer()
_spelling = EnglishSpellingNormalizer()  # British to American


def written_form(spoken: str, heard: str) -> str:
    """Put the words that were said into a text that was heard.

    Args:
        spoken: the right words, lower case, without punctuation.
        heard: a recognizer's text of the same audio.

    Returns:
        The words of `spoken`, in order and in their spelling, in the dress of `heard`. A word that
        stands only in `heard` is left out, its closing punctuation kept. What scoring takes for the same
        may come as it was heard: "20" for "twenty", "Mr." for "mister", "I'm" for "i am".
    """
    words, dressed = spoken.split(), heard.split()
    matcher = SequenceMatcher(
        None, [_bare(w) for w in words], [_bare(w) for w in dressed], autojunk=False
    )
    result: list[str] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            result += [_spelled(a, b) for a, b in zip(words[a:b], dressed[c:d], strict=True)]
            continue
        said, replaced = words[a:b], dressed[c:d]
        if _bare(" ".join(said)) == _bare(" ".join(replaced)):  # "father-in-law", "20"
            result += replaced
            continue
        # Words against words as far as both go; what closes the last heard word closes the last said.
        said_dressed = [
            _dress(word, model, close=i < len(said) - 1 and i < len(replaced) - 1)
            for i, (word, model) in enumerate(zip(said, replaced, strict=False))
        ] + said[len(replaced) :]
        if replaced and result + said_dressed:
            *before, last = result + said_dressed
            closing = _parts(replaced[-1])[2]
            result = [*before, last if _parts(last)[2] else last + closing]
        else:
            result += said_dressed
    if result:
        result[0] = result[0][:1].upper() + result[0][1:]
    return " ".join(result)


def _bare(word: str) -> str:
    """A word as it counts in scoring, so that "Mr." is "mister"."""
    return _normalize(word).strip() or word


def _spelled(said: str, heard: str) -> str:
    """What was heard, in the spelling of who said it: "colour" stays British."""
    core = _parts(heard)[1].lower()
    if said.lower() != core and _spelling(said) == _spelling(core):
        return _dress(said, heard, close=True)
    return heard


def _dress(word: str, model: str, close: bool) -> str:
    """A word with the capital and the quotation marks of another."""
    before, core, after = _parts(model)
    if core[:1].isupper() and (len(core) == 1 or not core.isupper()):
        word = word[:1].upper() + word[1:]
    return before + word + (after if close else "")


def _parts(word: str) -> tuple[str, str, str]:
    """Opening punctuation, the word itself, closing punctuation."""
    found = _PUNCTUATION.match(word)
    assert found is not None  # it matches any text
    return found[1], found[2], found[3]


def hear(
    checkpoint: Checkpoint, utterances: Sequence[Utterance], padded: bool
) -> Iterator[tuple[Utterance, str | AudioError | OSError]]:
    """Transcribe utterances, in order; `padded` as `training.padded` tells.

    A recording that cannot be read comes with the error instead of a text: hours of hearing are not
    lost over one.
    """
    recognizer = None if padded else Recognizer(checkpoint)
    options = TranscribeOptions(word_timestamps=False)
    for first in tqdm(range(0, len(utterances), _CHUNK), desc="hearing", unit="batch"):
        chunk = utterances[first : first + _CHUNK]
        loaded = [_load(utterance) for utterance in chunk]
        waveforms = [found for found in loaded if isinstance(found, Tensor)]
        if recognizer is None:
            texts = iter(transcribe_padded(checkpoint, waveforms))
        else:
            texts = (t.text for t in recognizer.transcribe(waveforms, options).transcripts)
        for utterance, found in zip(chunk, loaded, strict=True):
            yield utterance, next(texts) if isinstance(found, Tensor) else found


def _load(utterance: Utterance) -> Tensor | AudioError | OSError:
    try:
        return load_audio(utterance.audio_filepath)
    except (AudioError, OSError) as error:
        return error


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write a manifest's texts with punctuation.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--padded", action="store_true", help="pad clips to 30 s, for Whisper's own weights"
    )
    args = parser.parse_args()
    try:
        kept, rejected = punctuate(args.checkpoint, args.manifest, args.output, padded=args.padded)
    except (CheckpointError, OSError) as error:
        parser.error(str(error))
    print(f"{args.output}: {kept} utterances, {rejected} rejected")
    return 0


def punctuate(
    checkpoint_folder: Path,
    manifest: Path,
    output: Path,
    *,
    padded: bool = False,
    strict: bool = False,
) -> tuple[int, int]:
    """Write a manifest whose utterances have `written`; how many were kept, and rejected.

    Lines that cannot be used and recordings that cannot be read are named on stderr and left out.

    Args:
        padded: pad clips to 30 s, for Whisper's own weights.
        strict: end at the first recording that cannot be read.

    Raises:
        ValueError: naming that recording.
        CheckpointError: the checkpoint cannot be read.
        OSError: the manifest cannot be read, or the output not be written.
    """
    utterances, lines = read_manifest(manifest)
    for line in lines:
        print(f"{line.manifest}:{line.line}: {line.reason}", file=sys.stderr)
    checkpoint = load_checkpoint(checkpoint_folder)
    if padded and has_bfloat16_units(torch.device("cpu")):
        checkpoint.network.to(torch.bfloat16)
    output.parent.mkdir(parents=True, exist_ok=True)
    result = []
    for utterance, heard in hear(checkpoint, utterances, padded):
        if isinstance(heard, str):
            result.append(replace(utterance, written=written_form(utterance.text, heard)))
        elif strict:
            raise ValueError(f"{utterance.audio_filepath}: {heard}") from heard
        else:
            print(f"{utterance.audio_filepath}: {heard}", file=sys.stderr)
    write_manifest(output, result)
    return len(result), len(lines) + len(utterances) - len(result)


if __name__ == "__main__":
    sys.exit(main())

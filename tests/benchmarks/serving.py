"""Serving speed against its limits and its rivals, in one run on the same cores.

    python -m tests.benchmarks.serving --manifest test.jsonl [--limit 24] [--rounds 3]

The limit is the network on ready features, in the recognizer's own batches. Then come the recognizer
from files, TorchServe with Steno, TorchServe with a handler as the wav2vec2 example has it around
the same network, and faster-whisper. All get the same WAV files and cores, are warm, and take turns in
each round.
"""

import argparse
import io
import json
import math
import os
import random
import shlex
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from handler.server import TorchServe
from model.audio import SAMPLE_RATE, load_audio
from model.recognizer import Recognizer, TranscribeOptions, _Piece
from model.search import greedy_ctc
from model.segmentation import Span
from tests.benchmarks.accuracy import QUIET_LOAD, Bench, Clip, read_clips
from tests.benchmarks.accuracy_results import SHORT_SECONDS, Spread
from tests.benchmarks.accuracy_systems import System, all_systems
from tests.benchmarks.serving_client import Calls, Client, in_turn, wait_for_all_workers
from tests.benchmarks.setting import Setting
from training.documents import fill
from training.files import atomic_writer, write_text
from training.machine import Machine
from training.package import ENTRY_POINT, ROOT, build_package
from training.scoring import Pair, bootstrap_interval, score

MANY = 16  # callers
PASSES = 8  # of many callers over all files; see `saturated_speed`
LONE_PASSES = 4  # of one caller: with 144 requests by turns 95 % span a tenth, with 32 a sixth
TAIL_SECONDS = 1.0  # see `recordings`
PROBE_SECONDS = 10.0
PROBES = 40
PROBE_TURNS = 4
OPTIONS = TranscribeOptions(word_timestamps=False)
GREEDY = TranscribeOptions(word_timestamps=False, beam_size=1)
# A group of pieces, and the parts of its features that are encoded at once.
Ready = tuple[list[_Piece], list[tuple[Tensor, Tensor]]]
OFFICIAL_CONFIG = "startupTimeout: 300\nresponseTimeout: 1200\n"  # all else as TorchServe has it
NO_SLOWER = 0.95  # of the other's speed, which the 95 % interval has to stay above
NETWORK, RECOGNIZER = "network on ready batches", "recognizer from files"
STENO, OFFICIAL = "TorchServe, Steno", "TorchServe, one item at a time"
# torch gives each worker all cores, which one caller gains from and many lose by.
SHARED = "TorchServe, one item at a time, cores shared"
PEERS = ("tiny.en", "base")


@dataclass(frozen=True)
class Turn:
    """One contender's measurement: seconds for all clips, texts, and each request's seconds."""

    seconds: float
    texts: Sequence[str] | None = None
    latency: Sequence[float] = ()


@dataclass(frozen=True)
class Row:
    """One contender over all rounds."""

    name: str
    rtfx: Spread
    p95: Spread | None
    wer: float | None
    latency: Sequence[float] = ()  # of all requests, in seconds and in their order


@dataclass(frozen=True)
class Probe:
    """Seconds of a clip of 10 s alone and at half load, and the latter to the median of the former."""

    alone: Sequence[float]
    loaded: Sequence[float]
    shares: Sequence[float]


class Contest:
    """Holds the contenders and gives each its turn.

    Args:
        clips: decoded, with their texts.
        checkpoint: the folder that all of ours serve.
        servers: TorchServe with Steno's handler, and with the others.
    """

    def __init__(
        self, clips: Sequence[Clip], checkpoint: Path, servers: dict[str, TorchServe]
    ) -> None:
        self.clips = clips
        self.audio_seconds = sum(clip.seconds for clip in clips)
        self.recognizer = Recognizer.load(checkpoint, device="cpu")
        self.rng = random.Random(0)
        self.clients = {name: Client(server) for name, server in servers.items()}
        self.batches = self._ready_batches()

    def turns(self) -> dict[str, Turn]:
        """One round of the contenders but for the peers.

        Network and recognizer have their turns before and after Steno's 16 callers, since this machine's
        speed drifts; one caller's are together.
        """
        passes = [recordings(self.clips, self.rng) for _ in range(PASSES)]
        network, recognizer = self.network(), self.from_files()
        many = self.clients[STENO].closed_loop(passes, MANY)
        recognizer = _mean(recognizer, self.from_files())
        network = _mean(network, self.network())
        two = {name: self.clients[name] for name in (STENO, OFFICIAL)}
        lone = [recordings(self.clips, self.rng) for _ in range(LONE_PASSES)]
        alone = in_turn(two, lone, self.rng)
        rivals = {name: self.clients[name].closed_loop(passes, MANY) for name in (OFFICIAL, SHARED)}
        return {
            NETWORK: network,
            RECOGNIZER: recognizer,
            **{callers_name(name, 1): _turn(calls) for name, calls in alone.items()},
            callers_name(STENO, MANY): _turn(many),
            **{callers_name(name, MANY): _turn(calls) for name, calls in rivals.items()},
        }

    def network(self) -> Turn:
        """Encoder and search alone."""
        recognizer = self.recognizer

        @torch.inference_mode()
        def run(ready: Ready) -> None:
            pieces, parts = ready
            encoded, frames, logprobs = recognizer._encode(parts)
            drafts = greedy_ctc(logprobs, frames, recognizer.characters)
            recognizer._search(pieces, encoded, frames, drafts)

        started = time.perf_counter()
        recognizer._in_lanes(run, self.batches)
        return Turn(time.perf_counter() - started)

    def from_files(self) -> Turn:
        """Files in, texts out, in this process."""
        contents = recordings(self.clips, self.rng)
        started = time.perf_counter()
        waveforms = [load_audio(content) for content in contents]
        found = self.recognizer.transcribe(waveforms, OPTIONS)
        return Turn(time.perf_counter() - started, [t.text for t in found.transcripts])

    def short(self, clips: Sequence[Clip], together: bool) -> float:
        """RTFx on short clips in this process, in one call or one after the other."""
        samples = [load_audio(content) for content in recordings(clips, self.rng)]
        started = time.perf_counter()
        for group in [samples] if together else [[one] for one in samples]:
            self.recognizer.transcribe(group, OPTIONS)
        return sum(clip.seconds for clip in clips) / (time.perf_counter() - started)

    def probe(self, probes: int) -> Probe:
        """Send a clip of 10 s alone, and among arrivals of half of what 16 callers reach.

        Capacity, lone and loaded requests are of the same minute each time, since this machine's speed
        drifts.
        """
        ten = clips_of_ten_seconds([clip.samples for clip in self.clips], probes, self.rng)
        client = self.clients[STENO]
        alone, loaded, shares = [], [], []
        for turn in range(PROBE_TURNS):
            own = ten[turn::PROBE_TURNS]
            passes = [recordings(self.clips, self.rng) for _ in range(PASSES)]
            rate = len(self.clips) / client.closed_loop(passes, MANY).seconds / 2
            lone, busy = client.probe(own, recordings(self.clips, self.rng), rate, seed=turn)
            alone += lone
            loaded += busy
            shares += [seconds / statistics.median(lone) for seconds in busy]
        return Probe(alone, loaded, shares)

    @torch.inference_mode()
    def _ready_batches(self) -> list[Ready]:
        """The recognizer's groups of pieces, with their features."""
        recognizer = self.recognizer
        pieces = [
            _Piece(0, Span(0, len(part)), part, OPTIONS)
            for clip in self.clips
            for part in clip.samples.split(int(recognizer.max_piece_seconds * SAMPLE_RATE))
        ]
        groups = [[pieces[i] for i in group] for group in recognizer._groups(pieces)]
        return [(group, list(recognizer._features(group))) for group in groups]


def _turn(calls: Calls) -> Turn:
    return Turn(calls.seconds, calls.texts, calls.latency)


def _mean(one: Turn, other: Turn) -> Turn:
    return Turn((one.seconds + other.seconds) / 2, one.texts)


def as_wav(samples: Tensor) -> bytes:
    """16-bit WAV at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, samples.numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def recordings(clips: Sequence[Clip], rng: random.Random) -> list[bytes]:
    """WAV of each clip with up to a second of silence after it, each time another length.

    Callers seldom send a length twice. What a server keeps for one, such as compiled kernels, must not
    help it with the same files a second time.
    """
    return [_with_tail(clip.samples, rng) for clip in clips]


def _with_tail(samples: Tensor, rng: random.Random) -> bytes:
    return as_wav(pad(samples, (0, int(rng.uniform(0, TAIL_SECONDS) * SAMPLE_RATE))))


def clips_of_ten_seconds(speech: Sequence[Tensor], count: int, rng: random.Random) -> list[bytes]:
    """WAV of the first ten seconds of speech, so many times, with tails as in `recordings`."""
    ten = torch.cat(list(speech))[: int(PROBE_SECONDS * SAMPLE_RATE)]
    return [_with_tail(ten, rng) for _ in range(count)]


def callers_name(name: str, callers: int) -> str:
    return f"{name}, {callers} caller{'s' if callers > 1 else ''}"


def build_official(checkpoint: Path, folder: Path, threads: int | None) -> Path:
    """Pack an archive whose handler is the official-style one; returns the store's folder."""
    folder.mkdir()
    root = folder / "root"
    shutil.copytree(ROOT / "handler", root / "handler")
    shutil.copytree(ROOT / "model", root / "model", ignore=shutil.ignore_patterns("shipped"))
    shutil.copyfile(Path(__file__).with_name("official_style.py"), root / ENTRY_POINT)
    config = folder / "official.yaml"
    config.write_text(OFFICIAL_CONFIG + (f"threads: {threads}\n" if threads else ""))
    build_package(checkpoint, folder / "store", model_config=config, root=root)
    return folder / "store"


def draw_evenly(clips: Sequence[Clip], count: int) -> list[Clip]:
    """So many clips, evenly from all lengths."""
    by_length = sorted(clips, key=lambda clip: clip.seconds)
    chosen = min(count, len(clips))
    return [by_length[int((k + 0.5) * len(clips) / chosen)] for k in range(chosen)]


def peer_systems(weights: Sequence[str]) -> list[System]:
    """faster-whisper's int8 settings with these weights, plain and batched."""
    return [
        system
        for system in all_systems("", [])
        if system.loader == "faster_whisper"
        and system.options["weights"] in weights
        and system.options["compute_type"] == "int8"
    ]


def word_errors(clips: Sequence[Clip], texts: Sequence[str]) -> float:
    """WER of texts, with Whisper's normalizer."""
    pairs = [
        Pair(
            id=clip.id,
            reference=clip.utterance.text,
            hypothesis=text,
            duration=clip.seconds,
            speaker=clip.utterance.speaker,
        )
        for clip, text in zip(clips, texts, strict=True)
    ]
    return score(pairs).wer.value


def table(rows: Sequence[Row], limit: float) -> str:
    """The contenders, and each one's share of the network's speed."""
    lines = [
        "| | RTFx | of the network's | p95 of a request, s | WER |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        wer = "–" if row.wer is None else f"{row.wer:.1%}"
        p95 = "–" if row.p95 is None else f"{row.p95.median:.2f}"
        lines.append(f"| {row.name} | {row.rtfx} | {row.rtfx.median / limit:.2f} | {p95} | {wer} |")
    return "\n".join(lines)


def goals(rows: Sequence[Row], short: dict[str, Sequence[float]], slower: float) -> str:
    """The ratios that are aimed at, beside those found.

    Args:
        short: of each peer, in each round, the recognizer's speed on short clips to its own.
    """
    found = {row.name: row for row in rows}

    def ratio(one: str, other: str) -> float:  # of the same rounds: the machine's speed drifts
        pairs = zip(found[one].rtfx.rounds, found[other].rtfx.rounds, strict=True)
        return statistics.median(own / others for own, others in pairs)

    def p95_to(other: str) -> float:
        own, others = found[steno].p95, found[other].p95
        assert own is not None and others is not None
        return own.median / others.median

    steno, rival, shared = (callers_name(name, MANY) for name in (STENO, OFFICIAL, SHARED))
    # The one caller sends a file to both before the next, so requests are compared in pairs.
    seconds = [found[callers_name(name, 1)].latency for name in (OFFICIAL, STENO)]
    low, high = bootstrap_interval(*seconds, seed=0)
    wanted: list[tuple[str, float, str, bool]] = [
        ("TorchServe with Steno, 16 callers, to the recognizer",
         ratio(steno, RECOGNIZER), "≥ 0.90", ratio(steno, RECOGNIZER) >= 0.9),
        ("recognizer to the network", ratio(RECOGNIZER, NETWORK), "≥ 0.80",
         ratio(RECOGNIZER, NETWORK) >= 0.8),
        (f"Steno to {rival}", ratio(steno, rival), "≥ 3", ratio(steno, rival) >= 3),
        ("the same, p95", p95_to(rival), "< 1", p95_to(rival) < 1),
        (f"Steno to {OFFICIAL}, RTFx of 1 caller (95 % from {low:.2f} to {high:.2f})",
         sum(seconds[0]) / sum(seconds[1]), f"all of it ≥ {NO_SLOWER}", low >= NO_SLOWER),
        ("p95 of a 10 s clip at half of the capacity to its median alone",
         slower, "≤ 2", slower <= 2),
    ]  # fmt: skip
    for name, shares in short.items():
        if "tiny.en" in name:
            share = statistics.median(shares)
            how = "in one call" if "batched" in name else "one by one"
            what = f"recognizer {how} to {name}, clips under {SHORT_SECONDS:g} s"
            wanted.append((what, share, "≥ 2", share >= 2))
    lines = ["| ratio | found | wanted | |", "|---|---|---|---|"]
    lines += [
        f"| {w} | {v:.2f} | {goal} | {'met' if met else '**missed**'} |"
        for w, v, goal, met in wanted
    ]
    lines += [
        f"| {w} | {v:.2f} | – | |"
        for w, v in (
            (f"beside the goals: Steno to {shared}", ratio(steno, shared)),
            ("the same, p95", p95_to(shared)),
        )
    ]
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of RTFx with the spread of the rounds, as an SVG."""
    figure = Figure(figsize=(9, 0.45 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    names = [row.name for row in rows][::-1]
    medians = [row.rtfx.median for row in rows][::-1]
    low = [row.rtfx.median - min(row.rtfx.rounds) for row in rows][::-1]
    high = [max(row.rtfx.rounds) - row.rtfx.median for row in rows][::-1]
    colours = [
        "#E69F00" if "Whisper" in n else "#777777" if OFFICIAL in n else "#0072B2" for n in names
    ]
    axes.barh(names, medians, xerr=[low, high], color=colours, ecolor="#333333")
    axes.set_xlabel("RTFx: seconds of audio transcribed in a second")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def measure(
    contest: Contest, bench: Bench | None, peers: Sequence[System], rounds: int, threads: int
) -> tuple[list[Row], dict[str, list[float]]]:
    """All rounds; returns the rows, and the recognizer's speed on short clips to each peer's."""
    rtfx: defaultdict[str, list[float]] = defaultdict(list)
    p95: defaultdict[str, list[float]] = defaultdict(list)
    latency: defaultdict[str, list[float]] = defaultdict(list)
    short: defaultdict[str, list[float]] = defaultdict(list)
    wer: dict[str, float] = {}
    contest.turns()  # the first round warms everything up
    few = [clip for clip in contest.clips if clip.seconds < SHORT_SECONDS]
    for _ in range(rounds):
        for name, found in contest.turns().items():
            rtfx[name].append(contest.audio_seconds / found.seconds)
            if found.latency:
                latency[name].extend(found.latency)
                p95[name].append(float(np.quantile(found.latency, 0.95)))
            if found.texts is not None and name not in wer:
                wer[name] = word_errors(contest.clips, found.texts)
        for system in peers if bench else []:
            assert bench is not None
            own = [contest.short(few, system.batched)] if few else []
            answer = bench.run(system, threads, whole=False)
            rtfx[system.name].append(bench.rtfx(answer, short=False) or math.nan)
            if few:  # the machine's speed drifts: before and after
                own.append(contest.short(few, system.batched))
                peer = bench.rtfx(answer, short=True) or math.nan
                short[system.name].append(statistics.mean(own) / peer)
            texts = [answer["texts"][str(i)] for i in range(len(contest.clips))]
            wer.setdefault(system.name, word_errors(contest.clips, texts))
    rows = [
        Row(
            name,
            Spread(tuple(values)),
            Spread(tuple(p95[name])) if name in p95 else None,
            wer.get(name),
            latency[name],
        )
        for name, values in rtfx.items()
    ]
    return rows, dict(short)


def joined(clips: Sequence[Clip], seconds: float, rng: random.Random) -> Tensor:
    """So many seconds of the clips, in another order each time that they come again.

    Stretches between pauses are then of many lengths, as in a recording of one speech.
    """
    wanted = int(seconds * SAMPLE_RATE)
    parts: list[Tensor] = []
    while sum(map(len, parts)) < wanted:
        parts += [clip.samples for clip in rng.sample(list(clips), len(clips))]
    return torch.cat(parts)[:wanted]


def measure_long(
    contest: Contest,
    clips: Sequence[Clip],
    seconds: float,
    peers_python: Path | None,
    peers: Sequence[System],
    threads: int,
    folder: Path,
) -> str:
    """RTFx on one long recording, joined from clips: the recognizer and the batched peers."""
    samples = joined(clips, seconds, contest.rng)

    def own() -> dict[str, float]:
        taken = {}
        for name, options in (("recognizer", OPTIONS), ("recognizer, `beam_size=1`", GREEDY)):
            started = time.perf_counter()
            contest.recognizer.transcribe([samples], options)
            taken[name] = time.perf_counter() - started
        return taken

    turns = [own()]
    rows = []
    if peers_python:
        clip = Clip("long", clips[0].utterance, samples, "")
        bench = Bench([clip], 1, peers_python, folder)
        for system in peers:
            if system.batched:
                value = bench.rtfx(bench.run(system, threads, whole=False), short=False)
                assert value is not None
                turns.append(own())  # the machine's speed drifts: before and after each peer
                before, after = turns[-2:]
                shares = [2 * seconds / (before[name] + after[name]) / value for name in after]
                rows.append(f"| {system.name} | {value:.1f} | {shares[0]:.2f} | {shares[1]:.2f} |")
    ours = [
        f"| {name} | {Spread(tuple(seconds / turn[name] for turn in turns))} | | |"
        for name in turns[0]
    ]
    return "\n".join(
        [
            f"| one recording of {seconds:g} s | RTFx | Steno's to it | with `beam_size=1` |",
            "|---|---|---|---|",
            *ours,
            *rows,
        ]
    )


def main() -> None:
    """Measure, print, and fill a document, where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.serving",
        description="Serving speed against its limits and its rivals.",
    )
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--limit", type=int, default=48, help="clips, evenly from all lengths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores")
    parser.add_argument("--workers", type=int, help="of Steno; as shipped if not given")
    parser.add_argument("--batch", type=int, help="of Steno; as shipped if not given")
    parser.add_argument("--probes", type=int, default=PROBES, help="of a 10 s clip under load")
    parser.add_argument("--long", type=float, help="also one recording of so many seconds")
    parser.add_argument(
        "--peers-python", type=Path, help="Python with the peers' packages; without it no peers"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="their weights")
    parser.add_argument("--output", type=Path, help="folder for serving.json and serving.svg")
    parser.add_argument("--document", type=Path, help="page whose tables to fill")
    args = parser.parse_args()
    if args.probes < PROBE_TURNS:
        parser.error(f"--probes is {args.probes}; it must be at least {PROBE_TURNS}")
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"Beware: the machine is busy (load {load:.1f}).", file=sys.stderr)
    # Before anything starts: all that follows inherits the cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    torch.set_num_threads(args.threads)
    all_clips = read_clips(args.manifest, None)
    clips = draw_evenly(all_clips, args.limit)
    started_at = datetime.now(UTC)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="serving-")))
        store = Setting(workers=args.workers, batch=args.batch).build(args.checkpoint, folder)
        servers = {
            STENO: stack.enter_context(TorchServe(store)),
        }
        for name, kept, threads in ((OFFICIAL, "official", None), (SHARED, "shared", 1)):
            built = build_official(args.checkpoint, folder / kept, threads)
            servers[name] = stack.enter_context(TorchServe(built))
        workers = {name: wait_for_all_workers(server) for name, server in servers.items()}
        contest = Contest(clips, args.checkpoint, servers)
        bench, peers = None, peer_systems(args.peers)
        if args.peers_python:
            bench = Bench(clips, len(clips), args.peers_python, folder)
        rows, short = measure(contest, bench, peers, args.rounds, args.threads)
        probe = contest.probe(args.probes)
        limit = next(row.rtfx.median for row in rows if row.name == NETWORK)
        texts = {
            "serving": table(rows, limit),
            "goals": goals(rows, short, float(np.quantile(probe.shares, 0.95))),
        }
        if args.long:
            texts["long"] = measure_long(
                contest, all_clips, args.long, args.peers_python, peers, args.threads, folder
            )
    facts: dict[str, Any] = {
        "command": f"python -m tests.benchmarks.serving {shlex.join(sys.argv[1:])}",
        "date": started_at.date().isoformat(),
        "machine": str(Machine.here(torch.device("cpu"))),
        "dtype": contest.recognizer.dtype,
        "clips": len(clips),
        "audio_seconds": contest.audio_seconds,
        "rounds": args.rounds,
        "workers": workers,
        "load_before": load,
    }
    texts["conditions"] = (
        f"{len(clips)} clips, {contest.audio_seconds / 60:.1f} minutes, rounds: {args.rounds}."
        f" Measured on {facts['date']} with `{facts['command']}` on {facts['machine']};"
        f" {facts['dtype']}; workers: {workers[STENO]} of Steno, {workers[OFFICIAL]} of the other."
        f" Before it the machine's load was {load:.1f}."
    )
    print("\n\n".join(texts.values()))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        entries = [
            {
                "name": row.name,
                "rtfx": row.rtfx.rounds,
                "p95": row.p95 and row.p95.rounds,
                "wer": row.wer,
            }
            for row in rows
        ]  # fmt: skip
        found = {"rows": entries, "short": short, "probe": asdict(probe)}
        content = json.dumps({**facts, **found}, indent=2)
        write_text(args.output / "serving.json", content + "\n")
        draw(rows, args.output / "serving.svg")
    if args.document:
        for name, text in texts.items():
            fill(args.document, name, text)


if __name__ == "__main__":
    main()

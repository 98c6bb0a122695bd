"""The steps of a retraining, one function each. The components call these and nothing else.

A step gets addresses and values, reads and writes folders, and says what it found.
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from kfp_pipelines import pods, record
from kfp_pipelines.data import (
    ARCHIVES,
    check_usable,
    fetch_prepared,
    list_speech,
    prepare_shard,
    read_listing,
    scratch,
    shard_names,
    write_archives,
)
from kfp_pipelines.fit import FitTask, fetch_checkpoint, fit, fit_on_nodes
from kfp_pipelines.kubernetes_serving import KubernetesServing
from kfp_pipelines.local_serving import LocalServing
from kfp_pipelines.record import ROLL_OUT
from kfp_pipelines.rollout import PROBE, Outcome, Probe, RollOutError, Serving, go_back, roll_out
from kfp_pipelines.train_job import Nodes
from store import Conflict, ModelStore, Release, StoreConfig, StoreError, open_objects
from store.objects import sha256_of
from training.average import average
from training.card import release_card
from training.confidence import ConfidenceConfig, ConfidenceError
from training.confidence import run as calibrate
from training.corpus_statistics import SplitName
from training.curve import draw_curve
from training.evaluate import EvaluateConfig, evaluate_in_turns
from training.gate import HYPOTHESES, METRICS, Decision, GateConfig, decide
from training.manifest import read_json_lines, read_manifest
from training.package import ARCHIVE_NAME, build_package
from training.prepare import UNDECODABLE, Criteria, check_apart, check_speakers, summary
from training.results import WrittenForm
from training.scoring import ScoringError
from training.shards import Listing, Shard, join

ROOT = Path(__file__).resolve().parent.parent
NOTHING = ""
PRODUCTION, SHIPPED = "production", "shipped"
# Two numbers are fitted to each mode: more clips would only take longer.
CALIBRATION_CLIPS = 2_000
# Below these a corpus is bare: written English has some 12 marks in 100 words. So many texts tell it.
BARE_MARKS_PER_100_WORDS, BARE_CAPITALS, TEXTS = 2.0, 0.1, 10_000
# The release of `python -m kfp_pipelines run`, see local_serving; on a cluster there is none.
LOCAL_RELEASE = "STENO_LOCAL_RELEASE"


class StepError(ValueError):
    """A step cannot do what it was asked; the message says what would be right."""


def store_config(url: str) -> StoreConfig:
    """The store at an address; everything else about it comes from boto3's variables."""
    try:
        return StoreConfig(url=url)
    except ValidationError as error:
        raise StepError("; ".join(problem["msg"] for problem in error.errors())) from None


def commit() -> str:
    """The code's commit: STENO_COMMIT, which the image sets, else what git says."""
    if named := os.environ.get("STENO_COMMIT"):
        return named
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


# --- Data ----------------------------------------------------------------------------------------


def ingest(
    store: str,
    manifest: str,
    test_manifest: str,
    shares: Mapping[SplitName, float],
    shards: int,
    max_unusable: float,
    punctuate: bool,
    run: str,
) -> list[str]:
    """Look at what there is to learn from; the names of the parts to prepare.

    Args:
        max_unusable: share of each manifest's lines.
        punctuate: whether training gives bare texts capitals and punctuation.

    Raises:
        StepError: shares or shards are not possible, which else would show after hours.
        DataError: too much of a manifest cannot be used.
        PreparationError: there are too few speakers to split, or one is in both manifests.
    """
    if shards < 1:
        raise StepError(f"data_shards is {shards}; give at least 1")
    if not 0 <= max_unusable <= 1:
        raise StepError(f"data_max_unusable is {max_unusable}; give a share from 0 to 1")
    asked = {"data_dev_share": shares["dev"]}
    if not test_manifest:
        asked["data_test_share"] = shares["test"]
    for name, share in asked.items():
        if not 0 < share < 1:
            raise StepError(f"{name} is {share}; give a share between 0 and 1, such as 0.05")
    if sum(asked.values()) >= 1:
        told = " and ".join(f"{name} {share}" for name, share in asked.items())
        raise StepError(f"{told} leave nothing to train on; their sum must be below 1")
    config = store_config(store)
    objects = open_objects(config)
    listing = list_speech(objects, manifest, test_manifest, config)
    check_usable(listing, max_unusable)
    splits: dict[SplitName, float] = {"train": 1 - sum(asked.values()), "dev": shares["dev"]}
    if not test_manifest:
        splits["test"] = shares["test"]
    speakers = {r.speaker for r in listing.recordings if r.use == "split"}
    check_speakers(speakers, splits)
    check_apart(
        {
            "data_manifest": speakers,
            "data_test_manifest": {r.speaker for r in listing.recordings if r.use == "test"},
        },
        "take their recordings out of one of the two",
    )
    hours = sum(entry.duration for entry in listing.recordings) / 3600
    record.note(
        objects,
        run,
        "ingest",
        f"{len(listing.recordings)} recordings, {hours:.2f} h, {len(listing.rejected)} unusable"
        f" lines; listing {listing.fingerprint[:12]}{'' if punctuate else _bare_texts(listing)}",
        listing=listing.fingerprint,
    )
    return shard_names(listing, shards)


def _bare_texts(listing: Listing) -> str:
    """A warning if the decoder would unlearn capitals or punctuation; else nothing."""
    texts = [r.written or r.text for r in listing.recordings if r.use == "split"]
    form = WrittenForm.of(texts[:: 1 + len(texts) // TEXTS])
    if (
        form.marks_per_100_words >= BARE_MARKS_PER_100_WORDS
        and form.starts_with_capital >= BARE_CAPITALS
    ):
        return ""
    return (
        f". Beware: the texts have {form.marks_per_100_words:.1f} marks in 100 words, and"
        f" {form.starts_with_capital:.0%} begin with a capital; a model that is trained on them unlearns"
        " what they lack. Set train_punctuate to true"
    )


def prepare(store: str, shard: str, criteria: dict[str, Any], output: Path) -> None:
    """Check and pack one part; its list is written to `output`."""
    config = store_config(store)
    found = prepare_shard(open_objects(config), shard, _criteria(criteria), pods.cpus(), config)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(found.model_dump_json(), encoding="utf-8")
    accepted, refused = (sum(1 for _ in entries) for entries in (found.accepted(), found.refused()))
    print(f"{accepted} recordings accepted, {refused} refused")


def merge(
    store: str,
    shards: Sequence[Path],
    criteria: dict[str, Any],
    shares: Mapping[SplitName, float],
    seed: int,
    max_unusable: float,
    output: Path,
) -> str:
    """Join the parts and split them by speaker.

    Args:
        shares: of dev and test; the rest is for training. Test's counts where no test manifest
            was given.
        max_unusable: share of each manifest's lines, recordings that cannot be decoded included.

    Returns:
        The data's fingerprint.
    """
    parts = [Shard.model_validate_json(path.read_text(encoding="utf-8")) for path in shards]
    listing = read_listing(open_objects(store_config(store)), parts[0].listing)
    refused = (found for part in parts for found in part.refused())
    undecodable = [(place, entry.reason) for place, entry in refused if entry.kind == UNDECODABLE]
    check_usable(listing, max_unusable, undecodable)
    split: dict[SplitName, float] = {"dev": shares["dev"]}
    if len(listing.sources) == 1:
        split["test"] = shares["test"]
    split = {"train": 1 - sum(split.values()), **split}
    output.mkdir(parents=True, exist_ok=True)
    prepared = join(listing, parts, output, split=split, seed=seed, criteria=_criteria(criteria))
    write_archives(output / ARCHIVES, listing, parts)
    print(summary(prepared, output))
    return prepared.statistics.fingerprint


def data_page(prepared: Path) -> str:
    """The prepared data in Markdown: figures of each split, and what was refused and why."""
    statistics = json.loads((prepared / "statistics.json").read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {split['utterances']} | {split['hours']:.2f} | {split['speakers']} |"
        for name, split in statistics["splits"].items()
    ]
    entries = read_json_lines(prepared / "rejected.jsonl")
    lines = []
    for entry in entries[:50]:
        what = entry.get("audio_filepath") or f"{entry['source']}, line {entry['line']}"
        lines.append(f"- {what}: {entry['kind']}, {entry['reason']}")
    more = [f"- and {len(entries) - 50} more, see rejected.jsonl"] if len(entries) > 50 else []
    return "\n".join(
        [
            "# Data",
            "",
            f"Fingerprint `{statistics['fingerprint']}`.",
            "",
            "| split | utterances | hours | speakers |",
            "|---|---|---|---|",
            *rows,
            "",
            f"{len(entries)} refused.",
            "",
            *lines,
            *more,
            "",
        ]
    )


def _criteria(values: dict[str, Any]) -> Criteria:
    try:
        return Criteria(**values)
    except ValidationError as error:
        raise StepError(f"the criteria are refused: {_problems(error)}") from None


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, p['loc'])) or 'together'}: {p['msg']}" for p in error.errors()
    )


# --- Models --------------------------------------------------------------------------------------


def choose_models(store: str, start: str, run: str) -> tuple[str, str]:
    """Which version to start from, and which one serves; empty if none does."""
    models = ModelStore.open(store_config(store))
    current = models.production()
    serving = current.version if current else NOTHING
    chosen = start if start != PRODUCTION else serving or SHIPPED
    if chosen != SHIPPED:
        models.release(chosen)  # a wrong name ends the run before anything is computed
    record.note(
        models.objects,
        run,
        "models",
        f"training starts from {chosen}; {serving or 'nothing'} is in production",
        start=chosen,
        production=serving,
    )
    return chosen, serving


def size_pods(
    gpus: Mapping[str, int], cpus_per_gpu: int, memory_per_gpu: str, scratch_size: str
) -> dict[str, str]:
    """What pods with GPUs ask for: NAME_gpus, NAME_cpus and NAME_memory of each.

    Raises:
        PodError: a value is none that a pod can have.
    """
    pods.amount("scratch_size", scratch_size)  # else that would show when the data are prepared
    return {
        f"{name}_{what}": value
        for name, count in gpus.items()
        for what, value in pods.size(count, cpus_per_gpu, memory_per_gpu)._asdict().items()
    }


def check_gpus(asked: int) -> None:
    """Refuse to go on without the GPUs that the pod asked for; here none are asked for in earnest.

    Raises:
        PodError: torch sees fewer.
    """
    if LOCAL_RELEASE not in os.environ:
        pods.check_gpus(asked)


def train(
    store: str,
    prepared: Path,
    start: str,
    recipe: str,
    overrides: dict[str, JsonValue],
    punctuate: bool,
    int8: bool,
    nodes: dict[str, Any],
    model: Path,
) -> str:
    """Train, resuming what an earlier attempt left; the checkpoint is written to `model`.

    Args:
        nodes: see train_job.Nodes. Above one, a TrainJob does the work; else this process, with one
            process for each GPU that it sees.

    Returns:
        The learning curve as an HTML page.
    """
    try:
        where = Nodes(**nodes)
    except ValidationError as error:
        raise StepError(f"the nodes to train on are refused: {_problems(error)}") from None
    names = ("train.jsonl", "dev.jsonl", ARCHIVES)
    task = FitTask(
        store=store_config(store),
        prepared={name: (prepared / name).read_text(encoding="utf-8") for name in names},
        start=start,
        recipe=recipe,
        overrides=overrides,
        punctuate=punctuate,
        processes=where.count * where.gpus if where.count > 1 else max(1, pods.gpus()),
        commit=commit(),
    )
    work = scratch() / "steno-training" / task.name
    work.mkdir(parents=True, exist_ok=True)
    try:
        if where.count > 1:
            run = fit_on_nodes(task, work, where)
        else:
            if LOCAL_RELEASE not in os.environ:
                pods.check_scratch(work, where.scratch)
            run = fit(task, work)
        average([run / "best"], model, int8=int8)
        _calibrate(task.store, prepared, model, work)
        return curve_page(run / "log.jsonl")
    finally:
        shutil.rmtree(work)


def _calibrate(config: StoreConfig, prepared: Path, model: Path, work: Path) -> None:
    """Let the new weights' confidences mean what they say; without enough speech they stay raw."""
    dev = work / "data" / "dev.jsonl"
    if not dev.exists():  # other pods have trained, or an earlier attempt
        fetch_prepared(open_objects(config), prepared, work / "data", ("dev",))
    told = ConfidenceConfig(
        checkpoint=model,
        manifest=dev,
        output=work / "confidence",
        fit=True,
        limit=CALIBRATION_CLIPS,
    )
    try:
        calibrate(told, command="the step `train` of the pipeline")
    except (ConfidenceError, ScoringError) as error:
        print(f"confidences are not calibrated: {error}", flush=True)


def curve_page(log: Path) -> str:
    """The learning curve as a page that needs nothing but itself."""
    picture = base64.b64encode(draw_curve(log)).decode()
    judged = [line for line in read_json_lines(log) if line["kind"] == "dev"]
    rows = "".join(
        f"<tr><td>{line['epoch']}</td><td>{line['wer_accurate']:.2%}</td>"
        f"<td>{line['wer_fast']:.2%}</td><td>{line['looped']:.1%}</td></tr>"
        for line in judged
    )
    return (
        "<!doctype html><meta charset=utf-8><title>Learning curve</title>"
        "<style>body{font:16px system-ui;margin:2rem}td,th{padding:.2rem .8rem;text-align:right}"
        "</style><h1>Learning curve</h1>"
        f'<img alt="Loss and WER by step" style="max-width:100%" src="data:image/png;base64,'
        f'{picture}"><table><tr><th>epoch</th><th>dev WER accurate</th><th>dev WER fast</th>'
        f"<th>looped</th></tr>{rows}</table>"
    )


# --- Comparison ----------------------------------------------------------------------------------


def evaluate_both(
    store: str, prepared: Path, candidate: Path, production: str, output: Path
) -> dict[str, float]:
    """Measure the candidate and what is in production on the same recordings, side by side.

    `output` gets `candidate/`, `production/` (if there is one) and `probe/`.

    Returns:
        The figures for the run's page, by name.
    """
    config = store_config(store)
    work = scratch() / f"steno-evaluation-{os.getpid()}"
    try:
        manifest = fetch_prepared(open_objects(config), prepared, work, ("test",))["test"]
        models = {"candidate": candidate}
        if production:
            models["production"] = fetch_checkpoint(
                ModelStore.open(config), production, work / "production"
            )
        figures: dict[str, float] = {}
        evaluations = evaluate_in_turns(
            [
                EvaluateConfig(checkpoint=checkpoint, manifest=manifest, output=output / name)
                for name, checkpoint in models.items()
            ],
            command="the step `evaluate` of the pipeline",
        )
        for name, measured in zip(models, evaluations, strict=True):
            print(f"{name}\n{measured.table()}", flush=True)
            for system in measured.systems:
                scores = system.scores
                figures |= {
                    f"{name}_{system.name}_wer_percent": round(100 * scores.wer.value, 3),
                    f"{name}_{system.name}_cer_percent": round(100 * scores.cer.value, 3),
                    f"{name}_{system.name}_audio_seconds_per_second": round(system.speed.rtfx, 2),
                }
        _choose_probe(output / "candidate", manifest, output / "probe")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return figures


def report_page(evaluation: Path) -> str:
    """The report of an evaluation, or that there was none."""
    report = evaluation / "report.html"
    if report.is_file():
        return report.read_text(encoding="utf-8")
    return (
        "<!doctype html><meta charset=utf-8><p>Nothing was in production when this run began.</p>"
    )


def _choose_probe(evaluation: Path, manifest: Path, output: Path) -> None:
    """Take the recording that the candidate understood best, the longest of equals."""
    lines = read_json_lines(evaluation / HYPOTHESES)
    heard = [line for line in lines if line["system"] == "accurate" and line["words"]]
    best = min(heard, key=lambda line: (line["errors"] / line["words"], -line["words"]))
    utterances, _ = read_manifest(manifest)
    recording = next(
        u.audio_filepath
        for u in utterances
        if Path(os.path.relpath(u.audio_filepath, manifest.parent)).as_posix() == best["id"]
    )
    output.mkdir(parents=True)
    shutil.copyfile(recording, output / recording.name)
    probe = Probe(recording=recording.name, text=best["hypothesis"])
    (output / PROBE).write_text(probe.model_dump_json(indent=2), encoding="utf-8")


def gate(
    store: str, evaluation: Path, production: str, settings: dict[str, Any], run: str
) -> Decision:
    """Decide whether the candidate may replace what is in production."""
    try:
        config = GateConfig(**settings)
    except ValidationError as error:
        raise StepError(f"the gate's settings are refused: {_problems(error)}") from None
    decision = decide(
        evaluation / "candidate", evaluation / "production" if production else None, config
    )
    record.note(
        open_objects(store_config(store)),
        run,
        "gate",
        decision.reason,
        deploy=decision.deploy,
        candidate_wer=decision.candidate_wer,
        production_wer=decision.production_wer,
    )
    return decision


# --- Release -------------------------------------------------------------------------------------


def package(
    checkpoint: Path, evaluation: Path, verdict: str, lineage: Mapping[str, str], output: Path
) -> str:
    """Pack the candidate with its card; `output` gets asr.mar. The card is returned."""
    metrics = json.loads((evaluation / "candidate" / METRICS).read_text(encoding="utf-8"))
    card = release_card(checkpoint, metrics, verdict, lineage)
    work = scratch() / f"steno-package-{os.getpid()}"
    try:
        shutil.copytree(checkpoint, work)
        (work / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        built = build_package(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"asr.mar, {built.path.stat().st_size / 1e6:.1f} MB, sha256 {built.sha256}")
    return card


def publish(
    store: str, archive: Path, evaluation: Path, fingerprint: str, start: str, run: str
) -> str:
    """Publish the archive as the next version; a repeated publish finds the version it made."""
    models = ModelStore.open(store_config(store))
    metrics = json.loads((evaluation / "candidate" / METRICS).read_text(encoding="utf-8"))
    release = _publish(
        models,
        archive / ARCHIVE_NAME,
        metrics=metrics,
        data_fingerprint=fingerprint,
        commit=commit(),
        parent=None if start == SHIPPED else start,
    )
    record.note(
        models.objects,
        run,
        "publish",
        f"published as {release.version}, {release.size / 1e6:.1f} MB, trained on data"
        f" {fingerprint[:12]}, from {start}",
        version=release.version,
        data_fingerprint=fingerprint,
        sha256=release.sha256,
    )
    return release.version


ATTEMPTS = 20


def _publish(models: ModelStore, archive: Path, **values: Any) -> Release:
    """Publish under the first free of v1, v2, ...; somebody else may be doing the same."""
    sha256 = sha256_of(archive)
    number = 0
    for _ in range(ATTEMPTS):
        releases = [models.release(version) for version in models.versions()]
        for release in releases:
            if release.sha256 == sha256:
                return release
        numbers = [int(r.version[1:]) for r in releases if r.version[1:].isdecimal()]
        # Not the same again: under its name may lie an archive of a publish that was interrupted.
        number = max([number, *numbers]) + 1
        try:
            return models.publish(archive, version=f"v{number}", **values)
        except Conflict as error:
            print(f"trying the next number: {error}", flush=True)
    raise StepError(f"no free version was found in {ATTEMPTS} attempts")


class ServingSettings(BaseModel):
    """The serving release on the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str
    deployment: str
    url: str
    timeout: float = 1800.0


def put_into_production(
    store: str, version: str, expected: str, evaluation: Path, settings: dict[str, Any], run: str
) -> str:
    """Roll the version out, and back if it does not do its work; the summary is returned.

    Raises:
        RollOutError: the version does not serve.
    """
    models = ModelStore.open(store_config(store))
    before = record.notes(models.objects, run).get(ROLL_OUT)
    found: dict[str, JsonValue] = before.values if before else {"state": "serving"}
    if before and found.get("state") not in ("not started", "serving", "going back"):
        # Kubeflow repeats a step that failed: what was taken back must not be put in again.
        raise RollOutError(f"{before.text} This run does not try again; start another.")
    serving = _serving(settings, models)

    def note(outcome: Outcome) -> str:
        text = f"{outcome.state}: {outcome.reason}."
        if outcome.heard is not None:
            text = f"{version} is in production and wrote “{outcome.heard.strip()}” for the probe."
        record.note(models.objects, run, ROLL_OUT, text, **asdict(outcome))
        return text

    try:
        if found["state"] == "going back":  # and was killed at it
            former, reason = str(found["serves"]), str(found["reason"])
            outcome = go_back(models, serving, version, former, reason)
        else:
            probe = evaluation / "probe"
            outcome = roll_out(models, serving, version, expected or None, probe, note)
    except Conflict as error:
        text = f"{version} was not rolled out: {error}. Start another run, which compares with it."
        record.note(models.objects, run, ROLL_OUT, text)
        raise RollOutError(text) from None
    text = note(outcome)
    if outcome.state != "serving":
        raise RollOutError(text)
    return text


def _serving(settings: dict[str, Any], models: ModelStore) -> Serving:
    if status := os.environ.get(LOCAL_RELEASE):
        return LocalServing(Path(status), models)
    try:
        return KubernetesServing(**ServingSettings(**settings).model_dump())
    except ValidationError as error:
        raise StepError(f"the serving release is not named: {_problems(error)}") from None


def notify(store: str, run: str, state: str, error: str, webhook: str) -> str:
    """Sum the run up, whatever happened; the summary in Markdown is returned."""
    try:
        found = record.notes(open_objects(store_config(store)), run)
    except (StepError, StoreError) as unreadable:  # perhaps what the run failed of
        unread = f"What the steps found cannot be read: {unreadable}"
        text = f"# Steno retraining\n\n{state}: {error}\n\n{unread}\n\nRun `{run}`.\n"
    else:
        text = record.summary(found, record.Ending(state=state, error=error), run)
    print(text, flush=True)
    if webhook and (problem := record.tell(webhook, text)):
        print(f"the summary was not delivered: {problem}", flush=True)
    return text

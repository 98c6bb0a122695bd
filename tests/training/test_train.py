"""Training learns, can be killed at any moment, and says what it was told wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from model.checkpoint import load_checkpoint
from tests.processes import started
from tests.random_checkpoint import make_random_checkpoint
from training import train as module
from training.config import Optimizer, TrainConfig
from training.data import SpeechDataset, collate
from training.losses import JointLoss, Teacher
from training.manifest import read_manifest
from training.train import build_optimizer, learning_rate, train

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "manifest.jsonl"
# One thread adds up in one order: two runs can be equal to the bit.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
}
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return make_random_checkpoint(tmp_path_factory.mktemp("start") / "start")


@pytest.fixture(scope="module")
def dev(tmp_path_factory) -> Path:
    """One clip: the tests of training look at the machinery, not at the figure."""
    utterance = min(read_manifest(FIXTURES)[0], key=lambda u: u.duration)
    path = tmp_path_factory.mktemp("dev") / "dev.jsonl"
    entry = {
        "audio_filepath": str(utterance.audio_filepath),
        "duration": utterance.duration,
        "text": utterance.text,
    }
    path.write_text(json.dumps(entry))
    return path


def command(start: Path, dev: Path, output: Path, *more: str) -> list[str]:
    return [
        "-m", "training.train", "--train", str(FIXTURES), "--dev", str(dev), "--init", str(start),
        "--output", str(output), "--epochs", "3", "--batches.padded_seconds", "16",
        "--batches.workers", "0", "--precision", "float32", "--save_every", "2",
        "--optimizer.learning_rate", "1e-3", "--optimizer.scales", '{"ctc.": 2}',
        "--optimizer.warmup_steps", "2", *more,
    ]  # fmt: skip


def logged(folder: Path, kind: str = "train") -> list[dict[str, float]]:
    path = folder / "log.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_a_killed_run_resumes_to_the_same_weights(start, dev, tmp_path, accumulate):
    more = ("--batches.accumulate", accumulate)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    commands = [[sys.executable, *command(start, dev, f, *more)] for f in (whole, killed)]
    with started(*commands, env=ENVIRONMENT) as (unbroken, process):
        deadline = time.monotonic() + 300
        while len(logged(killed)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.wait()
        steps = len(logged(killed))
        subprocess.run([*commands[1], "--resume", "true"], check=True, env=ENVIRONMENT)
        assert unbroken.wait(300) == 0
    assert 3 <= steps < len(logged(whole))
    one, two = (load_file(folder / "last" / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    # The log of the resumed run tells each step once, with the losses of the unbroken one.
    expected, resumed = (
        [(line["step"], line["loss_total"]) for line in logged(folder)]
        for folder in (whole, killed)
    )
    assert resumed == expected
    assert logged(killed, "dev")[-1]["wer_accurate"] == logged(whole, "dev")[-1]["wer_accurate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--losses.ctc", "0", "--optimizer.scales", "{}"],
        ["--batches.accumulate", "2"],
    ],
    ids=["both losses", "one loss", "two batches a step"],
)
def test_several_processes_train_together(start, dev, tmp_path, more):
    output = tmp_path / "run"
    script = tmp_path / "each.py"  # a training whose processes tell the weights that they end with
    script.write_text(EACH_PROCESS)
    _, _, *words = command(start, dev, output, *more)
    subprocess.run(
        [sys.executable, *TWO_PROCESSES, str(script), *words], check=True, env=ENVIRONMENT
    )
    assert len(logged(output, "dev")) == 3
    first, *more_steps, last = (line["loss_total"] for line in logged(output))
    assert last < first or len(more_steps) == 1  # three steps are too few to tell
    load_checkpoint(output / "best")
    one, two = (torch.load(output / f"process{n}.pt", weights_only=True) for n in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    before = load_checkpoint(start).network.state_dict()
    assert any(not torch.equal(before[name], one[name]) for name in one)


EACH_PROCESS = """
import sys

import torch

from training import train as module

loop = module.loop

def told(run, *rest):
    loop(run, *rest)
    place = run.config.output / f"process{run.processes.rank}.pt"
    torch.save(run.loss.network.state_dict(), place)

module.loop = told
sys.exit(module.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "workers"), [("torchrun", "1"), ("the second process", "0")], ids=["all", "second"]
)
def test_several_processes_that_were_stopped_resume_to_the_same_weights(
    start, dev, tmp_path, who, workers
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = ("--epochs", "5", "--save_every", "1000", "--batches.workers", workers)
    launch = [sys.executable, *TWO_PROCESSES]
    commands = [[*launch, *command(start, dev, folder, *more)] for folder in (whole, stopped)]
    with started(*commands, env=ENVIRONMENT) as (unbroken, process):
        deadline = time.monotonic() + 300
        while len(logged(stopped)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be stopped"
        if who == "torchrun":  # which hands it on to whole groups of processes
            process.send_signal(signal.SIGTERM)
        else:  # as on a node that is not the first's
            (second,) = (
                child
                for child in psutil.Process(process.pid).children()
                if child.environ().get("RANK") == "1"
            )
            second.send_signal(signal.SIGTERM)
        assert process.wait(120) != 0
        steps = len(logged(stopped))
        progress = torch.load(stopped / "state.pt", weights_only=True)["progress"]
        assert progress["step"] == steps  # not a step is lost
        subprocess.run([*commands[1], "--resume", "true"], check=True, env=ENVIRONMENT)
        assert unbroken.wait(300) == 0
    assert 3 <= steps < len(logged(whole))
    one, two = (load_file(folder / "last" / "model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)
    expected, done = ([line["step"] for line in logged(folder)] for folder in (whole, stopped))
    assert done == expected


@pytest.fixture
def quick(start, tmp_path) -> TrainConfig:
    """Two epochs of three utterances of noise, a batch each, without anything that is drawn."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for number, text in enumerate(("some words", "said", "in noise")):
        seconds = 1.0 + number / 10
        noise = np.random.default_rng(number).uniform(-0.1, 0.1, int(seconds * 16_000))
        soundfile.write(folder / f"{number}.wav", noise, 16_000)
        line = {"audio_filepath": f"{number}.wav", "duration": seconds, "text": text}
        lines.append(json.dumps(line) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "dev.jsonl").write_text(lines[0])
    shutil.copytree(start, tmp_path / "init")
    return TrainConfig(
        train=[folder / "train.jsonl"],
        dev=folder / "dev.jsonl",
        init=tmp_path / "init",
        output=tmp_path / "run",
        epochs=2,
        save_every=1000,
        precision="float32",
        batches={"workers": 0, "padded_seconds": 1.2},
        optimizer={"learning_rate": 1e-3, "scales": {}, "warmup_steps": 0},
        augmentation={
            "speeds": (1.0,),
            "noise_probability": 0,
            "silence_probability": 0,
            "time_masks": 0,
            "frequency_masks": 0,
        },
    )


def changed(config: TrainConfig, **values: object) -> TrainConfig:
    return TrainConfig(**{**config.model_dump(), **values})


@pytest.mark.parametrize(("select", "epoch"), [("accurate", 2), ("fast", 1), ("mean", 3)])
def test_best_is_what_dev_likes_most_and_last_the_newest(quick, monkeypatch, select, epoch):
    accurate, fast = [0.5, 0.3, 0.4], [0.2, 0.45, 0.25]
    figures = [
        {"wer_accurate": a, "wer_fast": f, "looped": 0.0}
        for a, f in zip(accurate, fast, strict=True)
    ]
    left = iter(figures)
    monkeypatch.setattr(module, "validate", lambda *_: next(left))
    best = train(changed(quick, epochs=3, select=select))
    kept = load_checkpoint(best).config.provenance
    assert kept["dev"] == figures[epoch - 1]
    assert kept["steps"] == 3 * epoch
    assert load_checkpoint(quick.output / "last").config.provenance["dev"] == figures[2]


def test_what_is_kept_is_the_running_average_and_each_part_has_its_rate(quick, monkeypatch):
    """The average follows its formula from step to step."""
    step, found, expected = module.step, {}, {}

    def watched(run, progress):
        if not expected:
            expected.update({n: v.clone() for n, v in run.loss.network.state_dict().items()})
        norm, rate = step(run, progress)
        assert {g["lr"] / rate for g in run.optimizer.param_groups} == {1.0, 2.0}
        decay = min(0.3, progress.step / (9 + progress.step))
        for name, value in run.loss.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
        found.update(run.loss.network.state_dict())
        return norm, rate

    monkeypatch.setattr(module, "step", watched)
    optimizer = {"learning_rate": 1e-2, "scales": {"ctc.": 2}, "warmup_steps": 0, "ema_decay": 0.3}
    train(changed(quick, optimizer=optimizer))
    kept = load_checkpoint(quick.output / "last").network.state_dict()
    assert all(torch.allclose(kept[n], v, atol=1e-3) for n, v in expected.items())
    assert not all(torch.allclose(kept[n], v, atol=1e-3) for n, v in found.items())


def test_accumulated_batches_are_a_step_of_their_mean(quick, tmp_path, monkeypatch):
    """Three batches, two for a step: the last step of an epoch is of one."""

    def gradients(accumulate: int) -> list[dict[str, torch.Tensor]]:
        found = []
        step = module.step

        def watched(run, progress):
            parameters = run.loss.network.named_parameters()
            found.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})
            return step(run, progress)

        still = {"learning_rate": 1e-30, "scales": {}}  # each gradient is that of the start
        batches = {"workers": 0, "padded_seconds": 1.2, "accumulate": accumulate}
        output = tmp_path / f"run of {accumulate}"
        with monkeypatch.context() as patch:
            patch.setattr(module, "step", watched)
            train(changed(quick, output=output, epochs=1, batches=batches, optimizer=still))
        return found

    first, second, third = gradients(1)
    together, alone = gradients(2)
    for name in first:
        mean = (first[name] + second[name]) / 2
        torch.testing.assert_close(together[name], mean, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(alone[name], third[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("place", ["validate", "save_checkpoint"])
def test_a_run_that_is_killed_as_it_judges_repeats_no_step(quick, tmp_path, monkeypatch, place):
    """With `save_checkpoint`, the figures are in the log already, and must not stand there twice."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    whole = changed(quick, output=tmp_path / "whole")
    train(whole)
    with monkeypatch.context() as patch:
        patch.setattr(module, place, killed)
        with pytest.raises(KeyboardInterrupt):
            train(quick)
    progress = torch.load(quick.output / "state.pt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (0, 3, 3)
    train(changed(quick, resume=True))
    for kind in ("train", "dev"):
        lines = [logged(folder, kind) for folder in (whole.output, quick.output)]
        steps = [[line["step"] for line in found] for found in lines]
        assert steps[0] == steps[1]
    one, two = (load_file(c.output / "last" / "model.safetensors") for c in (whole, quick))
    torch.testing.assert_close(one, two)


def test_sigterm_ends_a_run_that_judges(quick, monkeypatch):
    validate = module.validate

    def asked(*arguments: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "validate", asked)
        with pytest.raises(SystemExit) as ended:
            train(quick)
    assert ended.value.code == 128 + signal.SIGTERM
    assert logged(quick.output, "dev") == []
    progress = torch.load(quick.output / "state.pt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["batch"]) == (0, 3)


def test_a_run_goes_on_where_its_files_lie_elsewhere(quick, tmp_path):
    train(quick)
    there = tmp_path / "another" / "machine"
    there.mkdir(parents=True)
    for name in ("corpus", "init", "run"):
        (tmp_path / name).rename(there / name)
    (there / "corpus").rename(there / "data")
    train(
        changed(
            quick,
            train=[there / "data" / "train.jsonl"],
            dev=there / "data" / "dev.jsonl",
            init=there / "init",
            output=there / "run",
            resume=True,
        )
    )
    assert len(logged(there / "run", "dev")) == 2  # it was done


@pytest.mark.parametrize("what", ["a text of dev", "the start's weights", "the teacher"])
def test_a_run_with_other_contents_under_the_same_names_is_not_resumed(quick, tmp_path, what):
    teacher = shutil.copytree(quick.init, tmp_path / "teacher")
    taught = changed(quick, epochs=1, teacher=teacher, losses={"matching": 1.0})
    train(taught)
    other = make_random_checkpoint(tmp_path / "other", seed=1)
    if what == "a text of dev":
        quick.dev.write_text(quick.dev.read_text().replace("some", "other"))
    else:
        changes = quick.init if what == "the start's weights" else teacher
        shutil.copyfile(other / "model.safetensors", changes / "model.safetensors")
    with pytest.raises(ValueError, match="other data, another start"):
        train(changed(taught, resume=True))


def batch_of(checkpoint, n=2, augment=None):
    """The shortest fixtures, as training sees them."""
    config = TrainConfig(train=["a"], dev="b", init="c", output="d").augmentation
    plain = config.model_copy(update={"speeds": (1.0,), "noise_probability": 0.0})
    utterances = sorted(read_manifest(FIXTURES)[0], key=lambda u: u.duration)[:n]
    dataset = SpeechDataset(utterances, augment or plain, 1)
    items = [dataset[(0, i)] for i in range(n)]
    return collate(items, checkpoint.tokenizer, checkpoint.characters), plain


def test_learns_a_batch_by_heart(start):
    torch.manual_seed(0)
    checkpoint = load_checkpoint(start)
    batch, plain = batch_of(checkpoint)
    config = Optimizer(learning_rate=3e-3, scales={})
    weights = TrainConfig(train=["a"], dev="b", init="c", output="d").losses
    loss = JointLoss(checkpoint.network, checkpoint.features, weights, plain, None).eval()
    optimizer = build_optimizer(checkpoint.network, config)
    first = loss(batch)
    for _ in range(60):
        parts = loss(batch)
        optimizer.zero_grad()
        parts["total"].backward()
        optimizer.step()
    assert parts["attention"] < 0.6 * first["attention"]
    assert parts["ctc"] < 0.6 * first["ctc"]


def taught_by_itself(start, utterances, *, padded):
    """A batch, and the loss of a student whose teacher has the same weights."""
    checkpoint = load_checkpoint(start)
    teacher = Teacher(load_checkpoint(start), torch.device("cpu"), padded=padded)
    weights = TrainConfig(train=["a"], dev="b", init="c", output="d").losses.model_copy(
        update={"matching": 1.0, "distillation": 1.0}
    )
    batch, plain = batch_of(checkpoint, utterances)
    return batch, JointLoss(checkpoint.network, checkpoint.features, weights, plain, teacher).eval()


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_padded_audio(start):
    """On a clip of nearly 30 s both hear the same; on a short one they do not."""
    batch, loss = taught_by_itself(start, 1, padded=True)
    with torch.no_grad():
        short = loss(batch)
        repeats = int(29.5 * 16_000 / batch.clean.shape[1]) + 1
        batch.clean = batch.noisy = batch.clean.repeat(1, repeats)[:, : int(29.4 * 16_000)]
        batch.samples[:] = batch.clean.shape[1]
        long = loss(batch)
    assert long["matching"] < 0.5 * short["matching"]
    assert long["distillation"] < short["distillation"]


def test_a_teacher_at_the_audio_s_own_length_hears_what_its_student_would_without_noise(start):
    batch, loss = taught_by_itself(start, 2, padded=False)
    noise = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = loss(batch)
        batch.noisy = batch.clean + 0.1 * noise
        noisy = loss(batch)
    for part in ("matching", "distillation"):
        assert float(same[part]) == pytest.approx(0, abs=1e-6)
        # The random network's tokens hardly depend on what it hears.
        assert float(noisy[part]) > 1e-5


def test_a_batch_gives_the_mean_loss_of_its_utterances(start):
    checkpoint = load_checkpoint(start)
    weights = TrainConfig(train=["a"], dev="b", init="c", output="d").losses
    both, plain = batch_of(checkpoint, 2)
    loss = JointLoss(checkpoint.network, checkpoint.features, weights, plain, None).eval()
    with torch.no_grad():
        together = loss(both)
        utterances = sorted(read_manifest(FIXTURES)[0], key=lambda u: u.duration)[:2]
        alone = []
        for i in range(2):
            item = SpeechDataset(utterances, plain, 1)[(0, i)]
            one = collate([item], checkpoint.tokenizer, checkpoint.characters)
            alone.append(
                (loss(one), int(one.label_lengths.sum()), int((one.targets != -100).sum()))
            )
    ctc = sum(parts["ctc"] * labels for parts, labels, _ in alone) / sum(n for _, n, _ in alone)
    attention = sum(p["attention"] * n for p, _, n in alone) / sum(n for _, _, n in alone)
    assert float(together["ctc"]) == pytest.approx(float(ctc), rel=1e-3)
    assert float(together["attention"]) == pytest.approx(float(attention), rel=1e-3)


def test_names_freeze_parts(start):
    network = load_checkpoint(start).network
    scales = {"decoder.": 0.0, "decoder.layer_norm.": 0.5, "ctc.": 20.0}
    optimizer = build_optimizer(network, Optimizer(scales=scales))
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert "decoder.embed_tokens.weight" in frozen
    assert "decoder.layer_norm.weight" not in frozen
    assert not any(n.startswith(("encoder.", "ctc.")) for n in frozen)
    assert {group["scale"] for group in optimizer.param_groups} == {0.5, 1.0, 20.0}
    assert all(
        group["weight_decay"] == 0.0
        for group in optimizer.param_groups
        for p in group["params"]
        if p.ndim == 1
    )


def test_a_name_that_fits_nothing_is_an_error(start):
    with pytest.raises(ValueError, match="optimizer.scales names 'ctx.'"):
        build_optimizer(load_checkpoint(start).network, Optimizer(scales={"ctx.": 1}))


def test_the_learning_rate_warms_up_and_decays():
    config = Optimizer(learning_rate=1.0, warmup_steps=10, final_share=0.1)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--losses.cct", "1"], "losses.cct"),
        (["--epochs", "0"], "greater than"),
        (["--optimizer.ema_decay", "1.5"], "less than"),
        (["--precision", "float8"], "float8"),
        (["--init", "/nowhere"], "config.json"),
        (["--dev", "/nowhere.jsonl"], "nowhere.jsonl"),
        (["--batches.padded_seconds", "2"], "padded_seconds is 2"),
        (["--losses.matching", "1"], "need a teacher"),
        (["--losses.ctc", "0", "--losses.attention", "0"], "all weights are 0"),
        (["--augmentation.speeds", "[]"], "at least 1"),
        (["--batches.longest_seconds", "30"], "takes at most 29.5 s"),
    ],
)
def test_a_wrong_word_ends_it_at_once_with_a_message(start, dev, tmp_path, more, message):
    result = subprocess.run(
        [sys.executable, *command(start, dev, tmp_path / "run", *more)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_loss_that_is_no_number_stops_the_run(start, dev, tmp_path):
    config = TrainConfig(
        train=[FIXTURES],
        dev=dev,
        init=start,
        output=tmp_path / "run",
        epochs=1,
        optimizer={"learning_rate": 1e30, "scales": {}, "warmup_steps": 0, "clip_norm": 1e30},
        batches={"workers": 0, "padded_seconds": 16},
        precision="float32",
    )
    with pytest.raises(FloatingPointError, match="with a learning rate below 1e"):
        train(config)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert all(bool(weights.isfinite().all()) for weights in state["network"].values())


def test_a_run_with_other_data_is_not_resumed(start, dev, tmp_path):
    """The batches would no longer be those that the state counts."""
    common = {
        "dev": dev,
        "init": start,
        "output": tmp_path / "run",
        "epochs": 1,
        "batches": {"workers": 0, "padded_seconds": 16},
        "precision": "float32",
    }
    train(TrainConfig(train=[FIXTURES], **common))
    with pytest.raises(ValueError, match="other data"):
        train(TrainConfig(train=[dev], resume=True, **common))


def test_figures_reach_a_push_gateway_and_a_missing_one_does_no_harm(start, dev, tmp_path):
    received: list[tuple[str, str]] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    common = {
        "train": [FIXTURES],
        "dev": dev,
        "init": start,
        "epochs": 1,
        "batches": {"workers": 0, "padded_seconds": 16},
        "optimizer": {"scales": {}},
        "precision": "float32",
    }
    gateway = f"http://127.0.0.1:{server.server_port}"
    try:
        train(TrainConfig(output=tmp_path / "run", push_gateway=gateway, **common))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    path, body = received[-1]
    assert path == "/metrics/job/steno-training/run/run"
    values = {f.name: f.samples[0].value for f in text_string_to_metric_families(body)}
    assert values["steno_training_step"] == len(logged(tmp_path / "run"))
    (figures,) = logged(tmp_path / "run", "dev")
    assert values["steno_training_dev_wer_accurate"] == pytest.approx(figures["wer_accurate"])

    train(TrainConfig(output=tmp_path / "lonely", push_gateway=gateway, **common))
    assert logged(tmp_path / "lonely", "dev")


def test_a_run_is_not_written_over(start, dev, tmp_path):
    config = TrainConfig(train=[FIXTURES], dev=dev, init=start, output=tmp_path)
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="holds a run; go on with --resume true"):
        train(config)

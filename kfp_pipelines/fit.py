"""The training of one run, wherever it runs: a pipeline's step, or the pods of a TrainJob.

    python -m kfp_pipelines.fit --store s3://bucket/prefix --task KEY --work FOLDER

The task lies in the store. `--work` then holds `start/`, `data/` and `run/`. With several GPUs or
nodes, torchrun starts this module again for each (`--worker`). A run that was stopped anywhere goes
on from what the store keeps.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from kfp_pipelines.data import fetch_prepared
from kfp_pipelines.pods import check_gpus
from kfp_pipelines.train_job import Nodes, Value, run_train_job
from kfp_pipelines.training_state import KeptRun
from store import Conflict, ModelStore, StoreConfig, StoreError, open_objects, patiently
from store.objects import sha256_of
from training.config import TrainConfig
from training.punctuate import punctuate
from training.termination import Termination
from training.train import train

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "training" / "configs"
SHIPPED = "shipped"
# Of a training's settings, where its files lie: no two machines have them at the same place.
PLACES = {"train", "dev", "init", "output", "resume"}
# Left by SIGTERM, as training.termination does.
STOPPED = 143


class FitError(ValueError):
    """The training cannot be done as asked; the message says what would be right."""


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 of files of the repository and of their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def fingerprint_of_code() -> str:
    """Fingerprint of the sources that a training runs."""
    folders = (ROOT / "model", ROOT / "training")
    sources = [path for folder in folders for path in folder.glob("*.py")]
    return fingerprint([*sources, ROOT / "kfp_pipelines" / "fit.py"])


class FitTask(BaseModel):
    """All that a training depends on; its name in the store is made of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: StoreConfig
    prepared: dict[str, str]
    """The prepared corpus' small files, by name: manifests and archives."""
    start: str
    """The version to start from, or `shipped`."""
    recipe: str
    overrides: dict[str, JsonValue] = Field(default_factory=dict)
    """Values of training/config.py, nested or with dots, that replace the recipe's."""
    punctuate: bool = False
    processes: int = Field(default=1, ge=1)
    commit: str
    code: str = Field(default_factory=fingerprint_of_code)
    """Of who made the task. A commit does not say what an image was built of."""

    @cached_property
    def key(self) -> str:
        """Where the store keeps the run: the same for the same training, and for no other.

        Raises:
            FitError: as `config`.
        """
        content = self.model_dump(mode="json", exclude={"store", "recipe", "overrides"})
        content["settings"] = self.config(Path()).model_dump(mode="json", exclude=PLACES)
        if self.start == SHIPPED:
            content["weights"] = fingerprint((ROOT / "model" / "shipped").iterdir())
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"runs/training/{digest}.tar"

    @cached_property
    def name(self) -> str:
        """The key's digest, short enough for a folder or a job."""
        return Path(self.key).stem[:16]

    def keep(self) -> str:
        """Put the task into the store, for other machines; its key there."""
        key = self.key.replace(".tar", ".json")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "task.json"
            path.write_text(self.model_dump_json(), encoding="utf-8")
            open_objects(self.store).upload(path, key)
        return key

    def config(self, work: Path) -> TrainConfig:
        """The training's configuration.

        Raises:
            FitError: there is no such recipe, or a value is refused.
        """
        path = RECIPES / f"{self.recipe}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
            raise FitError(f"there is no recipe {self.recipe!r}; there are {known}")
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, value in self.overrides.items():
            _override(values, name.split("."), value)
        values |= {
            "train": [work / "data" / ("written.jsonl" if self.punctuate else "train.jsonl")],
            "dev": work / "data" / "dev.jsonl",
            "init": work / "start",
            "output": work / "run",
            "resume": True,
        }
        try:
            return TrainConfig(**values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, p['loc'])) or 'together'}: {p['msg']}" for p in error.errors()
            )
            raise FitError(f"the training's settings are refused: {problems}") from None


def _override(values: dict[str, Any], names: list[str], value: Any) -> None:
    name, *rest = names
    if rest:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise FitError(
                f"the training's settings have no {'.'.join(names)}: {name} is {inner!r}"
            )
        _override(inner, rest, value)
    elif isinstance(value, Mapping) and isinstance(values.get(name), dict) and name != "scales":
        for inner, content in value.items():
            _override(values[name], [inner], content)
    else:
        values[name] = value


def fetch_checkpoint(store: ModelStore, version: str, folder: Path) -> Path:
    """Bring a version's checkpoint to `folder`; `shipped` is the one of this repository.

    Raises:
        StoreError: there is no such version, or it cannot be fetched.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if version == SHIPPED:
        shutil.copytree(ROOT / "model" / "shipped", folder)
        return folder
    folder.mkdir(parents=True)
    archive = store.fetch(version, folder)
    with zipfile.ZipFile(archive) as content:
        for name in content.namelist():
            if name.startswith("checkpoint/"):
                (folder / Path(name).name).write_bytes(content.read(name))
    archive.unlink()
    return folder


def fit(task: FitTask, work: Path) -> Path:
    """Train, or go on with it, or find that it is done.

    Returns:
        The folder of the run.

    Raises:
        FitError: the settings are refused.
        PodError: a TrainJob's pod lacks GPUs.
        StoreError: the store cannot be worked with.
        subprocess.CalledProcessError: the training failed; its output says why.
    """
    config = task.config(work)
    kept = KeptRun(open_objects(task.store), task.key, config.output)
    shutil.rmtree(config.output, ignore_errors=True)
    if kept.fetch():
        print("an earlier attempt was kept; going on from there", flush=True)
    if kept.finished:
        return config.output
    if (asked := os.environ.get("PET_NPROC_PER_NODE", "")).isdecimal():
        check_gpus(int(asked))
    prepared = work / "prepared"
    prepared.mkdir(parents=True, exist_ok=True)
    for name, content in task.prepared.items():
        (prepared / name).write_text(content, encoding="utf-8")
    fetch_prepared(open_objects(task.store), prepared, work / "data", ("train", "dev"))
    fetch_checkpoint(ModelStore.open(task.store), task.start, work / "start")
    if task.punctuate:
        _punctuate(task, work)
    (work / "task.json").write_text(task.model_dump_json(), encoding="utf-8")
    if "PET_NNODES" in os.environ:
        # Once more: where a node was taken away, others may have handed on a newer state meanwhile, and
        # all must go on from the same one.
        kept.fetch()
    worker = ["-m", "kfp_pipelines.fit", "--worker"]
    worker += ["--task", str(work / "task.json"), "--work", str(work)]
    # torchrun reads PET_* too, by which a TrainJob's pods find each other.
    if task.processes > 1 or "PET_NNODES" in os.environ:
        launch = ["-m", "kfp_pipelines.torchrun"]
        if "PET_NNODES" not in os.environ:
            launch += ["--standalone", "--nproc-per-node", str(task.processes)]
        worker = [*launch, *worker]
    _run([sys.executable, *worker])
    if os.environ.get("PET_NODE_RANK", "0") == "0":
        kept.finish()
    return config.output


def _punctuate(task: FitTask, work: Path) -> None:
    """Hear the corpus once; later attempts, and other nodes, must learn from the very same texts."""
    objects, key = open_objects(task.store), task.key.replace(".tar", ".written.jsonl")
    written = work / "data" / "written.jsonl"
    if not objects.keys(key):
        # Prepare has read each recording.
        punctuate(work / "start", work / "data" / "train.jsonl", written, strict=True)
        with suppress(Conflict):  # another node was first
            patiently(lambda: objects.upload(written, key, create=True))
    patiently(lambda: objects.download(key, written))


def _run(command: list[str]) -> None:
    """Run a command; SIGTERM is handed on to it, and its end is waited for."""
    process = subprocess.Popen(command, cwd=ROOT)
    with Termination(process.terminate):
        code = process.wait()
    if code:
        raise subprocess.CalledProcessError(code, command)


def work_as_one(task: FitTask, work: Path) -> None:
    """One process of the training; the first keeps the run in the store."""
    config = task.config(work)
    kept = KeptRun(open_objects(task.store), task.key, config.output)
    kept.start()
    try:
        train(config, saved=kept.save)
    finally:
        kept.stop()


def read_task(store: str | None, name: str) -> FitTask:
    """Return the task under a key of the store, or in a file."""
    if store is None:
        return FitTask.model_validate_json(Path(name).read_text(encoding="utf-8"))
    return FitTask.model_validate_json(open_objects(StoreConfig(url=store)).read(name).data)


def fit_on_nodes(task: FitTask, work: Path, nodes: Nodes) -> Path:
    """Have a TrainJob do the training, and take the run from the store.

    Raises:
        TrainJobError: the job failed.
        FitError: the settings are refused, or the job left no finished run.
    """
    config = task.config(work)
    kept = KeptRun(open_objects(task.store), task.key, config.output)

    def finished() -> bool:
        return kept.fetch() and kept.finished

    if finished():
        return config.output
    values: dict[str, Value] = {
        "NAME": f"steno-{task.name}",
        "STORE": task.store.url,
        "TASK": task.keep(),
        "COMMIT": task.commit,
        **nodes.values,
    }
    made = run_train_job(values)
    done = finished()
    if not (made or done):  # a job of long ago, whose run the store has dropped since
        run_train_job(values, anew=True)
        done = finished()
    if not done:
        raise FitError(f"TrainJob {values['NAME']} ended without a finished run at {task.key}")
    return config.output


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 1 when the training could not be done."""
    parser = argparse.ArgumentParser(prog="python -m kfp_pipelines.fit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--store", help="where the task is kept; without it, in a file")
    parser.add_argument("--task", required=True, help="key, or file, of what the pipeline wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder on a fast disk")
    parser.add_argument("--worker", action="store_true", help="as one of torchrun's processes")
    options = parser.parse_args(arguments)
    try:
        task = read_task(options.store, options.task)
        if options.worker:
            work_as_one(task, options.work)
        else:
            fit(task, options.work)
    except subprocess.CalledProcessError as error:
        return int(error.returncode) if error.returncode > 0 else STOPPED
    except (ValueError, StoreError, OSError, FloatingPointError) as error:
        print(f"fit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The pipeline's steps as Kubeflow components. A body only calls its function in `steps`.

A body is sent to the pod as text: whatever it needs is imported inside it, from the image's repository.
"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output

# Built from the Dockerfile's target `train`; `compile --image` and `submit --image` take another.
IMAGE = "steno-train:0.1.0"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    store: str,
    manifest: str,
    test_manifest: str,
    dev_share: float,
    test_share: float,
    shards: int,
    max_unusable: float,
    punctuate: bool,
    run: str,
) -> list:
    """Read the manifests, check that every recording is there, and name the parts to prepare."""
    from kfp_pipelines import steps

    return steps.ingest(
        store,
        manifest,
        test_manifest,
        {"dev": dev_share, "test": test_share},
        shards,
        max_unusable,
        punctuate,
        run,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(store: str, shard: str, criteria: dict, part: Output[Dataset]) -> None:
    """Decode, check and pack one part of the recordings."""
    from pathlib import Path

    from kfp_pipelines import steps

    steps.prepare(store, shard, criteria, Path(part.path))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge(
    store: str,
    parts: Input[list[Dataset]],
    criteria: dict,
    dev_share: float,
    test_share: float,
    seed: int,
    max_unusable: float,
    data: Output[Dataset],
    summary: Output[Markdown],
) -> str:
    """Join the parts, split them by speaker, and fingerprint the data."""
    from pathlib import Path

    from kfp_pipelines import steps

    fingerprint = steps.merge(
        store,
        [Path(part.path) for part in parts],
        criteria,
        {"dev": dev_share, "test": test_share},
        seed,
        max_unusable,
        Path(data.path),
    )
    data.metadata["fingerprint"] = fingerprint
    Path(summary.path).write_text(steps.data_page(Path(data.path)), encoding="utf-8")
    return fingerprint


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def choose_models(store: str, start: str, run: str) -> NamedTuple(
    "Models", [("start", str), ("production", str)]
):
    """Find out what is in production, and which version to start from."""
    from typing import NamedTuple

    from kfp_pipelines import steps

    return NamedTuple("Models", [("start", str), ("production", str)])(
        *steps.choose_models(store, start, run)
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def size_pods(
    train_gpus: int,
    evaluate_gpus: int,
    cpus_per_gpu: int,
    memory_per_gpu: str,
    scratch_size: str,
) -> NamedTuple(
    "Sizes",
    [
        ("train_gpus", str),
        ("train_cpus", str),
        ("train_memory", str),
        ("evaluate_gpus", str),
        ("evaluate_cpus", str),
        ("evaluate_memory", str),
    ],
):
    """Work out what the pods with GPUs ask for, as text: of a number Kubeflow makes no resource."""
    from typing import NamedTuple

    from kfp_pipelines import steps

    gpus = {"train": train_gpus, "evaluate": evaluate_gpus}
    found = steps.size_pods(gpus, cpus_per_gpu, memory_per_gpu, scratch_size)
    return NamedTuple("Sizes", [(name, str) for name in found])(**found)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    store: str,
    data: Input[Dataset],
    start: str,
    recipe: str,
    epochs: int,
    learning_rate: float,
    overrides: dict,
    punctuate: bool,
    int8: bool,
    gpus: int,
    cpus_per_gpu: int,
    memory_per_gpu: str,
    scratch: str,
    nodes: int,
    gpus_per_node: int,
    node_selector: dict,
    model: Output[Model],
    learning_curve: Output[HTML],
) -> None:
    """Train; an attempt that was preempted is gone on with."""
    from pathlib import Path

    from kfp_pipelines import steps

    steps.check_gpus(gpus)
    told = {"epochs": epochs, "optimizer.learning_rate": learning_rate}
    chosen = {**{name: value for name, value in told.items() if value}, **overrides}
    page = steps.train(
        store,
        Path(data.path),
        start,
        recipe,
        chosen,
        punctuate,
        int8,
        {
            "count": nodes,
            "selector": node_selector,
            "gpus": gpus_per_node,
            "cpus_per_gpu": cpus_per_gpu,
            "memory_per_gpu": memory_per_gpu,
            "scratch": scratch,
        },
        Path(model.path),
    )
    model.metadata.update(start=start, data_fingerprint=data.metadata.get("fingerprint", ""))
    Path(learning_curve.path).write_text(page, encoding="utf-8")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    store: str,
    data: Input[Dataset],
    candidate: Input[Model],
    production: str,
    gpus: int,
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    production_report: Output[HTML],
) -> None:
    """Measure the candidate and what is in production on the same recordings."""
    from pathlib import Path

    from kfp_pipelines import steps

    steps.check_gpus(gpus)
    folder = Path(evaluation.path)
    figures = steps.evaluate_both(store, Path(data.path), Path(candidate.path), production, folder)
    for name, value in figures.items():
        metrics.log_metric(name, value)
    for name, page in (("candidate", report), ("production", production_report)):
        Path(page.path).write_text(steps.report_page(folder / name), encoding="utf-8")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    store: str,
    evaluation: Input[Artifact],
    production: str,
    min_improvement: float,
    confidence: float,
    max_group_loss: float,
    max_fast_loss: float,
    max_written_form_loss: float,
    max_slowdown: float,
    highest_wer: float,
    run: str,
    decision: Output[Markdown],
) -> bool:
    """Decide whether the candidate may replace what is in production."""
    from pathlib import Path

    from kfp_pipelines import steps

    settings = {
        "min_improvement": min_improvement,
        "confidence": confidence,
        "max_group_loss": max_group_loss,
        "max_fast_loss": max_fast_loss,
        "max_written_form_loss": max_written_form_loss,
        "max_slowdown": max_slowdown,
        "highest_wer": highest_wer,
    }
    found = steps.gate(store, Path(evaluation.path), production, settings, run)
    Path(decision.path).write_text(found.markdown(), encoding="utf-8")
    decision.metadata["reason"] = found.reason
    return found.deploy


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def package(
    candidate: Input[Model],
    evaluation: Input[Artifact],
    decision: Input[Markdown],
    fingerprint: str,
    start: str,
    archive: Output[Model],
    model_card: Output[Markdown],
) -> None:
    """Pack the candidate and its model card into asr.mar."""
    from pathlib import Path

    from kfp_pipelines import steps

    lineage = {"data": fingerprint, "start": start, "code": steps.commit()}
    card = steps.package(
        Path(candidate.path),
        Path(evaluation.path),
        decision.metadata["reason"],
        lineage,
        Path(archive.path),
    )
    archive.metadata.update(lineage)
    Path(model_card.path).write_text(card, encoding="utf-8")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish(
    store: str,
    archive: Input[Model],
    evaluation: Input[Artifact],
    fingerprint: str,
    start: str,
    run: str,
    release: Output[Model],
) -> str:
    """Publish the archive in the model store, as a version that never changes."""
    from pathlib import Path

    from kfp_pipelines import steps

    version = steps.publish(
        store, Path(archive.path), Path(evaluation.path), fingerprint, start, run
    )
    release.metadata.update(version=version, data_fingerprint=fingerprint, parent=start)
    Path(release.path).write_text(f"{store} {version}\n", encoding="utf-8")
    return version


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def roll_out(
    store: str,
    version: str,
    expected: str,
    evaluation: Input[Artifact],
    namespace: str,
    deployment: str,
    url: str,
    run: str,
) -> str:
    """Put the version into production, probe it, and go back by itself if it does not work."""
    from pathlib import Path

    from kfp_pipelines import steps

    settings = {"namespace": namespace, "deployment": deployment, "url": url}
    return steps.put_into_production(store, version, expected, Path(evaluation.path), settings, run)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def notify(
    store: str,
    run: str,
    summary: Output[Markdown],
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Sum the run up, whatever happened, and post it to the address in STENO_WEBHOOK if there is one."""
    import os
    from pathlib import Path

    from kfp_pipelines import steps

    webhook = os.environ.get("STENO_WEBHOOK", "")
    text = steps.notify(store, run, status.state, status.error_message or "", webhook)
    Path(summary.path).write_text(text, encoding="utf-8")

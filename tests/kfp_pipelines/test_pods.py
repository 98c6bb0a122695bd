"""What pods ask for, and what they do without it."""

import os
from pathlib import Path

import pytest

from kfp_pipelines import pods, steps
from kfp_pipelines.pods import PodError


def test_a_pod_grows_with_its_gpus_and_is_never_smaller_than_with_one() -> None:
    assert pods.size(8, 4, "24Gi") == ("8", "32", "192Gi")
    assert pods.size(1, 3, "14000M") == ("1", "3", "14000M")
    assert pods.size(0, 4, "24Gi") == ("0", "4", "24Gi")


def test_each_pod_of_the_pipeline_is_sized_by_its_own_gpus() -> None:
    assert steps.size_pods({"train": 4, "evaluate": 0}, 6, "30Gi", "300Gi") == {
        "train_gpus": "4",
        "train_cpus": "24",
        "train_memory": "120Gi",
        "evaluate_gpus": "0",
        "evaluate_cpus": "6",
        "evaluate_memory": "30Gi",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1, 4, "24Gi", "20Gi"), "-1 GPUs"),
        ((1, 0, "24Gi", "20Gi"), "with 0 CPUs for each"),
        ((1, 4, "24GB", "20Gi"), "memory_per_gpu is '24GB'; give an amount such as 24Gi"),
        ((1, 4, "24", "20Gi"), "memory_per_gpu is '24'"),
        ((1, 4, "24Gi", "much"), "scratch_size is 'much'"),
    ],
)
def test_what_no_pod_can_have_is_refused_before_anything_is_prepared(
    values: tuple[int, int, str, str], message: str
) -> None:
    gpus, *others = values
    with pytest.raises(PodError, match=message):
        steps.size_pods({"train": gpus}, *others)


def test_a_pod_works_with_the_cpus_that_it_asked_for_and_not_with_the_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert pods.cpus() == 64
    monkeypatch.setenv(pods.CPUS, "4")
    assert pods.cpus() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert pods.cpus() == 2


def test_a_pod_without_the_gpus_that_it_asked_for_does_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pods, "gpus", lambda: 1)
    steps.check_gpus(1)
    with pytest.raises(PodError, match="asked for 2 GPUs and torch sees 1; is the image"):
        steps.check_gpus(2)
    monkeypatch.setenv(steps.LOCAL_RELEASE, "serving.json")
    steps.check_gpus(2)


def test_a_disk_that_would_be_full_in_the_midst_of_a_training_is_refused(tmp_path: Path) -> None:
    pods.check_scratch(tmp_path, "1M")
    with pytest.raises(PodError, match="GiB free and scratch_size is 999999T; choose nodes"):
        pods.check_scratch(tmp_path, "999999T")

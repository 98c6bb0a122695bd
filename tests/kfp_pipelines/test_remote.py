"""Runs are started, scheduled and looked at on a server that speaks the v2beta1 API."""

from collections.abc import Iterator

import kfp_server_api as api
import pytest

from kfp_pipelines.__main__ import main
from kfp_pipelines.remote import Remote, RemoteError
from tests.kfp_pipelines.pipelines_api import TOKEN, PipelinesApi

GIVEN = ["--store", "s3://models/steno", "data_manifest=s3://speech/all.jsonl"]


@pytest.fixture
def kubeflow() -> Iterator[PipelinesApi]:
    with PipelinesApi() as running:
        yield running


def at(kubeflow: PipelinesApi, token: str = TOKEN) -> list[str]:
    return ["--host", kubeflow.host, "--token", token]


def test_submit_starts_a_run_with_the_whole_pipeline_and_the_parameters(
    kubeflow: PipelinesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    image = ["--image", "registry.example/steno-train:7"]
    words = ["submit", *at(kubeflow), *image, *GIVEN, "train_epochs=3", "train_int8=false"]
    assert main(words) == 0
    (run,) = kubeflow.runs.values()
    assert run.runtime_config.parameters == {
        "store": "s3://models/steno",
        "data_manifest": "s3://speech/all.jsonl",
        "train_epochs": 3,
        "train_int8": False,
    }
    executors = run.pipeline_spec["pipeline_spec"]["deploymentSpec"]["executors"]
    images = {executor["container"]["image"] for executor in executors.values()}
    assert images == {"registry.example/steno-train:7"}
    assert "kubernetes" in run.pipeline_spec["platform_spec"]["platforms"]
    assert kubeflow.experiments[run.experiment_id].display_name == "steno"
    assert f"{kubeflow.host}/#/runs/details/{run.run_id}" in capsys.readouterr().out


def test_schedule_makes_a_recurring_run_that_never_runs_twice_at_once(
    kubeflow: PipelinesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", *at(kubeflow), "--cron", "0 0 3 * * 0", *GIVEN]) == 0
    (recurring,) = kubeflow.recurring.values()
    assert recurring.trigger.cron_schedule.cron == "0 0 3 * * 0"
    assert (recurring.max_concurrency, recurring.no_catchup) == ("1", True)
    assert recurring.mode == "ENABLE"
    assert recurring.experiment_id in kubeflow.experiments
    assert recurring.recurring_run_id in capsys.readouterr().out


def test_one_experiment_holds_all(kubeflow: PipelinesApi) -> None:
    others = {
        f"other-{n}": {"experiment_id": f"other-{n}", "display_name": f"{n}"} for n in range(250)
    }
    for key, values in others.items():
        kubeflow.experiments[key] = api.V2beta1Experiment(**values)
    for _ in range(2):
        main(["submit", *at(kubeflow), *GIVEN])
    assert len(kubeflow.experiments) == 251
    assert len(kubeflow.runs) == 2


def test_a_schedule_in_cron_s_own_five_fields_is_explained(
    kubeflow: PipelinesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", *at(kubeflow), "--cron", "0 3 * * 0", *GIVEN]) == 1
    assert "must have six fields: second, minute" in capsys.readouterr().err
    assert not kubeflow.recurring


def test_status_shows_a_run_with_its_steps_in_order(
    kubeflow: PipelinesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["submit", *at(kubeflow), *GIVEN, "--name", "weekly"])
    (name,) = kubeflow.runs
    kubeflow.state, kubeflow.error = "FAILED", "train ended with 1"
    kubeflow.steps = [("Ingest", "SUCCEEDED"), ("Train", "FAILED")]
    capsys.readouterr()
    assert main(["status", *at(kubeflow), name]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["weekly", "FAILED", name],
        ["Ingest", "SUCCEEDED"],
        ["Train", "FAILED"],
        ["train", "ended", "with", "1"],
    ]


def test_status_without_a_run_lists_the_newest(
    kubeflow: PipelinesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", *at(kubeflow)]) == 0
    assert "there are no runs" in capsys.readouterr().out
    main(["submit", *at(kubeflow), *GIVEN])
    capsys.readouterr()
    assert main(["status", *at(kubeflow)]) == 0
    assert "RUNNING  run-0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["submit", *GIVEN], ["schedule", "--cron", "0 0 3 * * 0", *GIVEN], ["status"]]
)
def test_a_wrong_token_is_told_and_not_shown(
    kubeflow: PipelinesApi, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    command, *rest = words
    assert main([command, *at(kubeflow, "expired-" + TOKEN), *rest]) == 1
    said = capsys.readouterr()
    assert "answered 401: the token is missing, wrong or expired" in said.err
    assert TOKEN not in said.err + said.out


@pytest.mark.parametrize(
    "words", [["submit", *GIVEN], ["schedule", "--cron", "0 0 3 * * 0", *GIVEN], ["status"]]
)
def test_a_host_that_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    command, *rest = words
    assert main([command, "--host", "http://127.0.0.1:1", *rest]) == 1
    assert "http://127.0.0.1:1 cannot be reached" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_told(
    kubeflow: PipelinesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", *at(kubeflow), "no-such-run"]) == 1
    assert "answered 404: there is nothing of this name" in capsys.readouterr().err


def test_a_host_without_a_scheme_is_refused() -> None:
    with pytest.raises(RemoteError, match="'kubeflow:8080' must begin with http"):
        Remote("kubeflow:8080")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data_manifest=a", "train_epoch=3"], "'train_epoch=3' is no parameter; there are"),
        (["data_manifest=a", "train_epochs=three"], "train_epochs=three: it takes a value such"),
        (["data_manifest=a", "train_epochs=true"], "train_epochs=true: it takes a value such"),
        (["data_manifest=a", "train_int8=1"], "train_int8=1: it takes a value such as true"),
        (["data_manifest=a", "data_criteria=[]"], "data_criteria=[]: it takes a value such as {"),
        (["train_epochs=3"], "data_manifest must be given"),
    ],
)
def test_wrong_parameters_never_reach_the_server(
    kubeflow: PipelinesApi, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["submit", *at(kubeflow), "--store", "s3://models", *words])
    assert message in capsys.readouterr().err
    assert not kubeflow.runs

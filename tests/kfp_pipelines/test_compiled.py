"""The YAML that is committed is the pipeline's, and asks the cluster for what the steps need."""

from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from kfp_pipelines.compiled import COMPILED, DOCUMENT, compile_yaml, parameter_table
from kfp_pipelines.pods import CPUS
from tests.helm.chart import REQUIRED, of_kind, render

CACHED = {"prepare", "merge", "train", "evaluate", "package"}


@pytest.fixture(scope="module")
def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    pipeline, platform = yaml.safe_load_all(compile_yaml())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.fixture(scope="module")
def tasks(documents: tuple[dict[str, Any], Any]) -> dict[str, Any]:
    """All tasks of the pipeline and the graphs within it, by name."""
    components = documents[0]["components"].values()
    graphs = [documents[0]["root"], *components]
    return {
        name: task
        for graph in graphs
        for name, task in graph.get("dag", {}).get("tasks", {}).items()
    }


def test_the_committed_yaml_is_in_step_with_the_code() -> None:
    assert COMPILED.read_text() == compile_yaml(), "run `python -m kfp_pipelines compile`"


def test_the_document_tells_every_parameter() -> None:
    assert parameter_table(compile_yaml()) in DOCUMENT.read_text()


def test_every_parameter_has_a_description(documents: tuple[dict[str, Any], Any]) -> None:
    inputs = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert [name for name, entry in inputs.items() if not entry.get("description")] == []
    needed = [name for name, entry in inputs.items() if "defaultValue" not in entry]
    assert sorted(needed) == ["data_manifest", "store"]


def test_by_default_the_release_of_the_install_commands_is_rolled_out_and_probed(
    documents: tuple[dict[str, Any], Any],
) -> None:
    inputs = documents[0]["root"]["inputDefinitions"]["parameters"]
    default = {name: entry.get("defaultValue") for name, entry in inputs.items()}
    release = render(REQUIRED, release="steno")
    deployments = [item["metadata"]["name"] for item in of_kind(release, "Deployment")]
    assert default["serving_deployment"] in deployments
    probed = urlsplit(default["serving_url"])
    service, namespace, *_ = str(probed.hostname).split(".")
    assert (namespace, probed.path) == (default["serving_namespace"], "/predictions/asr")
    (found,) = [item for item in of_kind(release, "Service") if item["metadata"]["name"] == service]
    assert (probed.port or 80) in [port["port"] for port in found["spec"]["ports"]]


def test_training_gets_its_gpu_its_nodes_shared_memory_and_further_attempts(
    documents: tuple[dict[str, Any], dict[str, Any]], tasks: dict[str, Any]
) -> None:
    pipeline, platform = documents
    container = pipeline["deploymentSpec"]["executors"]["exec-train"]["container"]
    assert container["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    # With it the pods of a TrainJob read the store.
    (account,) = platform["exec-train"]["fieldPathAsEnv"]
    assert account == {"name": "STENO_SERVICE_ACCOUNT", "fieldPath": "spec.serviceAccountName"}
    asked = platform["exec-train"]
    assert asked["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "train_node_selector" in str(asked["nodeSelector"])
    memory = next(mount for mount in asked["emptyDirMounts"] if mount["mountPath"] == "/dev/shm")
    assert memory["medium"] == "Memory"
    assert tasks["train"]["retryPolicy"]["maxRetryCount"] == 3
    # Kubeflow's default of an hour counts the attempts too, so a longer training was never repeated.
    assert tasks["train"]["retryPolicy"]["backoffMaxDuration"] == f"{30 * 86_400}s"


def test_steps_that_hold_the_whole_listing_have_the_memory_of_a_parameter(
    documents: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    for name in ("ingest", "prepare", "merge"):
        executor = documents[0]["deploymentSpec"]["executors"][f"exec-{name}"]
        resources = executor["container"]["resources"]
        for kind in ("resourceMemoryLimit", "resourceMemoryRequest"):
            assert "data_memory" in resources[kind], (name, kind)


def test_what_a_pod_asks_for_is_text_and_known_before_it_starts(
    documents: tuple[dict[str, Any], Any], tasks: dict[str, Any]
) -> None:
    """Kubeflow's driver takes a number for the empty text: the pod would get no GPU."""
    pipeline, _ = documents
    outputs = pipeline["components"]["comp-size-pods"]["outputDefinitions"]["parameters"]
    assert {output["parameterType"] for output in outputs.values()} == {"STRING"}
    for name in ("train", "evaluate"):
        resources = pipeline["deploymentSpec"]["executors"][f"exec-{name}"]["container"][
            "resources"
        ]
        asked = {
            "gpus": resources["accelerator"]["resourceCount"],
            "cpus": resources["resourceCpuRequest"],
            "memory": resources["resourceMemoryRequest"],
        }
        assert resources["resourceMemoryLimit"] == asked["memory"]
        for what, reference in asked.items():
            channel = f"pipelinechannel--size-pods-{name}_{what}"
            assert reference == f"{{{{$.inputs.parameters['{channel}']}}}}"
            given = tasks[name]["inputs"]["parameters"][channel]["taskOutputParameter"]
            assert given == {"producerTask": "size-pods", "outputParameterKey": f"{name}_{what}"}
        assert "size-pods" in tasks[name]["dependentTasks"]


def test_other_resources_refer_to_text_alone(documents: tuple[dict[str, Any], Any]) -> None:
    executors = documents[0]["deploymentSpec"]["executors"]
    asked = {name: str(found["container"].get("resources")) for name, found in executors.items()}
    assert {name for name, text in asked.items() if "$.inputs" in text} == {
        "exec-train",
        "exec-evaluate",
        "exec-ingest",
        "exec-prepare",
        "exec-merge",
    }
    inputs = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert inputs["data_memory"]["parameterType"] == "STRING"


def test_prepare_starts_as_many_processes_as_it_has_cpus(
    documents: tuple[dict[str, Any], Any],
) -> None:
    container = documents[0]["deploymentSpec"]["executors"]["exec-prepare"]["container"]
    (variable,) = [entry for entry in container["env"] if entry["name"] == CPUS]
    assert variable["value"] == container["resources"]["resourceCpuRequest"]


def test_every_graph_is_given_what_its_tasks_refer_to(
    documents: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """The compiler forgets a parameter that only a resource limit refers to."""
    pipeline, _ = documents
    for graph in [pipeline["root"], *pipeline["components"].values()]:
        given = graph.get("inputDefinitions", {}).get("parameters", {})
        for name, task in graph.get("dag", {}).get("tasks", {}).items():
            for value in task.get("inputs", {}).get("parameters", {}).values():
                if reference := value.get("componentInputParameter"):
                    assert reference in given, name


def test_what_a_loop_made_is_found_under_the_loops_name(tasks: dict[str, Any]) -> None:
    """Kubeflow records a loop under its display name, and looks for it by its key."""
    loops = {name: task for name, task in tasks.items() if "parameterIterator" in task}
    assert loops
    for name, task in loops.items():
        assert task["taskInfo"]["name"] == name


def test_every_step_finds_the_store_and_can_be_repeated(
    documents: tuple[dict[str, Any], dict[str, Any]], tasks: dict[str, Any]
) -> None:
    for executor, asked in documents[1].items():
        (secret, *_) = asked["secretAsEnv"]
        assert secret["secretNameParameter"]["runtimeValue"]["constant"] == "steno-store", executor
        assert secret["optional"] is True
    steps = {name for name, task in tasks.items() if f"exec-{name}" in documents[1]}
    assert {name for name in steps if "retryPolicy" not in tasks[name]} == set()


def test_the_webhooks_address_is_no_parameter_of_the_run(
    documents: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    pipeline, platform = documents
    assert not any("webhook" in name for name in pipeline["root"]["inputDefinitions"]["parameters"])
    found = {
        name: secret["secretNameParameter"]["runtimeValue"]["constant"]
        for name, asked in platform.items()
        for secret in asked["secretAsEnv"]
        if secret["optional"] and secret["keyToEnv"][0]["envVar"] == "STENO_WEBHOOK"
    }
    assert found == {"exec-notify": "steno-webhook"}


def test_what_depends_on_its_inputs_alone_is_cached_and_nothing_else(
    documents: tuple[dict[str, Any], dict[str, Any]], tasks: dict[str, Any]
) -> None:
    steps = {name for name in tasks if f"exec-{name}" in documents[1]}
    assert {n for n in steps if tasks[n].get("cachingOptions", {}).get("enableCache")} == CACHED


def test_no_step_installs_anything(documents: tuple[dict[str, Any], Any]) -> None:
    assert "pip install" not in str(documents[0])


def test_another_image_is_taken_for_all_steps(documents: tuple[dict[str, Any], Any]) -> None:
    pipeline = next(yaml.safe_load_all(compile_yaml("registry.example/train:7")))
    executors = pipeline["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {
        "registry.example/train:7"
    }

"""The retraining pipeline: one definition, for a cluster and for this machine."""

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

from kfp_pipelines import components

NAME = "steno-retraining"
# boto3's own variables, from the secret `steno-store`; where pods have a role, there need be none.
SECRET = "steno-store"
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
)
TOKEN_SECRET, TOKEN_KEY = "steno-token", "token"
# Not a parameter of the run: everybody who may see runs would see it, and could post.
WEBHOOK_SECRET, WEBHOOK_KEY = "steno-webhook", "url"
# So long after the first attempt began, attempts included, nothing is tried again.
# Kubeflow's default is an hour.
RETRY_FOR = "2592000s"
# Where the image looks for space (STENO_SCRATCH).
SCRATCH = "/scratch"
# Of Prepare, which starts as many processes (STENO_CPUS).
PREPARE_CPUS = "4"


def _small(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step that mostly waits. What it finds may change while its inputs do not: never cached."""
    task.set_caching_options(False)
    task.set_cpu_request("500m").set_memory_request("1Gi").set_memory_limit("4Gi")
    return _in_any_pod(task)


def _cached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step that always finds the same in the same inputs."""
    return task.set_caching_options(True)


Quantity = str | PipelineChannel


def _working(task: dsl.PipelineTask, cpus: Quantity, memory: Quantity) -> dsl.PipelineTask:
    task.set_cpu_request(cpus).set_memory_request(memory).set_memory_limit(memory)
    return _cached(_in_any_pod(task))


def _with_memory(task: dsl.PipelineTask, memory: str) -> dsl.PipelineTask:
    """A step that holds the whole listing: as much memory as a parameter says."""
    # The compiler forgets a parameter that only a resource refers to.
    task.register_pipeline_channels([memory])
    return task.set_memory_request(memory).set_memory_limit(memory)


def _on_gpu(
    task: dsl.PipelineTask, sized: dsl.PipelineTask, name: str, node_selector: dict
) -> dsl.PipelineTask:
    """Size the pod by what the step `size_pods` found for `name`."""
    gpus, cpus, memory = (sized.outputs[f"{name}_{what}"] for what in ("gpus", "cpus", "memory"))
    # By itself the compiler does not see that a resource is another step's output.
    task.register_pipeline_channels([gpus, cpus, memory])
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
    kubernetes.add_node_selector_json(task, node_selector)
    kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    # The data loader's processes and NCCL exchange through it; a pod's default is 64 MiB.
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit="8Gi")
    return _working(task, cpus, memory)


def _in_any_pod(task: dsl.PipelineTask) -> dsl.PipelineTask:
    # A node that is taken away, S3 that is away for minutes: what a step has done it finds again.
    task.set_retry(
        num_retries=3,
        backoff_duration="30s",
        backoff_factor=2.0,
        backoff_max_duration=RETRY_FOR,
    )
    kubernetes.use_secret_as_env(task, SECRET, {name: name for name in VARIABLES}, optional=True)
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH)
    return task


@dsl.pipeline(
    name=NAME,
    display_name="Steno retraining",
    description="New speech in; out comes a better model in production, or the reason why not.",
)
def retraining(
    store: str,
    data_manifest: str,
    data_test_manifest: str = "",
    data_dev_share: float = 0.05,
    data_test_share: float = 0.05,
    data_criteria: dict = {},  # noqa: B006
    data_shards: int = 4,
    data_memory: str = "8Gi",
    data_max_unusable: float = 0.1,
    data_seed: int = 0,
    train_start: str = "production",
    train_recipe: str = "finetune",
    train_epochs: int = 5,
    train_learning_rate: float = 1e-5,
    train_overrides: dict = {},  # noqa: B006
    train_punctuate: bool = False,
    train_int8: bool = True,
    train_gpus: int = 1,
    train_nodes: int = 1,
    train_gpus_per_node: int = 8,
    train_node_selector: dict = {},  # noqa: B006
    gate_min_improvement: float = 0.002,
    gate_confidence: float = 0.95,
    gate_max_group_loss: float = 0.02,
    gate_max_fast_loss: float = 0.01,
    gate_max_written_form_loss: float = 0.1,
    gate_max_slowdown: float = 0.15,
    gate_highest_wer: float = 0.5,
    evaluate_gpus: int = 1,
    cpus_per_gpu: int = 4,
    memory_per_gpu: str = "24Gi",
    scratch_size: str = "20Gi",
    serving_namespace: str = "steno",
    serving_deployment: str = "steno",
    serving_url: str = "http://steno.steno.svc/predictions/asr",
) -> None:
    """Retrain, compare, and deploy what is better.

    Args:
        store: The model store, as s3://bucket/prefix. Versions, prepared data and checkpoints
            go there.
        data_manifest: The speech to learn from: a manifest (NeMo JSON Lines) as
            s3://bucket/path/file.jsonl, its recordings beside it.
        data_test_manifest: Recordings that are only measured on. Give the same one every time,
            so that runs can be compared. Empty: a share of data_manifest's speakers.
        data_dev_share: Share of the speakers by whose speech the best epoch is chosen.
        data_test_share: Share of the speakers who are held out for the comparison,
            where there is no data_test_manifest. Raised, it takes speakers that what was trained
            before has heard.
        data_criteria: Which recordings are accepted, where the defaults do not fit, such as
            {"max_seconds": 25}. See docs/pipeline.md.
        data_shards: Pods that prepare at the same time, each at least one piece of about a thousand
            recordings.
        data_memory: Memory of the pods of Ingest, Prepare and Merge. A million recordings take
            3.2 GiB.
        data_max_unusable: Share of each manifest's lines that may be unusable, recordings that
            are missing or cannot be decoded included. Above it the run ends.
        data_seed: Another number chooses other speakers for dev and test. What was trained before has
            heard most of them: only with train_start shipped and a data_test_manifest, or for a
            store without versions.
        train_start: What training starts from: production, shipped (the checkpoint in the
            image), or a version such as v7.
        train_recipe: A file of training/configs without its ending.
        train_epochs: How often all speech is gone through. 0: as the recipe says.
        train_learning_rate: Lower keeps more of what the model knows. 0: as the recipe says.
        train_overrides: Any other training setting, such as {"batches.padded_seconds": 240}.
            See training/config.py.
        train_punctuate: Give texts without capitals and punctuation both, as the start model
            hears them.
        train_int8: Store the weights in int8, at half the size; faster on CPUs.
        train_gpus: GPUs of the training pod. 0 with several nodes, where it only waits.
        train_nodes: Above 1, Kubeflow Trainer trains on so many nodes, with
            train_gpus_per_node on each.
        train_gpus_per_node: GPUs of each node, where there are several.
        train_node_selector: Labels of the nodes to train and to evaluate on, such as
            {"cloud.google.com/gke-accelerator": "nvidia-l4"}.
        gate_min_improvement: By how much the WER must be lower, as a share of the words: 0.002
            is 0.2 points. It must also be beyond chance.
        gate_confidence: How sure it must be that a difference is no chance.
        gate_max_group_loss: By how much the WER of a speaker group may be higher, if that is no
            chance.
        gate_max_fast_loss: By how much the WER of mode=fast may be higher, if that is no chance.
        gate_max_written_form_loss: Share of production's capitals, final marks and punctuation that
            may be lost, each for itself. 1 allows anything.
        gate_max_slowdown: Share of the speed that may be lost.
        gate_highest_wer: WER that a first version may have, with none in production.
        evaluate_gpus: GPUs of the pod that compares; 0 compares on CPUs.
        cpus_per_gpu: CPUs for each GPU of a pod that trains or compares.
        memory_per_gpu: Memory for each GPU of a pod that trains or compares.
        scratch_size: Disk that each pod that trains needs: 2,000 hours of WAV are 230 GB. Pods on
            several nodes reserve it, a single one begins only where so much is free.
        serving_namespace: Namespace of the serving release.
        serving_deployment: Name of its Deployment.
        serving_url: Where the probe is sent after a roll-out; the release's networkPolicy.from must
            let this namespace in.
    """
    run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    last = components.notify(store=store, run=run)
    last.set_display_name("Notify")
    _small(last)
    kubernetes.use_secret_as_env(last, WEBHOOK_SECRET, {WEBHOOK_KEY: "STENO_WEBHOOK"}, True)
    with dsl.ExitHandler(last, name="retrain"):
        ingested = components.ingest(
            store=store,
            manifest=data_manifest,
            test_manifest=data_test_manifest,
            dev_share=data_dev_share,
            test_share=data_test_share,
            shards=data_shards,
            max_unusable=data_max_unusable,
            punctuate=train_punctuate,
            run=run,
        )
        _with_memory(_small(ingested), data_memory).set_display_name("Ingest")
        # With a name of its own its parts are not found (kubeflow/pipelines #13239).
        with dsl.ParallelFor(ingested.output) as shard:
            part = components.prepare(store=store, shard=shard, criteria=data_criteria)
            part.set_env_variable("STENO_CPUS", PREPARE_CPUS).set_cpu_request(PREPARE_CPUS)
            _cached(_in_any_pod(_with_memory(part, data_memory))).set_display_name("Prepare")
        merged = components.merge(
            store=store,
            parts=dsl.Collected(part.outputs["part"]),
            criteria=data_criteria,
            dev_share=data_dev_share,
            test_share=data_test_share,
            seed=data_seed,
            max_unusable=data_max_unusable,
        )
        _cached(_with_memory(_small(merged), data_memory)).set_display_name("Merge")
        models = components.choose_models(store=store, start=train_start, run=run)
        _small(models).set_display_name("Choose models")
        sized = components.size_pods(
            train_gpus=train_gpus,
            evaluate_gpus=evaluate_gpus,
            cpus_per_gpu=cpus_per_gpu,
            memory_per_gpu=memory_per_gpu,
            scratch_size=scratch_size,
        )
        _small(sized).set_display_name("Size pods")
        trained = components.train(
            store=store,
            data=merged.outputs["data"],
            start=models.outputs["start"],
            recipe=train_recipe,
            epochs=train_epochs,
            learning_rate=train_learning_rate,
            overrides=train_overrides,
            punctuate=train_punctuate,
            int8=train_int8,
            gpus=train_gpus,
            cpus_per_gpu=cpus_per_gpu,
            memory_per_gpu=memory_per_gpu,
            scratch=scratch_size,
            nodes=train_nodes,
            gpus_per_node=train_gpus_per_node,
            node_selector=train_node_selector,
        )
        trained.set_env_variable("STENO_IMAGE", components.IMAGE)
        kubernetes.use_field_path_as_env(
            trained, "STENO_SERVICE_ACCOUNT", "spec.serviceAccountName"
        )
        _on_gpu(trained, sized, "train", train_node_selector).set_display_name("Train")
        compared = components.evaluate(
            store=store,
            data=merged.outputs["data"],
            candidate=trained.outputs["model"],
            production=models.outputs["production"],
            gpus=evaluate_gpus,
        )
        _on_gpu(compared, sized, "evaluate", train_node_selector).set_display_name("Evaluate")
        decided = components.gate(
            store=store,
            evaluation=compared.outputs["evaluation"],
            production=models.outputs["production"],
            min_improvement=gate_min_improvement,
            confidence=gate_confidence,
            max_group_loss=gate_max_group_loss,
            max_fast_loss=gate_max_fast_loss,
            max_written_form_loss=gate_max_written_form_loss,
            max_slowdown=gate_max_slowdown,
            highest_wer=gate_highest_wer,
            run=run,
        )
        _small(decided).set_display_name("Gate")
        with dsl.If(decided.outputs["Output"] == True, name="deploy"):  # noqa: E712
            packed = components.package(
                candidate=trained.outputs["model"],
                evaluation=compared.outputs["evaluation"],
                decision=decided.outputs["decision"],
                fingerprint=merged.outputs["Output"],
                start=models.outputs["start"],
            )
            _cached(_small(packed)).set_display_name("Package")
            published = components.publish(
                store=store,
                archive=packed.outputs["archive"],
                evaluation=compared.outputs["evaluation"],
                fingerprint=merged.outputs["Output"],
                start=models.outputs["start"],
                run=run,
            )
            _small(published).set_display_name("Publish")
            rolled = components.roll_out(
                store=store,
                version=published.outputs["Output"],
                expected=models.outputs["production"],
                evaluation=compared.outputs["evaluation"],
                namespace=serving_namespace,
                deployment=serving_deployment,
                url=serving_url,
                run=run,
            )
            _small(rolled).set_display_name("Roll out")
            kubernetes.use_secret_as_env(rolled, TOKEN_SECRET, {TOKEN_KEY: "STENO_TOKEN"}, True)

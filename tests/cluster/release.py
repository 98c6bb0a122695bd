"""A release on a real cluster: `make test-cluster IMAGE=registry/steno-serve:tag`.

Not among `make test`'s files (its name does not begin with test_), so that a run without a cluster
never counts it as passed; who asks for it without one is told why all is skipped, and the run fails
(conftest.py). It needs a kubeconfig, the serving image, and a default storage class; it works in a
namespace of its own, which goes with it. The tests are one story, in order.
"""

import base64
import io
import os
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import urllib3
from kubernetes import client, config
from kubernetes.stream import stream

from store import ModelStore, StoreConfig
from tests.helm.chart import CHART, merged
from training.package import ROOT

IMAGE = os.environ.get("STENO_CLUSTER_IMAGE", "")
CONTEXT = os.environ.get("STENO_CLUSTER_CONTEXT") or None
RELEASE = "steno"
SECONDS = 900
PYTHON = "/opt/venv/bin/python"
CLIP = ROOT / "tests" / "fixtures" / "command.webm"
# Sends one clip after the other until a file says stop, and prints what came back.
LOAD = """
import collections, pathlib, requests, sys, time
url, token, end = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
clip, seen = pathlib.Path("/store/clip.webm").read_bytes(), collections.Counter()
while time.monotonic() < end:
    try:
        headers = {"Authorization": "Bearer " + token, "Content-Type": "application/octet-stream"}
        seen[requests.post(url, data=clip, headers=headers, timeout=120).status_code] += 1
    except requests.RequestException as error:
        seen[type(error).__name__] += 1
print(dict(seen))
"""


class Cluster:
    """A namespace with a store on a volume, a secret with a token, and a pod to call from."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.core = client.CoreV1Api()
        self.apps = client.AppsV1Api()
        self.token = secrets.token_hex(16)
        self.helm = helm.Config(namespace=namespace, kube_context=CONTEXT)
        repository, _, tag = IMAGE.rpartition(":")
        name, _, digest = IMAGE.partition("@")
        image = {"repository": name, "digest": digest} if digest else {}
        self.values: dict[str, Any] = {
            "image": image or {"repository": repository, "tag": tag},
            "model": {"claim": "store", "version": "v1"},
            "auth": {"existingSecret": "tokens"},
            "replicas": 2,
            "drain": {"propagationSeconds": 10, "timeoutSeconds": 120},
            "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"cpu": "2"}},
        }

    @property
    def url(self) -> str:
        return f"http://{RELEASE}/predictions/asr"

    def apply(self, **changes: Any) -> None:
        """Install or upgrade, and wait until all pods are ready."""
        self.values = merged(self.values, changes)
        installed = [item["name"] for item in self.helm.list()]
        change = self.helm.upgrade if RELEASE in installed else self.helm.install
        change(CHART, RELEASE, self.values, wait="watcher", timeout=SECONDS)

    def run(self, pod: str, *command: str, data: bytes = b"") -> str:
        """Run a command in a pod and return what it printed, errors too."""
        session = stream(
            self.core.connect_get_namespaced_pod_exec,
            pod,
            self.namespace,
            command=list(command),
            stdin=bool(data),
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        for start in range(0, len(data), 1 << 16):
            session.write_stdin(data[start : start + (1 << 16)])
        said = ""
        while session.is_open():
            session.update(timeout=5)
            said += session.read_stdout(timeout=0) if session.peek_stdout() else ""
            said += session.read_stderr(timeout=0) if session.peek_stderr() else ""
        return said

    def smoke(self, pod: str, seconds: float = 60.0) -> str:
        """Transcribe the clip from a pod."""
        options = ["--url", self.url, "--clip", "/store/clip.webm", "--tokens", "/store/tokens"]
        options += ["--seconds", str(seconds)]
        return self.run(pod, PYTHON, "-m", "handler.smoke", *options)

    def pods(self, track: str = "stable") -> list[Any]:
        return list(
            self.core.list_namespaced_pod(
                self.namespace,
                label_selector=f"app.kubernetes.io/component=server,steno/track={track}",
            ).items
        )

    def put(self, files: dict[str, bytes]) -> None:
        """Write files to the store's volume, through the pod that callers use."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        # exec's input has no end that the other side sees: say how much comes.
        encoded = base64.b64encode(archive.getvalue())
        receive = (
            "import base64, io, sys, tarfile; data = sys.stdin.buffer.read(int(sys.argv[1])); "
            "tarfile.open(fileobj=io.BytesIO(base64.b64decode(data))).extractall('/store'); "
            "print('stored')"
        )
        said = self.run("caller", PYTHON, "-c", receive, str(len(encoded)), data=encoded)
        assert "stored" in said, said


def wait_until(happened: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(2)


def pod(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A pod of the serving image that does nothing by itself."""
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "idle",
                    "image": IMAGE,
                    "command": ["sleep", "86400"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "store", "mountPath": "/store"}],
                }
            ],
            "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}],
        },
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not IMAGE:
        pytest.skip("no serving image: make test-cluster IMAGE=registry/steno-serve:tag")
    try:
        config.load_kube_config(context=CONTEXT)
    except config.ConfigException as error:
        pytest.skip(f"the kubeconfig does not tell of a cluster: {error}")
    try:
        client.VersionApi().get_code(_request_timeout=10)
    except urllib3.exceptions.HTTPError as error:
        pytest.skip(f"the kubeconfig's cluster cannot be reached: {error}")
    name = f"steno-test-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core = client.CoreV1Api()
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    try:
        running = Cluster(name)
        _furnish(running, tmp_path_factory.mktemp("store"))
        yield running
    finally:
        core.delete_namespace(name)


def _furnish(cluster: Cluster, folder: Path) -> None:
    cluster.core.create_namespaced_secret(
        cluster.namespace,
        {"metadata": {"name": "tokens"}, "stringData": {"tokens": cluster.token}},
    )
    cluster.core.create_namespaced_persistent_volume_claim(
        cluster.namespace,
        {
            "metadata": {"name": "store"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    )
    # The network policy lets `helm test` in, by this label.
    allowed = {"app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/component": "test"}
    cluster.core.create_namespaced_pod(cluster.namespace, pod("caller", allowed))
    cluster.core.create_namespaced_pod(cluster.namespace, pod("stranger", {"app": "stranger"}))
    for name in ("caller", "stranger"):
        wait_until(
            lambda name=name: (
                cluster.core.read_namespaced_pod(name, cluster.namespace).status.phase == "Running"
            ),
            f"the pod {name} runs",
        )
    models = ModelStore.open(StoreConfig(url=str(folder)))
    for version in ("v1", "v2"):
        models.publish(
            ROOT / "dist" / "asr.mar", version=version, metrics={}, data_fingerprint="f", commit="c"
        )
    models.promote("v1", expected=None)
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    cluster.put({**files, "clip.webm": CLIP.read_bytes(), "tokens": cluster.token.encode()})


def test_1_it_is_installed_and_answers(cluster: Cluster) -> None:
    cluster.apply()
    assert len(cluster.pods()) == 2
    assert "lights" in cluster.smoke("caller")


def test_2_every_pod_is_ready_by_its_exporter_and_says_its_version(cluster: Cluster) -> None:
    for item in cluster.pods():
        code = (
            "import urllib.request as u; "
            "print(u.urlopen('http://127.0.0.1:9404/ready').status, "
            "u.urlopen('http://127.0.0.1:9404/metrics').read().decode())"
        )
        said = cluster.run(item.metadata.name, PYTHON, "-c", code)
        assert said.startswith("200") and 'version="v1"' in said


def test_3_it_is_scaled(cluster: Cluster) -> None:
    cluster.apply(replicas=3)
    assert len(cluster.pods()) == 3
    cluster.apply(replicas=2)


def test_4_under_load_a_new_version_takes_over_and_no_request_fails(cluster: Cluster) -> None:
    log = "/tmp/load.log"
    load = f'{PYTHON} -c "$0" {cluster.url} {cluster.token} 240 > {log} 2>&1 &'
    cluster.run("caller", "sh", "-c", load, LOAD)
    cluster.apply(model={"version": "v2"})
    wait_until(lambda: "{" in cluster.run("caller", "cat", log), "the load has ended", 400)
    assert cluster.run("caller", "cat", log).startswith("{200: ")
    assert "," not in cluster.run("caller", "cat", log)
    fetches = [
        {item.name: item.value for item in pod.spec.init_containers[0].env}["STENO_VERSION"]
        for pod in cluster.pods()
        if pod.metadata.deletion_timestamp is None
    ]
    assert set(fetches) == {"v2"}


def test_5_it_goes_back(cluster: Cluster) -> None:
    cluster.helm.rollback(RELEASE, wait="watcher", timeout=SECONDS)
    deployment = cluster.apps.read_namespaced_deployment(RELEASE, cluster.namespace)
    environment = deployment.spec.template.spec.init_containers[0].env
    assert {item.name: item.value for item in environment}["STENO_VERSION"] == "v1"
    assert "lights" in cluster.smoke("caller")


def test_6_a_version_that_there_is_not_does_not_disturb_those_that_serve(cluster: Cluster) -> None:
    values = merged(cluster.values, {"model": {"version": "v9"}})
    with pytest.raises(helm.HelmError):
        cluster.helm.upgrade(CHART, RELEASE, values, wait="watcher", timeout=60)
    assert "lights" in cluster.smoke("caller")
    cluster.helm.rollback(RELEASE, wait="watcher", timeout=SECONDS)


def test_7_strangers_do_not_get_in(cluster: Cluster) -> None:
    said = cluster.smoke("stranger", seconds=10)
    assert "cannot be reached" in said, f"does this cluster enforce network policies? {said}"


def test_8_it_goes_without_a_trace(cluster: Cluster) -> None:
    cluster.helm.uninstall(RELEASE)
    wait_until(lambda: not cluster.pods(), "the pods are gone")
    selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/managed-by=Helm"
    lists = (
        cluster.core.list_namespaced_service,
        cluster.core.list_namespaced_config_map,
        cluster.core.list_namespaced_service_account,
        cluster.apps.list_namespaced_deployment,
    )
    assert [
        item for f in lists for item in f(cluster.namespace, label_selector=selector).items
    ] == []

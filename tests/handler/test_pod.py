"""A serving pod's processes on a real TorchServe: readiness, tokens, metrics, draining."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from handler import smoke
from handler.busy import is_busy
from handler.management import describe
from handler.server import Ports
from loadtest.recordings import Recording
from loadtest.transports import QUEUE_FULL, Grpc
from tests.e2e.inputs import encoded, speech
from tests.handler.pod import Pod, publish, wait_until
from tests.helm.chart import CHART, of_kind, render, values_of
from tests.helm.queries import FOREIGN, queried_metrics
from tests.random_checkpoint import make_random_checkpoint
from training.package import build_package

pytestmark = pytest.mark.slow
CALLERS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a small model in production."""
    folder = tmp_path_factory.mktemp("pod")
    checkpoint = make_random_checkpoint(folder / "checkpoint")
    package = build_package(checkpoint, folder / "dist")
    publish(folder / "store", package.path, "v7")
    return folder / "store"


@pytest.fixture(scope="module")
def pod(store: Path) -> Iterator[Pod]:
    """A pod that is ready."""
    with Pod(store, {"batchSize": 2}) as running:
        running.fetch()
        running.start_exporter()
        assert not running.ready()
        # What a container leaves behind that ended and is started again in its pod: the number of
        # a process that there is.
        running.temporary.mkdir()
        (running.temporary / ".model_server.pid").write_text(str(os.getpid()))
        running.start_server()
        early = []

        def ready() -> bool:
            early.append((running.alive(), running.ready()))
            return early[-1][1]

        wait_until(ready, "a worker is READY")
        # TorchServe's own health check answered before anybody could be served.
        assert (True, False) in early
        yield running


def sound(seconds: float) -> bytes:
    return encoded(np.resize(speech(), int(seconds * 16_000)))


def call(pod: Pod, body: bytes, headers: dict[str, str]) -> requests.Response:
    return requests.post(pod.predictions_url, data=body, headers=headers, timeout=300)


def test_a_request_needs_a_token_of_the_file_and_another_is_taken_without_a_restart(
    pod: Pod,
) -> None:
    audio = {"Content-Type": "audio/wav"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": pod.token}):
        refused = call(pod, sound(0.5), {**audio, **headers})
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "invalid_token"
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert pod.token not in refused.text
    assert call(pod, sound(0.5), {**audio, **pod.authorization}).status_code == 200

    tokens = pod.folder / "tokens"
    former = tokens.read_text()
    tokens.write_text(f"{former}another-token-0123456789\n")
    new = {"Authorization": "Bearer another-token-0123456789"}
    assert call(pod, sound(0.5), {**audio, **new}).status_code == 200
    tokens.write_text(former)
    assert call(pod, sound(0.5), {**audio, **new}).status_code == 401


def test_the_exporter_says_what_is_served_and_what_waits(pod: Pod) -> None:
    text = requests.get(f"{pod.exporter_url}/metrics", timeout=10).text
    assert "steno_management_up 1.0" in text
    assert "steno_ready 1.0" in text
    assert "steno_workers_ready 1.0" in text
    assert "steno_queue_depth 0.0" in text
    assert "steno_queue_capacity 64.0" in text
    assert 'steno_model_info{pinned="false",sha256="' in text and 'version="v7"' in text
    wait_until(
        lambda: (
            'steno_production_info{version="v7"}'
            in requests.get(f"{pod.exporter_url}/metrics", timeout=10).text
        ),
        "the production pointer was read",
    )


def test_the_smoke_test_of_the_chart_tells_good_from_bad(
    pod: Pod, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.wav").write_bytes(sound(1))
    common = ["--url", pod.predictions_url, "--clip", str(tmp_path / "clip.wav")]
    tokens = ["--tokens", str(pod.folder / "tokens")]
    assert smoke.main([*common, *tokens]) == 0
    assert smoke.main([*common, *tokens, "--expect", "words that nobody said"]) == 1
    assert "lacks 'words that nobody said'" in capsys.readouterr().err
    assert smoke.main(common) == 1
    assert "401" in capsys.readouterr().err
    nowhere = f"http://127.0.0.1:{Ports.free().inference}/predictions/asr"
    assert smoke.main(["--url", nowhere, *common[2:], *tokens, "--seconds", "1"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_dashboard_and_rules_name_only_what_the_pod_exposes(pod: Pod) -> None:
    audio = {"Content-Type": "audio/wav", **pod.authorization}
    assert call(pod, sound(1), audio).status_code == 200
    assert call(pod, b"no audio", audio).status_code == 400
    form = {**audio, "Content-Type": "application/x-www-form-urlencoded"}
    assert call(pod, b"a=%", form).status_code == 500  # TorchServe's own; see docs/endpoint.md
    part = (
        b'--b\r\nContent-Disposition: form-data; name="mode"\r\nContent-Type: text/plain; charset=x'
    )
    form["Content-Type"] = "multipart/form-data; boundary=b"
    assert call(pod, part + b"\r\n\r\nfast\r\n--b--\r\n", form).status_code == 500  # the same
    exposed = set(re.findall(r"^([A-Za-z_]\w*)[ {]", pod.metrics(), re.MULTILINE))
    assert queried_metrics() - FOREIGN - exposed == set()
    assert queried_metrics() >= FOREIGN


def test_nobody_but_the_pod_itself_can_end_it(pod: Pod) -> None:
    for headers in ({}, {"Authorization": "Bearer "}, pod.authorization):
        answer = requests.post(f"{pod.exporter_url}/drain", headers=headers, timeout=10)
        assert answer.status_code == 403
    assert requests.get(f"{pod.exporter_url}/drain", timeout=10).status_code == 404
    assert pod.ready()
    # Not even who runs in another container, as another user.
    assert pod.key.stat().st_mode & 0o077 == 0


def test_under_load_the_pod_ends_without_losing_or_refusing_a_request(store: Path) -> None:
    with Pod(store, {"batchSize": 1}) as pod:
        pod.fetch()
        pod.start_exporter()
        server = pod.start_server()
        wait_until(pod.ready, "a worker is READY")
        body = sound(120)
        headers = {"Content-Type": "audio/wav", **pod.authorization}
        in_service = threading.Event()
        in_service.set()
        lock = threading.Lock()
        answers: list[tuple[float, int]] = []

        def send_while_in_service() -> None:
            while in_service.is_set():
                status = call(pod, body, headers).status_code
                with lock:
                    answers.append((time.monotonic(), status))

        with ThreadPoolExecutor(CALLERS) as callers:
            sending = [callers.submit(send_while_in_service) for _ in range(CALLERS)]
            wait_until(lambda: len(answers) >= CALLERS, "the load runs")
            # The chart leaves the time to settle at its default, too.
            options = ("--propagation", "2", "--timeout", "150")
            drain = pod.start_drain(*options)
            # A kubelet that was restarted meanwhile runs the hook again.
            again = pod.start_drain(*options)
            wait_until(lambda: not pod.ready(), "readiness is false")
            # Balancers hear of it a little later, and send requests until then.
            time.sleep(1)
            in_service.clear()
            told = time.monotonic()
            assert (drain.wait(200), again.wait(200)) == (0, 0), pod.log()
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)
        for caller in sending:
            caller.result()  # raises what a lost connection raised
        assert {status for _, status in answers} == {200}
        # There was something to lose.
        assert sum(at > told for at, _ in answers) >= CALLERS - 1


def test_a_request_for_which_java_gathers_a_batch_is_waited_for(store: Path) -> None:
    with Pod(store, {"batchSize": 2, "maxBatchDelay": 6000}) as pod:
        pod.fetch()
        pod.start_exporter()
        server = pod.start_server()
        wait_until(pod.ready, "a worker is READY")
        headers = {"Content-Type": "audio/wav", **pod.authorization}
        with ThreadPoolExecutor(1) as caller:
            sent = caller.submit(call, pod, sound(0.5), headers)
            time.sleep(1)
            # It is nowhere to be seen, and would be lost.
            assert describe(pod.management_url).pending == 0 and not is_busy(pod.temporary)
            drain = pod.start_drain("--propagation", "0", "--settle", "0.5", "--timeout", "60")
            assert drain.wait(90) == 0
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)
            assert sent.result().status_code == 200


def test_a_server_that_a_probe_ended_is_started_again_and_gets_ready(store: Path) -> None:
    with Pod(store) as pod:
        pod.fetch()
        pod.start_exporter()
        server = pod.start_server()
        wait_until(pod.ready, "a worker is READY")
        # What Kubernetes does when a probe fails: the hook, SIGTERM, the same container anew.
        assert pod.start_drain("--propagation", "0", "--timeout", "60").wait(90) == 0
        assert describe(pod.management_url).ready == 1
        assert not pod.ready()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        assert not pod.ready()
        pod.start_server()
        early = []

        def ready() -> bool:
            if "steno_draining 1.0" in requests.get(f"{pod.exporter_url}/metrics", timeout=10).text:
                early.append(pod.ready())
            return pod.ready()

        wait_until(ready, "the new server's worker is READY")
        assert early and not any(early)
        assert describe(pod.management_url).ready == 1
        headers = {"Content-Type": "audio/wav", **pod.authorization}
        assert call(pod, sound(0.5), headers).status_code == 200


def test_a_drain_that_cannot_end_gives_up_at_its_deadline(pod: Pod) -> None:
    headers = {"Content-Type": "audio/wav", **pod.authorization}
    with ThreadPoolExecutor(1) as caller:
        long = caller.submit(call, pod, sound(300), headers)
        wait_until(lambda: is_busy(pod.temporary), "the worker is busy")
        # By TorchServe's own figures the server could go now, and the request would be lost.
        assert describe(pod.management_url).pending == 0
        drain = pod.start_drain("--propagation", "0", "--settle", "60", "--timeout", "1")
        assert drain.wait(30) == 1
        assert "requests may be lost" in pod.log()
        assert long.result().status_code == 200


def test_a_full_queue_refuses_at_once_and_a_killed_worker_costs_its_own_requests(
    store: Path,
) -> None:
    with Pod(store, {"batchSize": 1, "jobQueueSize": 1}) as pod:
        pod.fetch()
        pod.start_exporter()
        pod.start_server()
        wait_until(pod.ready, "a worker is READY")
        headers = {"Content-Type": "audio/wav", **pod.authorization}
        body = sound(600)
        with ThreadPoolExecutor(3) as callers:
            working = callers.submit(call, pod, body, headers)
            wait_until(lambda: is_busy(pod.temporary), "the worker is busy")
            waiting = callers.submit(call, pod, sound(0.5), headers)
            wait_until(lambda: describe(pod.management_url).pending == 1, "the queue is full")
            refused = call(pod, sound(0.5), headers)
            assert refused.status_code == 503
            # By these words the load test tells a full queue from an outage, over gRPC as well.
            assert QUEUE_FULL in refused.json()["message"]
            url = f"{pod.management_url}/models/asr"
            (worker,) = requests.get(url, timeout=30).json()[0]["workers"]
            os.kill(worker["pid"], signal.SIGSEGV)  # SIGKILL is taken for a lack of memory: 507
            died = working.result()
            assert (died.status_code, died.json()["message"]) == (500, "Worker died.")
            # The queue waits for the next worker.
            assert waiting.result().status_code == 200
        assert describe(pod.management_url).ready == 1


def test_grpc_answers_where_the_chart_opens_it_and_only_there(store: Path) -> None:
    manifests = render(values_of(CHART / "ci" / "grpc-values.yaml"))
    container = of_kind(manifests, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    # The container listens on all addresses; here another one of loopback takes the same way.
    options = [
        option.replace("0.0.0.0", "127.0.0.2")
        for option in container["args"]
        if option.partition("=")[0] not in ("--model-store", "--config", "--folder", "--exporter")
    ]
    assert options == ["--open", "--grpc-host=127.0.0.2"]
    clip = Recording("command", "clip", sound(1), 1.0, {"response_format": "json"})
    with Pod(store, {"handler": {"token_file": None}}) as pod:
        pod.fetch()
        pod.start_exporter()
        pod.start_server(*options)
        wait_until(pod.ready, "a worker is READY")
        inside = Grpc(f"127.0.0.2:{pod.ports.grpc_inference}", token=None, timeout=120)
        answer = inside.send(clip)
        inside.close()
        assert answer.status == 200, answer
        assert "text" in json.loads(answer.body)
        elsewhere = Grpc(f"127.0.0.1:{pod.ports.grpc_inference}", token=None, timeout=120)
        with pytest.raises(ConnectionError):  # it listens where it was asked to, and there alone
            elsewhere.send(clip)
        elsewhere.close()
        # What --open means, and why the chart asks for a gateway: HTTP has no token either.
        assert call(pod, sound(1), {"Content-Type": "audio/wav"}).status_code == 200


def test_in_a_crash_loop_the_pod_is_never_ready_and_in_the_end_not_alive(store: Path) -> None:
    changes = {"maxRetryTimeoutInSec": 3, "handler": {"token_file": "/there/is/none"}}
    with Pod(store, changes) as pod:
        pod.fetch()
        pod.start_exporter()
        pod.start_server()
        wait_until(pod.alive, "java answers")
        seen = []

        def given_up() -> bool:
            seen.append(pod.ready())
            return not pod.alive()

        wait_until(given_up, "TorchServe gave up")
        assert not any(seen)
        wait_until(lambda: "/there/is/none" in pod.log(), "the log tells the reason")


def test_a_server_that_nobody_guards_is_not_started(store: Path) -> None:
    with Pod(store, {"handler": {"token_file": None}}) as pod:
        pod.fetch()
        assert pod.start_server().wait(60) == 1
        assert "has no handler.token_file" in pod.log()

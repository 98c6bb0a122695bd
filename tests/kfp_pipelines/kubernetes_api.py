"""Enough of the Kubernetes API for one Deployment, rolled out look by look, and for TrainJobs."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TOKEN = "kubernetes-secret-token"
TRAIN_JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/trainjobs"


class KubernetesApi:
    """A server on 127.0.0.1; each look at the Deployment takes the roll-out one pod further."""

    def __init__(self, name: str = "steno", replicas: int = 2) -> None:
        self.name, self.replicas = name, replicas
        self.generation = 1
        self.ready = replicas
        self.stuck: str | None = None
        self.pinned: str | None = None
        self.progress_deadline = 0
        self.looks_away = 0  # so many are not answered, as while its node is renewed
        self.away, self.away_to, self.away_message = 503, {"GET"}, ""
        self.annotations: dict[str, str] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.job_condition: dict[str, str] = {"type": "Complete", "status": "True"}
        self.jobs_made: list[str] = []
        # So many looks at a job find it after it was deleted, as its pods have to end first.
        self.looks_until_gone = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def write_kubeconfig(self, path: Path, token: str = TOKEN) -> None:
        """Write the file by which clients find this server."""
        server = f"http://127.0.0.1:{self._server.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": server}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
        path.write_text(json.dumps(config))

    def deployment(self) -> dict[str, Any]:
        """The Deployment as it is now."""
        condition = {"type": "Progressing", "status": "False" if self.stuck else "True"}
        condition |= {"reason": "ProgressDeadlineExceeded", "message": self.stuck or ""}
        pinned = [{"name": "STENO_VERSION", "value": self.pinned}] if self.pinned else []
        fetch = {"name": "fetch", "env": [{"name": "STENO_STORE", "value": "s3://b"}, *pinned]}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name, "generation": self.generation},
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": {"app": self.name}},
                "progressDeadlineSeconds": self.progress_deadline,
                "template": {
                    "metadata": {"annotations": self.annotations},
                    "spec": {"initContainers": [fetch], "containers": [{"name": "server"}]},
                },
            },
            "status": {
                "observedGeneration": self.generation,
                "replicas": self.replicas,
                "updatedReplicas": self.ready,
                "availableReplicas": self.ready,
                "conditions": [condition],
            },
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self._is_away():
                    return None
                if self.path != TRAIN_JOBS:
                    return self._answer(404, {"kind": "Status", "code": 404})
                name = body["metadata"]["name"]
                if name in api.jobs:
                    return self._answer(409, {"kind": "Status", "code": 409})
                api.jobs[name] = body
                api.jobs_made.append(name)
                return self._answer(201, body)

            def do_DELETE(self) -> None:
                path, _, query = self.path.partition("?")
                assert query == "propagationPolicy=Foreground"  # else its pods are there yet
                if self._is_away():
                    return
                job = api.jobs[path.removeprefix(f"{TRAIN_JOBS}/")]
                job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                self._answer(200, job)

            def do_GET(self) -> None:
                if self._is_away():
                    return None
                if (name := self.path.removeprefix(f"{TRAIN_JOBS}/")) in api.jobs:
                    return self._answer_job(name)
                if self._is_ours():
                    api.ready += api.ready < api.replicas and not api.stuck
                    self._answer(200, api.deployment())
                return None

            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self._is_away():
                    return
                if self._is_ours():
                    api.annotations |= body["spec"]["template"]["metadata"]["annotations"]
                    api.generation += 1
                    api.ready = 0
                    self._answer(200, api.deployment())

            def _answer_job(self, name: str) -> None:
                job = {**api.jobs[name], "status": {"conditions": [api.job_condition]}}
                if "deletionTimestamp" in job["metadata"]:
                    if not api.looks_until_gone:
                        del api.jobs[name]
                        return self._answer(404, {"kind": "Status", "code": 404})
                    api.looks_until_gone -= 1
                return self._answer(200, job)

            def _is_away(self) -> bool:
                if not api.looks_away or self.command not in api.away_to:
                    return False
                api.looks_away -= 1
                status = {"kind": "Status", "code": api.away, "message": api.away_message}
                self._answer(api.away, status)
                return True

            def _is_ours(self) -> bool:
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self._answer(401, {"kind": "Status", "code": 401})
                elif self.path != f"/apis/apps/v1/namespaces/speech/deployments/{api.name}":
                    self._answer(404, {"kind": "Status", "code": 404})
                else:
                    return True
                return False

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler

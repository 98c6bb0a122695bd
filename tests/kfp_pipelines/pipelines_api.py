"""A Kubeflow Pipelines server that speaks the v2beta1 API, as far as runs and schedules go.

What it is sent is read with kfp-server-api's own models, so that a field they do not know is noticed,
and what it answers is written with them.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api

TOKEN = "kubeflow-secret-token"
ROOT = "/apis/v2beta1"


class _Body:
    """What kfp-server-api's deserializer takes for a response."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class PipelinesApi:
    """A server on 127.0.0.1. What was created is in `runs`, `recurring` and `experiments`.

    Attributes:
        steps: what runs report as their tasks, as name and state.
        state, error: what runs report of themselves.
    """

    def __init__(self) -> None:
        self.runs: dict[str, api.V2beta1Run] = {}
        self.recurring: dict[str, api.V2beta1RecurringRun] = {}
        self.experiments: dict[str, api.V2beta1Experiment] = {}
        self.steps: list[tuple[str, str]] = []
        self.state, self.error = "RUNNING", ""
        self._client = api.ApiClient()
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

    @property
    def host(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        """Return the model to answer with; None: there is nothing of this name."""
        match method, path.removeprefix(ROOT).strip("/").split("/"):
            case "GET", ["experiments"]:
                found = list(self.experiments.values())
                size = int(query["page_size"][0])
                start = int(query.get("page_token", ["0"])[0] or 0)
                more = str(start + size) if start + size < len(found) else None
                return api.V2beta1ListExperimentsResponse(
                    experiments=found[start : start + size], next_page_token=more
                )
            case "POST", ["experiments"]:
                experiment = self._read(body, api.V2beta1Experiment)
                experiment.experiment_id = f"experiment-{len(self.experiments)}"
                self.experiments[experiment.experiment_id] = experiment
                return experiment
            case "POST", ["runs"]:
                run = self._read(body, api.V2beta1Run)
                run.run_id = f"run-{len(self.runs)}"
                run.experiment_id = query.get("experiment_id", [run.experiment_id])[0]
                self.runs[run.run_id] = run
                return run
            case "GET", ["runs"]:
                return api.V2beta1ListRunsResponse(runs=[*map(self._now, self.runs.values())])
            case "GET", ["runs", name] if name in self.runs:
                return self._now(self.runs[name])
            case "POST", ["recurringruns"]:
                recurring = self._read(body, api.V2beta1RecurringRun)
                recurring.recurring_run_id = f"recurring-{len(self.recurring)}"
                self.recurring[recurring.recurring_run_id] = recurring
                return recurring
        return None

    def _now(self, run: api.V2beta1Run) -> api.V2beta1Run:
        run.state = self.state
        run.error = api.GoogleRpcStatus(message=self.error) if self.error else None
        run.run_details = api.V2beta1RunDetails(
            task_details=[
                api.V2beta1PipelineTaskDetail(
                    display_name=name, state=state, create_time=f"2026-01-01T00:00:0{place}Z"
                )
                for place, (name, state) in enumerate(self.steps)
            ]
        )
        return run

    def _read(self, body: bytes, kind: type[Any]) -> Any:
        unknown = set(json.loads(body)) - set(kind.attribute_map.values())
        assert not unknown, f"{kind.__name__} has no {unknown}"
        return self._client.deserialize(_Body(body), kind)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._do(b"")

            def do_POST(self) -> None:
                self._do(self.rfile.read(int(self.headers["Content-Length"])))

            def _do(self, body: bytes) -> None:
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    return self._send(401, {"error": "unauthenticated"})
                address = urlsplit(self.path)
                found = server.answer(self.command, address.path, parse_qs(address.query), body)
                if found is None:
                    return self._send(404, {"error": "not found"})
                return self._send(200, server._client.sanitize_for_serialization(found))

            def _send(self, status: int, body: dict[str, Any]) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler

"""A Kubeflow Pipelines server, spoken to by its v2beta1 API."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kfp_server_api as api
import urllib3
from kfp_server_api.exceptions import ApiException

CONNECT_SECONDS, READ_SECONDS = 10, 60
# A reason that the server gives may be a whole page.
LONGEST_REASON = 300


class RemoteError(RuntimeError):
    """The server could not be asked, or refused; the message says what would help."""


@dataclass(frozen=True)
class Run:
    """A run as the server sees it now."""

    id: str
    name: str
    state: str
    error: str
    steps: tuple[tuple[str, str], ...]  # name and state, in the order in which they began

    def __str__(self) -> str:
        lines = [f"{self.name}  {self.state}  {self.id}"]
        lines += [f"  {name:<28} {state}" for name, state in self.steps]
        if self.error:
            lines.append(f"  {self.error}")
        return "\n".join(lines)


class Remote:
    """One server.

    Args:
        host: its address, as the browser has it, with the path `/pipeline` where there is one.
        token: sent as a bearer token; None for a server that asks for none.
        namespace: the profile's, on a multi-user Kubeflow.
    """

    def __init__(self, host: str, token: str | None = None, namespace: str | None = None) -> None:
        if not host.startswith(("http://", "https://")):
            raise RemoteError(f"the host {host!r} must begin with http:// or https://")
        self.host, self.namespace = host.rstrip("/"), namespace
        configuration = api.Configuration(host=self.host)
        configuration.retries = urllib3.Retry(2, backoff_factor=0.5)
        self._client = api.ApiClient(configuration)
        if token:
            self._client.set_default_header("Authorization", f"Bearer {token}")

    def submit(self, name: str, spec: Mapping[str, object], parameters: Mapping[str, Any]) -> str:
        """Start a run and return its identifier."""
        run = api.V2beta1Run(
            display_name=name,
            pipeline_spec=dict(spec),
            runtime_config=api.V2beta1RuntimeConfig(parameters=dict(parameters)),
        )
        with self._asked():
            created = api.RunServiceApi(self._client).run_service_create_run(
                run, experiment_id=self._experiment(), _request_timeout=_TIMEOUT
            )
        return str(created.run_id)

    def schedule(
        self, name: str, spec: Mapping[str, object], parameters: Mapping[str, Any], cron: str
    ) -> str:
        """Start the pipeline again and again and return the recurring run's identifier.

        Args:
            cron: six fields, the first of them seconds: `0 0 3 * * 0` is Sundays at three.
        """
        if len(cron.split()) != 6:
            raise RemoteError(
                f"the schedule {cron!r} must have six fields: second, minute, hour, day of the"
                " month, month, day of the week, such as '0 0 3 * * 0'"
            )
        recurring = api.V2beta1RecurringRun(
            display_name=name,
            pipeline_spec=dict(spec),
            runtime_config=api.V2beta1RuntimeConfig(parameters=dict(parameters)),
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            max_concurrency="1",  # two at once would compare with the same version
            no_catchup=True,  # the newest data are wanted once, not for each time that was missed
            mode=api.RecurringRunMode.ENABLE,
        )
        with self._asked():
            recurring.experiment_id = self._experiment()
            created = api.RecurringRunServiceApi(
                self._client
            ).recurring_run_service_create_recurring_run(recurring, _request_timeout=_TIMEOUT)
        return str(created.recurring_run_id)

    def status(self, run: str) -> Run:
        """Return how a run stands."""
        with self._asked():
            found = api.RunServiceApi(self._client).run_service_get_run(
                run, _request_timeout=_TIMEOUT
            )
        details = found.run_details.task_details if found.run_details else None
        tasks = sorted(details or [], key=lambda task: str(task.create_time))
        return Run(
            id=found.run_id,
            name=found.display_name,
            state=found.state or "PENDING",
            error=(found.error.message or "") if found.error else "",
            steps=tuple((task.display_name, task.state or "PENDING") for task in tasks),
        )

    def recent(self, most: int = 10) -> list[Run]:
        """Return the newest runs, without their steps."""
        with self._asked():
            found = api.RunServiceApi(self._client).run_service_list_runs(
                namespace=self.namespace,
                page_size=most,
                sort_by="created_at desc",
                _request_timeout=_TIMEOUT,
            )
        return [
            Run(run.run_id, run.display_name, run.state or "PENDING", "", ())
            for run in found.runs or []
        ]

    def _experiment(self) -> str:
        """The experiment that everything of ours stands under; made if it is not there."""
        service = api.ExperimentServiceApi(self._client)
        name = "steno"
        page = ""
        while True:
            found = service.experiment_service_list_experiments(
                namespace=self.namespace, page_size=200, page_token=page, _request_timeout=_TIMEOUT
            )
            for experiment in found.experiments or []:
                if experiment.display_name == name:
                    return str(experiment.experiment_id)
            page = found.next_page_token or ""
            if not page:
                break
        created = service.experiment_service_create_experiment(
            api.V2beta1Experiment(display_name=name, namespace=self.namespace),
            _request_timeout=_TIMEOUT,
        )
        return str(created.experiment_id)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Turn the client's errors into ours, without a token in any of them."""
        try:
            yield
        except ApiException as error:
            hint = {
                401: "the token is missing, wrong or expired; give one with --token or KFP_TOKEN",
                403: "this account may not do that; --namespace must be a profile of yours",
                404: "there is nothing of this name; is the host's path right (/pipeline)?",
            }.get(error.status) or _reason(error)
            raise RemoteError(f"{self.host} answered {error.status}: {hint}") from None
        except urllib3.exceptions.HTTPError as error:
            raise RemoteError(
                f"{self.host} cannot be reached ({type(error).__name__}); is the address right, and"
                " is the port forwarded?"
            ) from None


_TIMEOUT = (CONNECT_SECONDS, READ_SECONDS)


def _reason(error: ApiException) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
    return (body or error.reason or "no reason")[:LONGEST_REASON]

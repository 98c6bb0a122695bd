"""A version that works takes production over; one that does not leaves the former one serving."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import JsonValue

from kfp_pipelines import record, steps
from kfp_pipelines.rollout import (
    Endpoint,
    Outcome,
    RollOutError,
    Serving,
    ServingError,
    roll_out,
)
from store import Conflict, ModelStore, Production, StoreConfig

RIGHT = "please stop the recording now"
BUSY = "busy"


class Release(Serving):
    """A release whose versions answer as told: a text, a status, or an error when taken up."""

    def __init__(self, url: str, answers: dict[str, str | int | ServingError]) -> None:
        self.url, self.answers = url, answers
        self.taken: list[str] = []
        self.empty = False

    def require_pods(self) -> None:
        if self.empty:
            raise ServingError("the release is scaled to zero")

    def take_up(self, version: str) -> Endpoint:
        self.taken.append(version)
        answer = self.answers[version]
        if isinstance(answer, ServingError):
            raise answer
        headers = {"Authorization": "Bearer secret-token"}
        return Endpoint(f"{self.url}/{answer}", headers, first_pause=0.0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that answers with its path: as a status if that is a number, else as the text.

    The first two times it has no place for a text that is for the busy.
    """
    busy = [503, 503]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Authorization"] == "Bearer secret-token"
            self.rfile.read(int(self.headers["Content-Length"]))
            path = self.path.strip("/").replace("%20", " ")
            status = int(path) if path.isdecimal() else 200
            if BUSY in path and busy:
                status = busy.pop()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"text": path}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def serving(models: ModelStore) -> str | None:
    current = models.production()
    return current.version if current else None


def forget(outcome: Outcome) -> None:
    pass


def attempt(models: ModelStore, release: Release, evaluation: Path) -> Outcome:
    return roll_out(models, release, "v2", "v1", evaluation / "probe", forget)


def test_a_version_that_transcribes_the_probe_serves(
    models: ModelStore, url: str, evaluation: Path
) -> None:
    release = Release(url, {"v2": RIGHT})
    outcome = attempt(models, release, evaluation)
    assert (outcome.state, outcome.serves, outcome.heard) == ("serving", "v2", RIGHT)
    assert serving(models) == "v2"


def test_a_release_that_has_no_place_for_the_probe_at_once_is_asked_again(
    models: ModelStore, url: str, evaluation: Path
) -> None:
    probe = evaluation / "probe" / "probe.json"
    probe.write_text(json.dumps({**json.loads(probe.read_text()), "text": f"a {BUSY} hour"}))
    outcome = attempt(models, Release(url, {"v2": f"a {BUSY} hour"}), evaluation)
    assert (outcome.state, outcome.heard) == ("serving", f"a {BUSY} hour")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("good morning to all of you", "the probe came back as 'good morning"),
        (503, "answered 503"),
        (ServingError("no worker was READY"), "no worker was READY"),
    ],
    ids=["other text", "error", "not ready"],
)
def test_a_version_that_does_not_is_taken_back(
    models: ModelStore,
    url: str,
    evaluation: Path,
    answer: str | int | ServingError,
    reason: str,
) -> None:
    release = Release(url, {"v1": RIGHT, "v2": answer})
    outcome = attempt(models, release, evaluation)
    assert (outcome.state, outcome.serves) == ("rolled back", "v1")
    assert reason in outcome.reason
    assert release.taken == ["v2", "v1"]
    assert serving(models) == "v1"


def test_an_endpoint_that_is_not_there_is_a_failed_probe(
    models: ModelStore, evaluation: Path
) -> None:
    release = Release("http://127.0.0.1:1", {"v1": "", "v2": ""})
    assert "does not answer (ConnectionError)" in attempt(models, release, evaluation).reason


def test_a_way_back_that_fails_too_is_told(models: ModelStore, url: str, evaluation: Path) -> None:
    release = Release(url, {"v1": ServingError("no nodes"), "v2": 500})
    outcome = attempt(models, release, evaluation)
    assert outcome.state == "not serving"
    assert (
        "The pointer is back at v1, but the release does not serve it: no nodes" in outcome.reason
    )
    assert serving(models) == "v1"


def test_a_first_version_that_fails_has_nothing_to_go_back_to(
    tmp_path: Path, url: str, evaluation: Path
) -> None:
    models = ModelStore.open(StoreConfig(url=str(tmp_path / "empty")))
    (tmp_path / "one").write_bytes(b"1")
    models.publish(tmp_path / "one", version="v1", metrics={}, data_fingerprint="f", commit="c")
    release = Release(url, {"v1": 500})
    outcome = roll_out(models, release, "v1", None, evaluation / "probe", forget)
    assert outcome.state == "not serving"
    assert "there is no version to go back to" in outcome.reason


def test_a_comparison_with_a_version_that_serves_no_more_changes_nothing(
    models: ModelStore, url: str, evaluation: Path
) -> None:
    release = Release(url, {"v1": RIGHT, "v2": RIGHT})
    with pytest.raises(Conflict, match="v1 is in production, not nothing"):
        roll_out(models, release, "v2", None, evaluation / "probe", forget)
    assert (serving(models), release.taken) == ("v1", [])


def test_a_roll_out_that_was_killed_can_be_repeated_and_still_goes_back(
    models: ModelStore, url: str, evaluation: Path
) -> None:
    models.promote("v2", expected="v1")  # as far as the first attempt came
    outcome = attempt(models, Release(url, {"v1": RIGHT, "v2": 500}), evaluation)
    assert (outcome.state, serving(models)) == ("rolled back", "v1")


def test_before_the_pointer_goes_back_it_is_noted_why(
    models: ModelStore, url: str, evaluation: Path
) -> None:
    noted: list[tuple[Outcome, str | None]] = []

    def note(outcome: Outcome) -> None:
        noted.append((outcome, serving(models)))

    release = Release(url, {"v1": RIGHT, "v2": 500})
    roll_out(models, release, "v2", "v1", evaluation / "probe", note)
    ((outcome, pointed),) = noted
    assert (outcome.state, outcome.serves, pointed) == ("going back", "v1", "v2")
    assert "v2 does not work" in outcome.reason and "answered 500" in outcome.reason


def test_a_pointer_that_somebody_else_moved_meanwhile_is_left_there(
    models: ModelStore, url: str, evaluation: Path, tmp_path: Path
) -> None:
    (tmp_path / "three").write_bytes(b"3")
    models.publish(tmp_path / "three", version="v3", metrics={}, data_fingerprint="f", commit="c")
    release = Release(url, {"v2": 500})

    def overtake(outcome: Outcome) -> None:
        models.promote("v3", expected="v2")

    outcome = roll_out(models, release, "v2", "v1", evaluation / "probe", overtake)
    assert outcome.state == "not serving"
    assert "v2 does not work" in outcome.reason
    assert "Somebody else moved the pointer meanwhile" in outcome.reason
    assert (serving(models), release.taken) == ("v3", ["v2"])


def test_a_version_that_somebody_else_replaced_while_it_was_tried_is_not_told_to_serve(
    models: ModelStore, url: str, evaluation: Path
) -> None:
    class Overtaken(Release):
        def take_up(self, version: str) -> Endpoint:
            endpoint = super().take_up(version)
            models.promote("v1", expected="v2")
            return endpoint

    outcome = attempt(models, Overtaken(url, {"v2": RIGHT}), evaluation)
    assert (outcome.state, outcome.serves, outcome.heard) == ("not serving", "v1", None)
    assert "v2 works, but somebody else put v1 into production" in outcome.reason
    assert serving(models) == "v1"


class Killed(BaseException):
    """As SIGKILL: nothing after it is done."""


Step = Callable[..., str]


@pytest.fixture
def step(
    models: ModelStore, store: StoreConfig, evaluation: Path, monkeypatch: pytest.MonkeyPatch
) -> Step:
    """The pipeline's step, which rolls v2 out on a release where v1 serves."""

    def run(release: Release, expected: str = "v1") -> str:
        monkeypatch.setattr(steps, "KubernetesServing", lambda **_: release)
        settings = {"namespace": "n", "deployment": "d", "url": "u"}
        return steps.put_into_production(store.url, "v2", expected, evaluation, settings, "run-1")

    return run


@pytest.mark.parametrize("moved", [False, True], ids=["before the pointer moved", "after it"])
def test_a_kill_on_the_way_back_does_not_put_the_version_in_again(
    models: ModelStore, url: str, step: Step, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    promote = ModelStore.promote

    def killed(self: ModelStore, version: str, *, expected: str | None) -> Production:
        if version == "v2":
            return promote(self, version, expected=expected)
        if moved:
            promote(self, version, expected=expected)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "promote", killed)
        with pytest.raises(Killed):
            step(Release(url, {"v2": 500}))
    assert serving(models) == ("v1" if moved else "v2")

    again = Release(url, {"v1": RIGHT})
    with pytest.raises(RollOutError, match=r"^rolled back: v2 does not work: .*\. v1 serves\."):
        step(again)
    assert (serving(models), again.taken) == ("v1", ["v1"])
    with pytest.raises(RollOutError, match="This run does not try again"):
        step(Release(url, {}))


def test_a_conflict_on_the_way_back_is_no_version_that_was_not_rolled_out(
    models: ModelStore, url: str, step: Step, tmp_path: Path
) -> None:
    (tmp_path / "three").write_bytes(b"3")
    models.publish(tmp_path / "three", version="v3", metrics={}, data_fingerprint="f", commit="c")

    class Overtaken(Release):
        def take_up(self, version: str) -> Endpoint:
            models.promote("v3", expected="v2")
            return super().take_up(version)

    with pytest.raises(RollOutError, match="not serving: v2 does not work.*Somebody else moved"):
        step(Overtaken(url, {"v2": 500}))
    text = record.notes(models.objects, "run-1")["roll-out"].text
    assert "was not rolled out" not in text
    assert serving(models) == "v3"


def test_a_run_that_was_overtaken_says_so(models: ModelStore, url: str, step: Step) -> None:
    with pytest.raises(RollOutError, match="v1 is in production, not v0. Start another run"):
        step(Release(url, {}), "v0")
    assert "v2 was not rolled out" in record.notes(models.objects, "run-1")["roll-out"].text
    assert serving(models) == "v1"


def test_a_run_that_was_rolled_back_fails_and_its_summary_says_so(
    models: ModelStore, url: str, step: Step
) -> None:
    with pytest.raises(RollOutError, match="rolled back: v2 does not work"):
        step(Release(url, {"v1": RIGHT, "v2": 500}))
    found = record.notes(models.objects, "run-1")
    text = record.summary(found, record.Ending(state="FAILED"), "run-1")
    assert "The run failed. rolled back: v2 does not work" in text and "v1 serves" in text


def test_an_empty_release_changes_nothing_and_the_step_can_be_repeated(
    models: ModelStore, url: str, step: Step
) -> None:
    release = Release(url, {"v1": RIGHT, "v2": RIGHT})
    release.empty = True
    with pytest.raises(RollOutError, match="v2 cannot be tried: the release is scaled to zero"):
        step(release)
    assert serving(models) == "v1" and release.taken == []
    assert "Production was not changed" in record.notes(models.objects, "run-1")["roll-out"].text
    release.empty = False
    step(release)
    assert serving(models) == "v2"


@pytest.mark.parametrize(
    ("state", "values", "well"),
    [
        ("SUCCEEDED", {"state": "serving"}, True),
        ("COMPLETE", {"state": "serving"}, True),
        ("RUNNING", {"state": "serving"}, True),
        ("RUNNING", {"state": "rolled back"}, False),
        ("SUCCEEDED", {"state": "not serving"}, False),
        ("FAILED", {"state": "serving"}, True),  # a step before failed once, and then did not
    ],
)
def test_the_summary_knows_a_run_that_went_well_by_any_name(
    state: str, values: dict[str, JsonValue], well: bool
) -> None:
    found = {"publish": record.Note(text="v8"), "roll-out": record.Note(text="v8.", values=values)}
    text = record.summary(found, record.Ending(state=state), "run-1")
    assert ("The run failed." in text) is not well


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
@pytest.mark.parametrize(("deploy", "well"), [(False, True), (True, False)])
def test_a_run_whose_end_is_not_surely_known_went_well_if_the_gate_refused(
    state: str, deploy: bool, well: bool
) -> None:
    """If it did not, the roll-out would have something to say."""
    found = {"gate": record.Note(text="Decided.", values={"deploy": deploy})}
    text = record.summary(found, record.Ending(state=state), "run-1")
    assert ("The run failed." in text) is not well

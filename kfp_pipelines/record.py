"""What the steps of one run found, kept in the store, so that the last step can sum it up.

An exit handler sees no outputs of other steps: they write `runs/<run>/<step>.json`, it reads them.
"""

import tempfile
from pathlib import Path

import requests
from pydantic import BaseModel, ConfigDict, JsonValue

from store import Objects

WEBHOOK_SECONDS = 20.0
ROLL_OUT = "roll-out"
# In the order in which the steps are told.
STEPS = ("ingest", "models", "gate", "publish", ROLL_OUT)


class Note(BaseModel):
    """What one step has to say: a sentence, and values by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    values: dict[str, JsonValue] = {}


def note(objects: Objects, run: str, step: str, text: str, **values: JsonValue) -> None:
    """Keep what a step has found; a step that is repeated replaces it."""
    print(text, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "note.json"
        path.write_text(Note(text=text, values=values).model_dump_json(), encoding="utf-8")
        objects.upload(path, _key(run, step))


def notes(objects: Objects, run: str) -> dict[str, Note]:
    """Return what the steps of a run have kept, in their order."""
    there = set(objects.keys(f"runs/{run}/"))
    return {
        step: Note.model_validate_json(objects.read(_key(run, step)).data)
        for step in STEPS
        if _key(run, step) in there
    }


class Ending(BaseModel):
    """How a run ended, as Kubeflow tells its exit handler."""

    state: str
    error: str = ""

    def succeeded(self, found: dict[str, Note]) -> bool:
        """Whether the run came to its end: a version that serves, or one that was refused.

        What the last steps kept decides, for Kubeflow 2.15 to 2.17 does not always know: it says
        COMPLETE, as ML Metadata does, RUNNING where a loop lies inside the exit handler
        (kubeflow/pipelines #13321), and may say FAILED where a step failed once and then did not
        (#13591).
        """
        gate, roll_out = found.get("gate"), found.get(ROLL_OUT)
        if roll_out is not None:
            return roll_out.values.get("state") == "serving"
        if gate is not None and gate.values.get("deploy") is False:
            return True
        return self.state in ("SUCCEEDED", "COMPLETE")


def summary(found: dict[str, Note], ending: Ending, run: str) -> str:
    """The run in Markdown: what it came to, then each step."""
    roll_out, gate = found.get(ROLL_OUT), found.get("gate")
    last = roll_out or gate
    if ending.succeeded(found) and last is not None:
        head = last.text
    else:
        head = f"The run failed{f': {ending.error}' if ending.error else ''}."
        if last is not None:
            head += f" {last.text}"
        if "publish" not in found:
            head += " Production was not changed."
    lines = [f"| {step} | {_cell(entry.text)} |" for step, entry in found.items()]
    table = "\n".join(["| step | |", "|---|---|", *lines]) if lines else "No step got to an end."
    return f"# Steno retraining\n\n{head}\n\n{table}\n\nRun `{run}`.\n"


def tell(url: str, text: str) -> str | None:
    """Post a summary to a webhook, as Slack, Mattermost and Teams take it; the problem, if any."""
    try:
        response = requests.post(url, json={"text": text}, timeout=WEBHOOK_SECONDS)
    except requests.RequestException as error:
        # The address itself is a secret: whoever knows it may post.
        return f"the webhook could not be reached ({type(error).__name__})"
    return None if response.ok else f"the webhook answered {response.status_code}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _key(run: str, step: str) -> str:
    return f"runs/{run}/{step}.json"

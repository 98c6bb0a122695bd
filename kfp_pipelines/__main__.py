"""The retraining pipeline from a shell.

    python -m kfp_pipelines compile --image REGISTRY/steno-train:TAG --output retraining.yaml
    python -m kfp_pipelines run --local --store s3://bucket/prefix data_manifest=s3://bucket/m.jsonl
    python -m kfp_pipelines submit --host URL --store ... data_manifest=... [NAME=VALUE ...]
    python -m kfp_pipelines schedule --host URL --cron '0 0 3 * * 0' --store ... data_manifest=...
    python -m kfp_pipelines status --host URL [RUN]

NAME=VALUE are the pipeline's parameters; docs/pipeline.md tells what each does.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfp_pipelines.compiled import (
    COMPILED,
    DOCUMENT,
    compile_yaml,
    parameter_table,
    specification,
)
from kfp_pipelines.components import IMAGE
from kfp_pipelines.local import RunFailed, local_session
from kfp_pipelines.pipeline import NAME, retraining
from kfp_pipelines.remote import Remote, RemoteError
from kfp_pipelines.steps import StepError, store_config
from store import StoreError
from training.documents import fill


class WrongParameter(ValueError):
    """A parameter that the pipeline does not have, or a value that does not fit."""


def parameters(words: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE words as the pipeline's parameters.

    Raises:
        WrongParameter: a name is unknown, a value has another type, or a needed one is missing.
    """
    known = dict(retraining.component_spec.inputs or {})
    del known["store"]
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in known:
            raise WrongParameter(f"{word!r} is no parameter; there are {', '.join(known)}")
        values[name] = _value(name, known[name].type, text)
    if missing := [n for n, spec in known.items() if not spec.optional and n not in values]:
        raise WrongParameter(f"{', '.join(missing)} must be given, as NAME=VALUE")
    return values


KINDS: dict[str, tuple[type, ...]] = {
    "Integer": (int,),
    "Float": (float, int),
    "Boolean": (bool,),
    "Dict": (dict,),
}
EXAMPLES = {"Integer": "3", "Float": "0.05", "Boolean": "true", "Dict": '{"max_seconds": 25}'}


def _value(name: str, kind: Any, text: str) -> Any:
    named = kind if isinstance(kind, str) else kind.__name__
    if named not in KINDS:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    fits = isinstance(value, KINDS[named]) and (named == "Boolean") == isinstance(value, bool)
    if not fits:
        raise WrongParameter(f"{name}={text}: it takes a value such as {EXAMPLES[named]}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit status is 1 when it failed, 2 for wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except (WrongParameter, StepError) as error:
        parser.error(str(error))
    except (RemoteError, RunFailed, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _compile(options: argparse.Namespace) -> None:
    compiled = compile_yaml(options.image)
    options.output.write_text(compiled, encoding="utf-8")
    if options.output == COMPILED:
        fill(DOCUMENT, "parameters", parameter_table(compiled))
    print(f"{options.output}: upload it in Kubeflow's UI, or `submit` it")


def _run(options: argparse.Namespace) -> None:
    values = parameters(options.parameters)
    options.folder.mkdir(parents=True, exist_ok=True)
    session = local_session(
        store_config(options.store), options.folder, caching=not options.no_cache
    )
    with session as (_, runner):
        runner.run(values)


def _submit(options: argparse.Namespace) -> None:
    values = {"store": options.store, **parameters(options.parameters)}
    run = _remote(options).submit(options.name, specification(options.image), values)
    print(f"{run}\n{options.host.rstrip('/')}/#/runs/details/{run}")


def _schedule(options: argparse.Namespace) -> None:
    values = {"store": options.store, **parameters(options.parameters)}
    spec = specification(options.image)
    recurring = _remote(options).schedule(options.name, spec, values, options.cron)
    print(f"{recurring}\n{options.host.rstrip('/')}/#/recurringrun/details/{recurring}")


def _status(options: argparse.Namespace) -> None:
    remote = _remote(options)
    runs = [remote.status(options.run)] if options.run else remote.recent()
    print("\n".join(map(str, runs)) or "there are no runs")


def _remote(options: argparse.Namespace) -> Remote:
    return Remote(options.host, options.token, options.namespace)


COMMANDS = {
    "compile": _compile,
    "run": _run,
    "submit": _submit,
    "schedule": _schedule,
    "status": _status,
}


def _parser() -> argparse.ArgumentParser:
    store_group = argparse.ArgumentParser(add_help=False)
    url = os.environ.get("STENO_STORE")
    store_group.add_argument(
        "--store", default=url, required=not url, help="s3://bucket/prefix or a folder"
    )
    store_group.add_argument(
        "parameters", nargs="*", metavar="NAME=VALUE", help="the pipeline's parameters"
    )
    image = argparse.ArgumentParser(add_help=False)
    image.add_argument("--image", default=IMAGE, help="the image of target `train`")
    server = argparse.ArgumentParser(add_help=False)
    host = os.environ.get("KFP_HOST")
    server.add_argument(
        "--host", default=host, required=not host, help="the UI's address (or KFP_HOST)"
    )
    server.add_argument("--token", default=os.environ.get("KFP_TOKEN"), help="or KFP_TOKEN")
    server.add_argument("--namespace", help="of your profile, on a multi-user Kubeflow")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default=NAME, help="what the run is called")

    parser = argparse.ArgumentParser(prog="python -m kfp_pipelines", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=list(parents))

    compile_ = add("compile", "Write the pipeline as Kubeflow's YAML", image)
    compile_.add_argument("--output", type=Path, default=COMPILED)
    run = add("run", "Run the pipeline on this machine", store_group)
    run.add_argument("--local", action="store_true", required=True, help="on this machine")
    run.add_argument("--folder", type=Path, default=Path("runs/pipeline"), help="for its outputs")
    run.add_argument("--no-cache", action="store_true", help="do every step anew")
    add("submit", "Start a run on a cluster", store_group, image, server, named)
    schedule = add("schedule", "Run again and again", store_group, image, server, named)
    schedule.add_argument(
        "--cron", required=True, help="six fields, seconds first: '0 0 3 * * 0' is Sundays at three"
    )
    status = add("status", "Show a run and its steps, or the newest runs", server)
    status.add_argument("run", nargs="?", help="a run's identifier")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The model store from a shell.

    python -m store list --store s3://bucket/prefix
    python -m store promote v7 --store s3://bucket/prefix

STENO_STORE stands in for --store. Credentials, and a server that is not AWS, come by boto3's own
variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3, ...).
"""

import argparse
import json
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from store.config import StoreConfig
from store.errors import StoreError
from store.models import ModelStore

NOTHING = "none"
UNKNOWN = "unknown"  # what a person who publishes by hand may not have


def main(arguments: list[str] | None = None) -> int:
    """Run one command. The exit status is 1 when the store refused or failed, 2 for wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        config = StoreConfig(
            url=options.store,
            endpoint=options.endpoint,
            region=options.region,
            encryption=options.encryption,
            kms_key=options.kms_key,
        )
    except ValidationError as error:
        parser.error("; ".join(problem["msg"] for problem in error.errors()))
    try:
        COMMANDS[options.command](ModelStore.open(config), options)
    except (StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _list(store: ModelStore, options: argparse.Namespace) -> None:
    current = store.production()
    releases = sorted(map(store.release, store.versions()), key=lambda item: item.published_at)
    for item in releases:
        mark = "  in production" if current and item.version == current.version else ""
        print(
            f"{item.version}  {item.published_at:%Y-%m-%d %H:%M}  {item.size / 1e6:.1f} MB"
            f"  from {item.parent or NOTHING}{mark}"
        )


def _show(store: ModelStore, options: argparse.Namespace) -> None:
    print(store.release(options.version).model_dump_json(indent=2))


def _publish(store: ModelStore, options: argparse.Namespace) -> None:
    metrics = {}
    if options.metrics is not None:
        try:
            metrics = json.loads(options.metrics.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{options.metrics} is not JSON: {error}") from None
    release = store.publish(
        options.archive,
        version=options.version,
        metrics=metrics,
        data_fingerprint=options.data_fingerprint,
        commit=options.commit,
        parent=options.parent,
    )
    print(f"{release.version}  {release.size / 1e6:.1f} MB  sha256 {release.sha256}")


def _fetch(store: ModelStore, options: argparse.Namespace) -> None:
    version = options.version
    if version is None:
        current = store.production()
        if current is None:
            raise StoreError("nothing is in production; name a version to fetch")
        version = current.version
    print(f"{version}  {store.fetch(version, options.output)}")


def _promote(store: ModelStore, options: argparse.Namespace) -> None:
    if options.expected is None:
        current = store.production()
        expected = current.version if current else None
    else:
        expected = None if options.expected == NOTHING else options.expected
    moved = store.promote(options.version, expected=expected)
    print(f"{moved.version} is in production; before it was {moved.previous or NOTHING}")


def _production(store: ModelStore, options: argparse.Namespace) -> None:
    current = store.production()
    if current is None:
        raise StoreError("nothing is in production")
    print(current.model_dump_json(indent=2))


COMMANDS = {
    "list": _list,
    "show": _show,
    "publish": _publish,
    "fetch": _fetch,
    "promote": _promote,
    "production": _production,
}


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("the store")
    url = os.environ.get("STENO_STORE")
    fields = StoreConfig.model_fields
    group.add_argument("--store", default=url, required=not url, help=fields["url"].description)
    for name in ("endpoint", "region", "kms_key"):
        group.add_argument(f"--{name.replace('_', '-')}", help=fields[name].description)
    group.add_argument(
        "--encryption", choices=("AES256", "aws:kms"), help=fields["encryption"].description
    )

    parser = argparse.ArgumentParser(prog="python -m store", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    add("list", "List the published versions, oldest first")
    add("production", "Print the production pointer")

    show = add("show", "Print a version's release.json")
    show.add_argument("version")

    publish = add("publish", "Store an archive as a new version")
    publish.add_argument("version")
    publish.add_argument("--archive", type=Path, required=True, help="asr.mar")
    publish.add_argument("--metrics", type=Path, help="the evaluation's metrics.json")
    publish.add_argument(
        "--data-fingerprint", default=UNKNOWN, help="of the data it was trained on"
    )
    publish.add_argument("--commit", default=UNKNOWN, help="of the code that trained it")
    publish.add_argument("--parent", help="the version that its training started from")

    fetch = add("fetch", "Download a version's archive and verify it")
    fetch.add_argument("version", nargs="?", help="by default the one in production")
    fetch.add_argument("--output", type=Path, required=True, help="folder that asr.mar goes into")

    promote = add("promote", "Put a version into production, or go back to a former one")
    promote.add_argument("version")
    promote.add_argument(
        "--expected",
        help=f"refuse unless this version is in production ('{NOTHING}': nothing is); by default "
        "the one that is there when the command starts",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

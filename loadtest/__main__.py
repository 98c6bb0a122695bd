"""A load test from one command: python -m loadtest [--host URL] [Locust's options and ours]

Without --host it starts the packed checkpoint's TorchServe on this machine and stops it afterwards.
The exit status is 0 when the objectives are met, 1 when one is missed or all quantiles have too few
answers, 2 when no test could be made.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from handler.server import ServerError, TorchServe
from loadtest.transports import PROTOCOLS

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
ROOT = LOCUSTFILE.parent.parent
# With the open loop's rate it is the load that objectives.yaml is written for.
DEFAULTS = ("--headless", "--users", "1", "--run-time", "3m", "--only-summary")
BROKEN = 2
# Locust itself prints its help before it reads the locustfile, which has our options.
HELP = (
    "from locust.argument_parser import get_parser; import loadtest.locustfile;"
    " get_parser().print_help()"
)
REPORT_SECONDS = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Run a test; what is not ours goes to Locust, where the last of two equal options counts."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help", action="store_true", help="our options and Locust's")
    parser.add_argument(
        "-H",
        "--host",
        default=os.environ.get("LOCUST_HOST"),
        help="an endpoint that runs; its token is STENO_TOKEN or --token",
    )
    parser.add_argument(
        "--model-store", type=Path, default=Path("dist"), help="without --host: folder with asr.mar"
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default=os.environ.get("STENO_PROTOCOL", PROTOCOLS[0])
    )
    options, for_locust = parser.parse_known_args(arguments)
    for_locust += ["--protocol", options.protocol]
    if options.help:
        parser.print_help()
        return _run([sys.executable, "-c", HELP], {})
    try:
        if options.host:
            signal.signal(signal.SIGTERM, _leave)  # as TorchServe's context does
            return _locust([*DEFAULTS, "--host", options.host, *for_locust], {})
        with TorchServe(options.model_store) as server:
            over_grpc = options.protocol == "grpc"
            port = server.ports.grpc_inference if over_grpc else server.ports.inference
            host = f"127.0.0.1:{port}" if over_grpc else f"http://127.0.0.1:{port}"
            keys = json.loads(server.key_file.read_text())
            tokens = {  # not on the command line, which every user of the machine can read
                "STENO_TOKEN": keys["inference"]["key"],
                "STENO_MANAGEMENT_TOKEN": keys["management"]["key"],
                "STENO_MANAGEMENT_URL": server.management_url,
                "STENO_METRICS_URL": server.metrics_url,
            }
            return _locust([*DEFAULTS, "--host", host, *for_locust], tokens)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        return BROKEN


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _locust(arguments: list[str], variables: dict[str, str]) -> int:
    """Run Locust in a process of its own: it patches the standard library for gevent."""
    return _run([sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *arguments], variables)


def _run(command: list[str], variables: dict[str, str]) -> int:
    # Its folder must find `loadtest`, from wherever this is called.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path, **variables}) as locust:
        try:
            return locust.wait()
        except BaseException:
            locust.terminate()  # it still reports on what it has
            with contextlib.suppress(subprocess.TimeoutExpired):
                locust.wait(REPORT_SECONDS)
            locust.kill()
            raise


if __name__ == "__main__":
    sys.exit(main())

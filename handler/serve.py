"""Serve dist/asr.mar on this machine until Ctrl-C: python -m handler.serve --model-store dist"""

import argparse
import sys
from pathlib import Path

from handler.server import LOOPBACK, Ports, ServerError, TorchServe


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C; the exit status is 0 then, and 1 when the server could not be had."""
    # argparse and not jsonargparse: this also runs where only the serving set is installed.
    parser = argparse.ArgumentParser(prog="python -m handler.serve", description=__doc__)
    parser.add_argument(
        "--model-store", type=Path, default=Path("dist"), help="the folder with asr.mar"
    )
    parser.add_argument(
        "--host", default=LOOPBACK, help="to listen at; 0.0.0.0 for callers elsewhere"
    )
    options = parser.parse_args(arguments)

    try:
        ports = Ports()
        if taken := ports.taken(options.host):
            print(f"Ports {taken} are in use; taking free ones instead.")
            ports = Ports.free()
        print("Starting TorchServe ...", flush=True)
        with TorchServe(options.model_store, ports=ports, host=options.host) as server:
            print(_usage(server), flush=True)
            server.wait()
            print(f"TorchServe ended. The end of its log:\n{server.log_tail()}", file=sys.stderr)
            return 1
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


def _usage(server: TorchServe) -> str:
    return f"""\
Ready. Ctrl-C stops it. Transcribe a file:

  curl {server.predictions_url} \\
    -H "Authorization: Bearer {server.inference_token}" \\
    -F file=@recording.wav -F response_format=json

Metrics: {server.metrics_url}
Workers and queue: {server.management_url} (with the management token)
Tokens: {server.key_file}
"""


if __name__ == "__main__":
    sys.exit(main())

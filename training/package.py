"""Build asr.mar: everything that TorchServe needs to serve one checkpoint, in one file.

    python -m training.package --checkpoint model/shipped --output dist

The archive is made by torch-model-archiver and then written by us as a zip without times,
permissions, order of the disk, or compression (whose bytes differ between zlib's versions), so the
same sources and the same checkpoint give the same bytes on every machine, and its SHA-256 says
whether two releases are one.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import (
    CARD,
    CONFIG,
    LANGUAGE_MODEL,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    load_checkpoint,
)
from model.language_model import LanguageModel, LanguageModelError
from training.files import atomic_writer, write_text

MODEL_NAME = "asr"
ARCHIVE_NAME = f"{MODEL_NAME}.mar"
# Of the archive's layout and not of the weights: those have the archive's SHA-256.
ARCHIVE_VERSION = "1.0"

ROOT = Path(__file__).resolve().parent.parent
ENTRY_POINT = Path("handler/asr_handler.py")
# The rest of handler/ runs outside the archive: the local server and what configures it.
HANDLER_MODULES = (
    "__init__.py",
    "auth.py",
    "batch.py",
    "busy.py",
    "config.py",
    "cpus.py",
    "errors.py",
    "kernels.py",
    "metrics.py",
    "request.py",
    "transport.py",
)
CHECKPOINT_FILES = (WEIGHTS, CONFIG, TOKENIZER, CARD)
LICENCES = ("LICENSE", "NOTICE")

# The earliest time that a zip can hold.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
MANIFEST = Path("MAR-INF/MANIFEST.json")
MANIFEST_TIME = "01/01/1980 00:00:00"
FILE_MODE = 0o100644
UNIX = 3


class PackageError(RuntimeError):
    """The archive could not be made; the message says why and what would help."""


@dataclass(frozen=True)
class Package:
    """A finished archive and its SHA-256 in hexadecimal."""

    path: Path
    sha256: str


def build_package(
    checkpoint: Path,
    output: Path,
    *,
    model_config: Path | None = None,
    root: Path = ROOT,
) -> Package:
    """Write `output`/asr.mar and asr.mar.sha256 beside it (for `sha256sum --check`).

    Each of the two is there whole or not at all; the checksum comes last.

    Args:
        checkpoint: the checkpoint's folder; it is loaded once, to see that it can be.
        output: a folder, made if it is not there.
        model_config: TorchServe's settings for the model; handler/model-config.yaml by default.
        root: the repository whose `handler/` and `model/` go in.

    Raises:
        PackageError: checkpoint or n-gram do not load, there is no model card, or the archiver failed.
    """
    _check_checkpoint(checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="steno-package-") as name:
        work = Path(name)
        _stage(root, checkpoint, work / "staged")
        # The archiver asks for this file by name.
        settings = work / "model-config.yaml"
        shutil.copyfile(model_config or root / "handler" / "model-config.yaml", settings)
        shutil.copyfile(root / ENTRY_POINT, work / ENTRY_POINT.name)
        _run_archiver(work)
        archived = work / "exported" / MODEL_NAME
        _forget_time(archived / MANIFEST)
        sha256 = _write_zip(archived, output / ARCHIVE_NAME)
    write_text(output / f"{ARCHIVE_NAME}.sha256", f"{sha256}  {ARCHIVE_NAME}\n")
    return Package(output / ARCHIVE_NAME, sha256)


def _check_checkpoint(checkpoint: Path) -> None:
    try:
        loaded = load_checkpoint(checkpoint)
        if loaded.language_model is not None:
            LanguageModel(loaded.language_model)
    except (CheckpointError, LanguageModelError) as error:
        raise PackageError(f"the checkpoint cannot be packaged: {error}") from error
    if not (checkpoint / CARD).is_file():
        raise PackageError(f"{checkpoint} has no {CARD}; nobody should serve a model without one")


def _stage(root: Path, checkpoint: Path, staged: Path) -> None:
    """Lay the archive's files out, apart from the entry point and the configuration."""
    sources = [(root / "handler" / name, Path("handler") / name) for name in HANDLER_MODULES]
    sources += [(path, Path("model") / path.name) for path in (root / "model").glob("*.py")]
    files = [*CHECKPOINT_FILES]
    if (checkpoint / LANGUAGE_MODEL).is_file():
        files.append(LANGUAGE_MODEL)
    sources += [(checkpoint / name, Path("checkpoint") / name) for name in files]
    sources += [(root / name, Path(name)) for name in LICENCES if (root / name).is_file()]
    for source, target in sources:
        (staged / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, staged / target)


def _run_archiver(work: Path) -> None:
    (work / "exported").mkdir()
    (work / "scratch").mkdir()
    command = [
        *(sys.executable, "-m", "model_archiver.model_packaging"),
        *("--model-name", MODEL_NAME, "--version", ARCHIVE_VERSION),
        *("--handler", ENTRY_POINT.name, "--config-file", "model-config.yaml"),
        *("--extra-files", "staged", "--archive-format", "no-archive"),
        *("--export-path", "exported"),
    ]
    # It works in <TMPDIR>/<model name> and clears that folder first: two builds at once would
    # destroy each other's, and so would a stranger's folder of this name.
    environment = {**os.environ, "TMPDIR": str(work / "scratch")}
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise PackageError(f"torch-model-archiver failed:\n{done.stderr.strip()}")


def _forget_time(manifest: Path) -> None:
    values = json.loads(manifest.read_text(encoding="utf-8"))
    values["createdOn"] = MANIFEST_TIME
    manifest.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_zip(folder: Path, target: Path) -> str:
    """Zip a folder so that only names and contents matter; return the zip's SHA-256."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    with atomic_writer(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            if files[name].is_file():
                entry = zipfile.ZipInfo(name, ZIP_TIME)
                entry.external_attr = FILE_MODE << 16
                entry.create_system = UNIX
                archive.writestr(entry, files[name].read_bytes())
    with target.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Build the archive from the command line; the exit status is 1 when it could not be made."""
    # argparse and not jsonargparse: this also runs where only the serving set is installed.
    parser = argparse.ArgumentParser(prog="python -m training.package", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--output", type=Path, required=True, help="where asr.mar goes")
    parser.add_argument(
        "--model-config", type=Path, help="instead of handler/model-config.yaml: workers, batches"
    )
    options = parser.parse_args(arguments)
    try:
        package = build_package(
            options.checkpoint,
            options.output,
            model_config=options.model_config,
        )
    except PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{package.path}  {package.path.stat().st_size / 1e6:.1f} MB  sha256 {package.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

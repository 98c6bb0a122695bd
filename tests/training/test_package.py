import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from model.checkpoint import LANGUAGE_MODEL
from tests.model.test_language_model import ARPA
from tests.random_checkpoint import make_random_checkpoint
from training.package import (
    ARCHIVE_NAME,
    CHECKPOINT_FILES,
    HANDLER_MODULES,
    ROOT,
    PackageError,
    build_package,
    main,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_checkpoint(tmp_path_factory.mktemp("package") / "checkpoint")


@pytest.fixture(scope="module")
def archive(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_package(checkpoint, tmp_path_factory.mktemp("dist")).path


def other_machine(checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """Copy sources and checkpoint elsewhere, with other times, permissions and build leftovers."""
    root = folder / "clone with spaces, and a comma"
    for room in ("handler", "model"):
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("shipped"))
        (root / room / "__pycache__").mkdir(exist_ok=True)
        (root / room / "__pycache__" / "left.pyc").write_bytes(b"left over")
    for licence in ("LICENSE", "NOTICE"):
        if (ROOT / licence).is_file():
            shutil.copy(ROOT / licence, root / licence)
    copy = shutil.copytree(checkpoint, folder / "weights")
    (copy / "train.log").write_text("not part of a release")
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            os.utime(path, (1_000_000_000, 1_000_000_000))
    return root, copy


def test_the_same_inputs_give_the_same_bytes_anywhere(
    checkpoint: Path, archive: Path, tmp_path: Path
) -> None:
    root, copy = other_machine(checkpoint, tmp_path)
    again = build_package(copy, tmp_path / "dist", root=root).path
    assert again.read_bytes() == archive.read_bytes()


def test_the_checkpoints_ngram_travels_along_if_it_loads(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    ngram = folder / LANGUAGE_MODEL
    ngram.write_bytes(lzma.compress(ARPA.encode()))
    package = build_package(folder, tmp_path / "dist")
    with zipfile.ZipFile(package.path) as file:
        assert file.read(f"checkpoint/{LANGUAGE_MODEL}") == ngram.read_bytes()
    ngram.write_bytes(lzma.compress(b"no n-gram"))
    with pytest.raises(PackageError, match=r"language_model\.arpa\.xz is not an n-gram"):
        build_package(folder, tmp_path / "dist")


def test_the_archive_holds_what_serving_needs_and_nothing_else(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        manifest = json.loads(file.read("MAR-INF/MANIFEST.json"))
    assert {f"checkpoint/{name}" for name in CHECKPOINT_FILES} <= names
    assert {f"handler/{name}" for name in HANDLER_MODULES} <= names
    assert {f"model/{path.name}" for path in (ROOT / "model").glob("*.py")} <= names
    assert {"asr_handler.py", "model-config.yaml"} <= names
    tops = {name.split("/")[0] for name in names}
    licences = {name for name in ("LICENSE", "NOTICE") if (ROOT / name).is_file()}
    assert tops == licences | {
        *("MAR-INF", "asr_handler.py", "checkpoint", "handler", "model", "model-config.yaml")
    }
    assert manifest["model"] == {
        "modelName": "asr",
        "modelVersion": "1.0",
        "handler": "asr_handler.py",
        "configFile": "model-config.yaml",
    }


def test_the_checksum_lies_beside_it_in_sha256sum_format(archive: Path) -> None:
    expected = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert archive.with_name(f"{ARCHIVE_NAME}.sha256").read_text() == f"{expected}  asr.mar\n"


PROBE = """
import sys
from pathlib import Path
import asr_handler
asr_handler.AsrHandler()
folder = Path(asr_handler.__file__).parent
ours = ("asr_handler", "handler", "model", "training", "store", "tests")
loaded = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ours}
for name, module in loaded.items():
    assert Path(module.__file__).is_relative_to(folder), (name, module.__file__)
print(sorted({name.split(".")[0] for name in loaded}))
"""


def test_the_handler_runs_from_the_archive_alone(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "unpacked")
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['asr_handler', 'handler', 'model']"


def test_other_settings_for_torchserve_can_go_in(checkpoint: Path, tmp_path: Path) -> None:
    settings = tmp_path / "gpu.yaml"
    settings.write_text("minWorkers: 2\nmaxWorkers: 2\n")
    package = build_package(checkpoint, tmp_path, model_config=settings)
    with zipfile.ZipFile(package.path) as file:
        assert file.read("model-config.yaml") == settings.read_bytes()


def test_a_checkpoint_that_does_not_load_is_refused_and_the_last_archive_stays(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / ARCHIVE_NAME).write_bytes(b"the last release")
    assert main(["--checkpoint", str(damaged), "--output", str(tmp_path / "dist")]) == 1
    message = capsys.readouterr().err
    assert "cannot be packaged" in message
    assert "model.safetensors" in message
    assert (tmp_path / "dist" / ARCHIVE_NAME).read_bytes() == b"the last release"
    assert [path.name for path in (tmp_path / "dist").iterdir()] == [ARCHIVE_NAME]


def test_a_checkpoint_without_a_model_card_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "MODEL_CARD.md").unlink()
    with pytest.raises(PackageError, match=r"MODEL_CARD\.md"):
        build_package(bare, tmp_path / "dist")


def test_builds_at_the_same_time_do_not_disturb_each_other(
    checkpoint: Path, archive: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "training.package", "--checkpoint", str(checkpoint)]
    builds = [
        subprocess.Popen([*command, "--output", str(tmp_path / str(number))], cwd=ROOT)
        for number in range(2)
    ]
    assert [build.wait() for build in builds] == [0, 0]
    for number in range(2):
        assert (tmp_path / str(number) / ARCHIVE_NAME).read_bytes() == archive.read_bytes()

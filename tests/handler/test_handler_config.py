from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from handler.config import HandlerConfig, read_handler_config, workers_of
from handler.cpus import cgroup_cpus, threads_for_worker

MODEL_CONFIG = Path("handler/model-config.yaml")
PROPERTIES = Path("handler/config.properties")


def properties() -> dict[str, str]:
    lines = PROPERTIES.read_text().splitlines()
    settings = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in settings}


def test_the_shipped_model_config_is_valid_and_scales_to_a_fixed_number_of_workers() -> None:
    values = yaml.safe_load(MODEL_CONFIG.read_text())
    assert read_handler_config(values) == HandlerConfig()
    assert values["minWorkers"] == values["maxWorkers"] >= 1
    # Whoever is dropped by it waits for ever.
    assert values["clientTimeoutInMills"] == 0


def test_an_unknown_key_and_an_impossible_value_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_batch_second\n"):
        read_handler_config({"handler": {"max_batch_second": 30}})
    with pytest.raises(ValidationError, match="max_batch_seconds"):
        read_handler_config({"handler": {"max_batch_seconds": 0}})
    with pytest.raises(ValidationError, match="device"):
        read_handler_config({"handler": {"device": "tpu"}})


def test_without_a_handler_section_the_defaults_hold() -> None:
    assert read_handler_config(None) == HandlerConfig()
    assert read_handler_config({"batchSize": 4}) == HandlerConfig()
    assert workers_of(None) == 1
    assert workers_of({"maxWorkers": 3}) == 3


def test_the_server_is_locked_by_default() -> None:
    values = properties()
    assert values["disable_token_authorization"] == "false"
    assert values["management_address"].startswith("http://127.0.0.1:")
    assert values["grpc_management_address"] == "127.0.0.1"
    assert values["enable_model_api"] == "false"
    assert values["install_py_dep_per_model"] == "false"
    assert values["enable_envvars_config"] == "false"
    assert values["allowed_urls"] == "file://$$STENO_MODEL_STORE$$/.*"


def test_the_body_limit_leaves_room_for_the_largest_file_and_its_form() -> None:
    room = int(properties()["max_request_size"]) - HandlerConfig().max_audio_bytes
    assert 0 < room < 2**20


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_the_container_limit_is_read(
    tmp_path: Path, files: dict[str, str], cpus: float | None
) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    assert cgroup_cpus(tmp_path) == cpus


def test_workers_share_the_cpus_and_each_has_one_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    assert threads_for_worker(1, tmp_path) == 8
    assert threads_for_worker(3, tmp_path) == 2
    assert threads_for_worker(16, tmp_path) == 1
    write(tmp_path, "cpu.max", "250000 100000")
    assert threads_for_worker(1, tmp_path) == 3

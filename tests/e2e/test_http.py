"""What callers see, over HTTP from a real TorchServe."""

import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jiwer
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from handler import metrics
from handler.server import TorchServe
from model.audio import load_audio
from model.recognizer import Recognizer
from tests.e2e.inputs import (
    FIXTURES,
    Sent,
    bad,
    encoded,
    fixture_lines,
    form,
    good,
    raw,
    speech,
)
from tests.random_checkpoint import SHIPPED

BATCH_SIZE = 8
TIMEOUT = 300


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    """The same weights in this process: what the server must answer."""
    return Recognizer.load(SHIPPED, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def expected(recognizer: Recognizer) -> str:
    """The text of `speech()`, from the recognizer in this process."""
    return recognizer.transcribe([load_audio(encoded(speech()))]).transcripts[0].text


def post(server: TorchServe, sent: Sent) -> requests.Response:
    headers = {**server.authorization, **sent.arguments.get("headers", {})}
    return requests.post(
        server.predictions_url, **{**sent.arguments, "headers": headers}, timeout=TIMEOUT
    )


def post_together(server: TorchServe, batch: Sequence[Sent]) -> list[requests.Response]:
    with ThreadPoolExecutor(len(batch)) as pool:
        return list(pool.map(lambda sent: post(server, sent), batch))


def values(server: TorchServe) -> dict[str, float]:
    """Return the metrics port's samples, summed over labels other than `Type`."""
    text = requests.get(server.metrics_url, timeout=10).text
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            kind = sample.labels.get("Type")
            name = f"{sample.name}{{{kind}}}" if kind else sample.name
            if not sample.name.endswith("_bucket"):
                samples[name] = samples.get(name, 0.0) + sample.value
    return samples


def growth(server: TorchServe, before: dict[str, float], until: int) -> dict[str, float]:
    """Return what has been added since `before`, once `until` requests have been counted.

    TorchServe takes in a batch's figures one by one, so they must also have come to rest: all but the
    answers that it counts of this very port.
    """
    size = f"{metrics.BATCH_SIZE}_sum"
    deadline = time.monotonic() + 10
    last: dict[str, float] = {}
    while True:
        now = values(server)
        now.pop("Requests2XX_total", None)
        added = {name: value - before.get(name, 0.0) for name, value in now.items()}
        if (added.get(size, 0) >= until and added == last) or time.monotonic() > deadline:
            return added
        last = added
        time.sleep(0.1)


def assert_error(response: requests.Response, sent: Sent) -> None:
    assert response.status_code == sent.status, (sent.name, response.text)
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"type", "message", "param"}
    assert error["type"] == sent.error, (sent.name, error)
    assert error["message"]


def assert_text(response: requests.Response, expected: str) -> None:
    """The answer is JSON with this text, but for what rounding may change in a batch of others."""
    assert response.status_code == 200, response.text
    assert set(response.json()) == {"text"}
    likeness = SequenceMatcher(None, response.json()["text"], expected, autojunk=False).ratio()
    assert likeness > 0.8, (response.json(), expected)


def test_every_container_and_every_way_to_send_gives_the_text(
    server: TorchServe, expected: str
) -> None:
    responses = post_together(server, good())
    for sent, response in zip(good(), responses, strict=True):
        assert response.status_code == 200, (sent.name, response.text)
        assert response.headers["content-type"] == "application/json"
        assert_text(response, expected)


def test_the_shipped_clips_are_recognized(server: TorchServe) -> None:
    lines = fixture_lines()
    clips = [FIXTURES / line["audio_filepath"] for line in lines]
    responses = post_together(server, [raw(clip.name, clip.read_bytes()) for clip in clips])
    references = [words(line["text"]) for line in lines]
    texts = [words(response.json()["text"]) for response in responses]
    assert jiwer.wer(references, texts) < 0.2, list(zip(references, texts, strict=True))


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


@pytest.mark.parametrize(
    ("response_format", "content_type"),
    [
        ("json", "application/json"),
        ("text", "text/plain; charset=utf-8"),
        ("verbose_json", "application/json"),
        ("srt", "text/plain; charset=utf-8"),
        ("vtt", "text/plain; charset=utf-8"),
    ],
)
def test_every_response_format(
    server: TorchServe, expected: str, response_format: str, content_type: str
) -> None:
    wav = encoded(speech())
    in_form, in_header = post_together(
        server,
        [
            form("form", wav, response_format=response_format),
            raw("raw", wav, headers={"X-Steno-Response-Format": response_format}),
        ],
    )
    assert in_form.status_code == in_header.status_code == 200
    assert in_form.headers["content-type"] == content_type
    assert in_form.content == in_header.content
    match response_format:
        case "json":
            assert_text(in_form, expected)
        case "text":
            assert in_form.text.endswith("\n")
            assert "{" not in in_form.text
        case "verbose_json":
            body = in_form.json()
            assert body["duration"] == pytest.approx(len(speech()) / 16_000, abs=0.01)
            assert "segments" in body
            assert "words" not in body
        case "srt":
            assert not expected or "-->" in in_form.text
        case "vtt":
            assert in_form.text.startswith("WEBVTT")


def test_word_times_come_with_both_granularities(server: TorchServe) -> None:
    fields: dict[str, Any] = {
        "response_format": "verbose_json",
        "timestamp_granularities[]": ["word", "segment"],
    }
    accurate, fast = (
        response.json()
        for response in post_together(
            server,
            [form(mode, encoded(speech()), mode=mode, **fields) for mode in ("accurate", "fast")],
        )
    )
    for body in (accurate, fast):
        assert {"words", "segments"} <= set(body)
        assert [word["word"] for word in body["words"]] == body["text"].split() != []
        times = [(word["start"], word["end"]) for word in body["words"]]
        assert times == sorted(times)
        assert all(0 <= start <= end <= body["duration"] for start, end in times)
        assert all(0 <= word["confidence"] <= 1 for word in body["words"])


@pytest.mark.parametrize("sent", bad(), ids=lambda sent: sent.name)
def test_a_bad_input_gets_its_own_error_and_its_neighbours_in_the_batch_their_text(
    server: TorchServe, expected: str, sent: Sent
) -> None:
    neighbour = raw("neighbour", encoded(speech()))
    before = values(server)
    first, refused, last = post_together(server, [neighbour, sent, neighbour])
    assert_error(refused, sent)
    assert_text(first, expected)
    assert_text(last, expected)
    added = growth(server, before, until=3)
    assert added[f"{metrics.BATCH_SIZE}_sum"] == 3
    assert added[f"{metrics.BATCH_SIZE}_count"] == 1, "they were not in one batch"
    assert added[f"{metrics.ERRORS}{{{sent.error}}}"] == 1


def test_a_batch_may_hold_more_bad_than_good(server: TorchServe, expected: str) -> None:
    batch = [*bad()[: BATCH_SIZE - 1], raw("good", encoded(speech()))]
    before = values(server)
    *refused, answered = post_together(server, batch)
    for sent, response in zip(batch, refused, strict=False):
        assert_error(response, sent)
    assert_text(answered, expected)
    assert growth(server, before, until=BATCH_SIZE)[f"{metrics.BATCH_SIZE}_count"] == 1


def test_a_body_of_50_mb_gets_413_and_others_their_text(server: TorchServe, expected: str) -> None:
    neighbour = raw("neighbour", encoded(speech()))
    refused, answered = post_together(server, [raw("50 MB", bytes(50_000_000)), neighbour])
    assert refused.status_code == 413
    assert_text(answered, expected)


def test_a_file_over_the_limit_in_a_body_under_it_gets_our_413(server: TorchServe) -> None:
    sent = raw("40 MiB and a byte", bytes(40 * 2**20 + 1), 413, "audio_too_large")
    assert_error(post(server, sent), sent)


def test_a_header_in_utf8_is_read_as_it_was_written(server: TorchServe) -> None:
    headers: dict[str, str | bytes] = {**server.authorization, "X-Steno-Mode": "schnëll".encode()}
    response = requests.post(server.predictions_url, data=b"any", headers=headers, timeout=60)
    assert response.status_code == 400
    assert "mode is 'schnëll'" in response.json()["error"]["message"]


def test_silence_is_an_empty_text_and_no_error(server: TorchServe) -> None:
    response = post(server, raw("silence", encoded(speech() * 0)))
    assert (response.status_code, response.json()) == (200, {"text": ""})


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer guess"}, {"Authorization": "x"}])
def test_no_token_no_text(server: TorchServe, header: dict[str, str]) -> None:
    response = requests.post(
        server.predictions_url, data=encoded(speech()), headers=header, timeout=TIMEOUT
    )
    # TorchServe says 400 where others say 401.
    assert response.status_code in (400, 401)
    assert "Token Authorization failed" in response.json()["message"]


def test_the_management_api_registers_nothing(server: TorchServe) -> None:
    token = json.loads(server.key_file.read_text())["management"]["key"]
    base = server.management_url.removesuffix("/asr")
    response = requests.post(
        base,
        params={"url": "http://127.0.0.1:9/evil.mar"},
        headers={"Authorization": f"Bearer {token}"},
        timeout=TIMEOUT,
    )
    assert response.status_code in (403, 405)


def test_the_metrics_port_shows_what_was_done(server: TorchServe) -> None:
    before = values(server)
    seconds = len(speech()) / 16_000
    post_together(server, [raw("a", encoded(speech())), raw("b", encoded(speech()))])
    added = growth(server, before, until=2)
    assert added[metrics.AUDIO_SECONDS] == pytest.approx(2 * seconds)
    assert added[f"{metrics.DECODE_SECONDS}_count"] == 1
    assert 0 < added[f"{metrics.DECODE_SECONDS}_sum"] < TIMEOUT
    assert 0 < added[f"{metrics.MODEL_SECONDS}_sum"] < TIMEOUT
    spent = added[f"{metrics.DECODE_SECONDS}_sum"] + added[f"{metrics.MODEL_SECONDS}_sum"]
    assert added[f"{metrics.REAL_TIME_FACTOR}_sum"] == pytest.approx(spent / (2 * seconds))
    assert added[f"{metrics.PADDED_FRACTION}_sum"] == pytest.approx(0.0, abs=1e-6)
    assert added["ts_inference_requests_total"] == 2


def test_the_worker_sees_the_archive_and_nothing_of_the_repository(server: TorchServe) -> None:
    (worker,) = server.workers()
    environment = Path(f"/proc/{worker['pid']}/environ").read_text().split("\0")
    variables = dict(line.split("=", 1) for line in environment if "=" in line)
    repository = Path(__file__).resolve().parents[2]
    folders = [Path(folder) for folder in variables["PYTHONPATH"].split(":") if folder]
    assert folders
    assert not any(folder.is_relative_to(repository) for folder in folders)
    assert not [name for name in variables if name.startswith(("STENO_", "AWS_"))]

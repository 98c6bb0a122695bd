import base64
import json
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import RequestError, error_body
from handler.request import OPTION_NAMES, Supported, TranscriptionRequest, parse_request
from handler.transport import MOST_PARTS, Part
from model.hotwords import Hotword

SUPPORTED = Supported(("asr", "whisper-1"), ("en", "english"))
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
JSON = {"content-type": "application/json; charset=utf-8"}


def field(name: str, value: str | bytes) -> Part:
    return Part(name, "", value.encode() if isinstance(value, str) else value)


def form(*fields: tuple[str, str | bytes], headers: dict[str, str] | None = None) -> Any:
    parts = [field(name, value) for name, value in fields]
    return parse_request(parts, {**FORM, **(headers or {})}, SUPPORTED)


def raw(body: bytes, headers: dict[str, str]) -> TranscriptionRequest:
    return parse_request([Part("body", "audio/wav", body)], headers, SUPPORTED)


def json_body(text: str | bytes, headers: dict[str, str] | None = None) -> TranscriptionRequest:
    return parse_request([field("body", text)], {**JSON, **(headers or {})}, SUPPORTED)


def refused(call: Any, *arguments: Any, **named: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(*arguments, **named)
    assert 400 <= caught.value.status < 500
    return caught.value


OUTCOMES = {200, 400}


def outcome(call: Any, *arguments: Any) -> int:
    """Return the status that a caller would see."""
    try:
        call(*arguments)
    except RequestError as error:
        return error.status
    return 200


AUDIO = b"RIFF\x00\xff"


def test_raw_body_is_the_audio_and_options_have_defaults() -> None:
    request = raw(AUDIO, {"Content-Type": "audio/wav"})
    assert request.audio == AUDIO
    assert request.options.response_format == "json"
    assert request.options.mode == "accurate"
    assert request.options.timestamp_granularities == ()


def test_raw_body_takes_options_from_headers_of_any_case() -> None:
    request = raw(
        AUDIO,
        {
            "X-Steno-Response-Format": "verbose_json",
            "x-steno-mode": "fast",
            "X-STENO-TIMESTAMP-GRANULARITIES": "word, segment",
        },
    )
    assert request.options.response_format == "verbose_json"
    assert request.options.mode == "fast"
    assert request.options.timestamp_granularities == ("word", "segment")


def test_a_body_without_content_type_is_raw_audio() -> None:
    assert raw(AUDIO, {}).audio == AUDIO


def test_form_takes_openai_fields() -> None:
    request = form(
        ("file", AUDIO),
        ("model", "whisper-1"),
        ("language", "en"),
        ("prompt", ""),
        ("temperature", "0"),
        ("stream", "false"),
        ("response_format", "verbose_json"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
    )
    assert request.audio == AUDIO
    assert request.options.timestamp_granularities == ("word", "segment")


def test_json_takes_base64_and_the_same_options() -> None:
    body = {
        "audio": base64.b64encode(AUDIO).decode(),
        "response_format": "verbose_json",
        "timestamp_granularities": ["word"],
        "temperature": 0,
        "stream": False,
        "mode": "fast",
    }
    request = json_body(json.dumps(body))
    assert request.audio == AUDIO
    assert request.options.mode == "fast"
    assert request.options.timestamp_granularities == ("word",)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("response_format", "yaml", "json, text, verbose_json, srt, vtt"),
        ("mode", "quick", "accurate, fast"),
        ("timestamp_granularities[]", "letter", "segment, word"),
        ("language", "de", "en, english"),
        ("model", "whisper-9", "asr, whisper-1"),
    ],
)
def test_an_impossible_choice_is_named_with_the_possible_ones(
    name: str, value: str, allowed: str
) -> None:
    error = refused(form, ("file", AUDIO), (name, value))
    assert error.param == name
    assert repr(value) in str(error)
    assert allowed in str(error)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", "1.5", "less than or equal to 1"),
        ("temperature", "-1", "greater than or equal to 0"),
        ("temperature", "nan", "finite number"),
        ("temperature", "warm", "valid number"),
        ("stream", "true", "only false "),
        ("stream", "maybe", "only false "),
    ],
)
def test_what_would_change_the_text_is_refused_and_not_ignored(
    name: str, value: str, allowed: str
) -> None:
    error = refused(form, ("file", AUDIO), (name, value))
    assert error.param == name
    assert value in str(error)
    assert allowed in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        [("hotwords", "Kubernetes:2.5, Hof Brau ,"), ("hotwords", "O'Farrell")],
        [
            ("hotwords[]", "Kubernetes:2.5"),
            ("hotwords[]", "Hof  Brau"),
            ("hotwords[]", "O'Farrell"),
        ],
    ],
)
def test_hotwords_are_a_list_with_weights(fields: list[tuple[str, str]]) -> None:
    expected = (Hotword("Kubernetes", 2.5), Hotword("Hof Brau"), Hotword("O'Farrell"))
    assert form(("file", AUDIO), *fields).options.hotwords == expected
    words = [item.strip() for _, value in fields for item in value.split(",") if item]
    body = {"audio": base64.b64encode(AUDIO).decode(), "hotwords": words}
    assert json_body(json.dumps(body)).options.hotwords == expected
    header = {"X-Steno-Hotwords": ",".join(words)}
    assert raw(AUDIO, header).options.hotwords == expected


def test_null_is_not_given() -> None:
    nothing = dict.fromkeys(OPTION_NAMES)
    request = json_body(json.dumps({"audio": "AA==", **nothing}))
    assert request.options == json_body('{"audio": "AA=="}').options
    header = {"X-Steno-Mode": "fast"}
    assert json_body('{"audio": "AA==", "mode": null}', header).options.mode == "fast"
    error = refused(json_body, '{"audio": "AA==", "hotwords": [null]}')
    assert "hotwords is null: a hot word is text" in str(error)
    assert refused(json_body, '{"audio": "AA==", "colour": null}').type == "unknown_field"
    twice = '{"audio": "AA==", "mode": null, "mode": "fast"}'
    assert refused(json_body, twice).type == "repeated_field"


@pytest.mark.parametrize("name", ["hotwords", "timestamp_granularities", "mode", "prompt"])
@pytest.mark.parametrize("value", ["{}", '{"a": 2}', '{"word": {"a": [1]}}'])
def test_an_object_is_no_list_and_no_text(name: str, value: str) -> None:
    body = f'{{"audio": "AA==", "response_format": "verbose_json", "{name}": {value}}}'
    error = refused(json_body, body)
    assert error.type == "invalid_value"
    assert " is an object: " in str(error)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("true", "true"),
        ("null", "null"),
        ("1.5", "1.5"),
        ("[[1]]", "a list"),
        ('"!\\n?"', r"'!\n?'"),
    ],
)
def test_a_value_is_shown_as_json_has_it(value: str, shown: str) -> None:
    error = refused(json_body, f'{{"audio": "AA==", "hotwords": [{value}]}}')
    assert f"hotwords is {shown}: " in str(error)


@pytest.mark.parametrize(
    ("start", "type"), [('"audio": "AA==", "mode"', "invalid_value"), ('"audio"', "invalid_base64")]
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_deep_value_is_refused_like_a_shallow_one(
    start: str, type: str, opening: str, closing: str
) -> None:
    for depth in (1, 400, 600, 800):
        body = f"{{{start}: {opening * depth}1{closing * depth}}}"
        assert refused(json_body, body).type == type


def test_no_hotwords_and_no_prompt_are_the_default() -> None:
    options = form(("file", AUDIO), ("hotwords", ""), ("prompt", "")).options
    assert (options.hotwords, options.prompt) == ((), "")


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("Kubernetes:much", "'much', the weight after the colon, is no number"),
        ("Kubernetes:0", "above 0 and at most 10"),
        ("Kubernetes:11", "above 0 and at most 10"),
        ("Kubernetes:nan", "above 0 and at most 10"),
        ("!?", "1 to 60 characters"),
        (":2", "1 to 60 characters"),
        ("x" * 61, "1 to 60 characters"),
    ],
)
def test_a_bad_hotword_is_named(item: str, reason: str) -> None:
    error = refused(form, ("file", AUDIO), ("hotwords", f"Kubernetes, {item}"))
    assert (error.type, error.param) == ("invalid_value", "hotwords")
    assert reason in str(error)
    assert item[:60] in str(error)


def test_too_many_hotwords_are_counted() -> None:
    error = refused(form, ("file", AUDIO), ("hotwords", ",".join(["word"] * 101)))
    assert error.param == "hotwords"
    assert "hotwords has 101 values; at most 100" in str(error)
    most = form(("file", AUDIO), ("hotwords", "word," * 100)).options.hotwords
    assert most == (Hotword("word"),) * 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('"hotwords": [' + ",".join("1" * 10_001) + "]", "hotwords has 10001 values; at most 100"),
        ('"timestamp_granularities": ["word", "word", "word"]', "has 3 values; at most 2"),
        ('"x": [' + ",".join(["{}"] * 30_000) + "]", "the body has 30000 commas"),
        ('"hotwords": "' + "," * 19_000 + '"', "hotwords has 19000 values"),
    ],
)
def test_a_long_list_is_refused_before_it_is_read(options: str, message: str) -> None:
    assert message in str(refused(json_body, '{"audio": "AA==", ' + options + "}"))


def test_an_answer_does_not_grow_with_what_was_sent() -> None:
    name = "\u00e9" * 1_000_000
    error = refused(json_body, json.dumps({"audio": "AA==", name: 1}))
    assert error.type == "unknown_field"
    assert len(error_body(error.type, str(error), error.param)) < 3_000


def test_a_hotword_that_cannot_be_written_is_refused() -> None:
    body = '{"audio": "AA==", "hotwords": ["a\\ud800"]}'
    assert "not valid Unicode" in str(refused(json_body, body))


def test_a_header_may_hold_utf8() -> None:
    """Java hands a header's bytes on as if each were a character."""
    header = {"X-Steno-Hotwords": "O\u2019Farrell,M\u00fcller".encode().decode("latin-1")}
    words = (Hotword("O\u2019Farrell"), Hotword("M\u00fcller"))
    assert raw(AUDIO, header).options.hotwords == words
    assert raw(AUDIO, {"X-Steno-Hotwords": "M\u00fcller"}).options.hotwords == words[1:]


def test_a_list_stands_in_one_place() -> None:
    body = json.dumps({"audio": "AA==", "hotwords": ["one"]})
    error = refused(json_body, body, {"X-Steno-Hotwords": "two"})
    assert (error.type, error.param) == ("repeated_field", "hotwords")


def test_a_hotword_that_is_no_text_is_refused() -> None:
    body = json.dumps({"audio": "AA==", "hotwords": ["Kubernetes", 5]})
    assert "hotwords is 5" in str(refused(json_body, body))


def test_a_prompt_is_for_the_decoder_alone() -> None:
    assert form(("file", AUDIO), ("prompt", "At O'Farrell's.")).options.prompt == "At O'Farrell's."
    error = refused(form, ("file", AUDIO), ("prompt", "At O'Farrell's."), ("mode", "fast"))
    assert error.param == "prompt"
    assert "hotwords" in str(error)
    assert refused(form, ("file", AUDIO), ("prompt", "x" * 10_001)).param == "prompt"


def test_a_beam_is_for_the_decoder_alone() -> None:
    assert form(("file", AUDIO), ("beam_size", "1")).options.beam_size == 1
    assert form(("file", AUDIO), ("mode", "fast")).options.beam_size is None
    assert refused(form, ("file", AUDIO), ("beam_size", "0")).param == "beam_size"
    error = refused(form, ("file", AUDIO), ("mode", "fast"), ("beam_size", "3"))
    assert "mode=fast does not search" in str(error)


def test_what_common_clients_send_without_being_asked_changes_nothing() -> None:
    """Spring AI a temperature of 0.7, Vercel's SDK segments with any format, forms an empty language."""
    request = form(
        ("file", AUDIO),
        ("temperature", "0.7"),
        ("timestamp_granularities[]", "segment"),
        ("timestamp_granularities[]", ""),
        ("language", ""),
        ("prompt", ""),
        ("hotwords", ""),
    )
    assert request.options.language is None
    assert request.options.response_format == "json"


def test_words_times_need_verbose_json() -> None:
    error = refused(form, ("file", AUDIO), ("timestamp_granularities[]", "word"))
    assert error.param == "timestamp_granularities[]"
    assert "verbose_json" in str(error)


def test_an_unknown_field_is_named() -> None:
    error = refused(form, ("file", AUDIO), ("diarize", "yes"))
    assert (error.type, error.param) == ("unknown_field", "diarize")
    assert "response_format" in str(error)


def test_a_form_of_more_fields_than_any_request_needs_is_refused() -> None:
    most = [("hotwords", " ")] * (MOST_PARTS - 1)
    assert form(("file", AUDIO), *most).options.hotwords == ()
    error = refused(form, ("file", AUDIO), *most, ("mode", "fast"))
    assert (error.type, error.param) == ("invalid_value", None)
    assert "more than 300 fields" in str(error)


@pytest.mark.parametrize("media_type", ["application/json", "audio/wav", ""])
@pytest.mark.parametrize("first", [True, False])
def test_a_query_beside_the_body_is_named(media_type: str, first: bool) -> None:
    """TorchServe hands it over on some of its own paths, such as /invocations."""
    parts = [field("mode", "fast"), field("body", '{"audio": "AA=="}')]
    with pytest.raises(RequestError, match="a query string is not read") as caught:
        parse_request(parts if first else parts[::-1], {"content-type": media_type}, SUPPORTED)
    assert caught.value.param == "mode"


def test_grpc_has_no_content_type_and_sends_a_form() -> None:
    parts = [field("file", AUDIO), field("mode", "fast")]
    request = parse_request(parts, {}, SUPPORTED)
    assert (request.audio, request.options.mode) == (AUDIO, "fast")
    with pytest.raises(RequestError):
        parse_request([field("body", AUDIO), field("data", AUDIO)], {}, SUPPORTED)


def test_two_files_and_no_file_are_refused() -> None:
    assert refused(form, ("file", AUDIO), ("file", AUDIO)).type == "repeated_field"
    assert refused(form, ("mode", "fast")).type == "missing_field"
    assert refused(form).type == "missing_field"


def test_an_option_given_twice_is_refused_wherever_it_stands() -> None:
    assert refused(form, ("file", AUDIO), ("mode", "fast"), ("mode", "fast")).param == "mode"
    error = refused(form, ("file", AUDIO), ("mode", "fast"), headers={"X-Steno-Mode": "accurate"})
    assert (error.type, error.param) == ("repeated_field", "mode")


def test_a_text_field_that_is_not_utf8_is_refused() -> None:
    assert refused(form, ("file", AUDIO), ("mode", b"\xff\xfe")).param == "mode"


def test_urlencoded_bodies_are_refused_with_what_to_send_instead() -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    error = refused(parse_request, [field("RIFF", "")], headers, SUPPORTED)
    assert error.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert "application/octet-stream" in str(error)


@pytest.mark.parametrize(
    ("body", "type"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[]", "invalid_json"),
        ('"text"', "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ('{"audio": NaN}', "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        ("{}", "missing_field"),
        ('{"audio": "AA==", "audio": "AA=="}', "repeated_field"),
        ('{"audio": "A"}', "invalid_base64"),
        ('{"audio": "*AA="}', "invalid_base64"),
        ('{"audio": "\u00e9\u00e9\u00e9\u00e9"}', "invalid_base64"),
        ('{"audio": 5}', "invalid_base64"),
        ('{"audio": "AA==", "mode": "fast", "mode": "fast"}', "repeated_field"),
        ('{"audio": "AA==", "mode": ["fast"]}', "invalid_value"),
        ('{"audio": "AA==", "prompt": {"a": 1}}', "invalid_value"),
        ('{"audio": "AA==", "timestamp_granularities": "words"}', "invalid_value"),
        ('{"audio": "AA==", "colour": 1}', "unknown_field"),
    ],
)
def test_bad_json_is_refused(body: str | bytes, type: str) -> None:
    assert refused(json_body, body).type == type


NAMES = st.sampled_from(["file", "body", "data", "timestamp_granularities[]", *OPTION_NAMES, "x"])
WORDS = st.text(st.sampled_from("a0 :,\u00e9\x00\U0001f600"), max_size=4)
WRITTEN = WORDS.map(str.encode) | st.sampled_from([b"fast", b"word", b"1", b"\xff"])


@given(
    st.binary(max_size=200), st.sampled_from(["application/json", "a/b", "", ";", "MULTIPART/x"])
)
def test_no_body_causes_anything_but_a_request_or_a_4xx(body: bytes, media_type: str) -> None:
    part = Part("body", "", body)
    assert outcome(parse_request, [part], {"content-type": media_type}, SUPPORTED) in OUTCOMES


@given(st.lists(st.builds(Part, NAMES, st.just(""), WRITTEN), max_size=6), st.booleans())
def test_no_form_causes_anything_but_a_request_or_a_4xx(parts: list[Part], file: bool) -> None:
    sent = [*parts, field("file", AUDIO)] if file else parts
    for headers in (FORM, {}, JSON):
        assert outcome(parse_request, sent, headers, SUPPORTED) in OUTCOMES


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner), max_leaves=8
)


@given(st.dictionaries(NAMES, VALUES))
def test_no_json_option_causes_anything_but_a_request_or_a_4xx(options: dict[str, Any]) -> None:
    assert outcome(json_body, json.dumps({"audio": "", **options})) in OUTCOMES


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(str(refused(form, ("file", AUDIO), ("mode", "x" * 10_000)))) < 300


def test_a_form_without_its_boundary_is_named() -> None:
    with pytest.raises(RequestError, match="has no boundary"):
        parse_request(
            [Part("body", "text/plain", b"--x")], {"Content-Type": "multipart/form-data"}, SUPPORTED
        )


def test_half_a_character_as_a_name_is_an_unknown_field() -> None:
    body = b'{"audio": "AA==", "\\ud800": 1}'
    with pytest.raises(RequestError, match="not valid Unicode") as caught:
        parse_request([Part("body", "text/plain", body)], JSON, SUPPORTED)
    assert caught.value.type == "unknown_field"

"""What one caller asked for: the audio and the options, however they were sent.

Three ways in, all the same options: the file as the raw body with options in `X-Steno-*` headers
(TorchServe drops the query string), a multipart form with OpenAI's field names, and JSON with
base64 audio. A field that is unknown, given twice, or impossible is an error and never ignored; one
that is empty is not given.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, NoReturn, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from handler.errors import RequestError, quoted
from handler.transport import MOST_PARTS, Part
from model.hotwords import Hotword
from model.recognizer import WIDEST_BEAM, Mode
from model.transcript import Granularity, ResponseFormat

# In a form they are repeated, with or without OpenAI's brackets; so many values each may have.
MOST_HOTWORDS = 100
LISTS = {"timestamp_granularities": len(get_args(Granularity)), "hotwords": MOST_HOTWORDS}
GRANULARITIES_FIELD = "timestamp_granularities[]"
# A prompt may have commas, and base64 has none: more are lists that no option takes, and slow to read.
MOST_COMMAS = 20_000
# A decoder reads a few hundred tokens of it; more than so many characters is a mistake.
LONGEST_PROMPT = 10_000
HEADER_PREFIX = "x-steno-"
RAW_BODY_NAMES = frozenset({"body", "data"})


@dataclass(frozen=True)
class Supported:
    """What this endpoint can do: the values of `model` and `language` that can be honoured."""

    models: tuple[str, ...]
    languages: tuple[str, ...]


def _read_hotword(item: object) -> Hotword:
    if not isinstance(item, str):
        raise ValueError("a hot word is text, such as 'Kubernetes' or 'Kubernetes:2.5'")
    return Hotword.parse(item)


class Options(BaseModel):
    """The options of a transcription: OpenAI's names, and our `mode`, `hotwords` and `beam_size`.

    One that is `null`, or an empty text, is not given.

    `model` and `language` are checked against what this endpoint serves. `temperature` and `stream`
    exist since clients send them: the text is the likeliest at any temperature, and comes as a whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str | None = None
    language: str | None = None
    mode: Mode = "accurate"
    prompt: str = Field(default="", max_length=LONGEST_PROMPT)
    hotwords: tuple[Annotated[Hotword, BeforeValidator(_read_hotword)], ...] = ()
    beam_size: int | None = Field(default=None, ge=1, le=WIDEST_BEAM)
    response_format: ResponseFormat = "json"
    temperature: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    timestamp_granularities: tuple[Granularity, ...] = ()
    stream: bool = False

    @field_validator("model")
    @classmethod
    def _served_model(cls, value: str | None, info: ValidationInfo[Supported]) -> str | None:
        return _one_of(value, info.context.models)

    @field_validator("language")
    @classmethod
    def _known_language(cls, value: str | None, info: ValidationInfo[Supported]) -> str | None:
        return _one_of(value and value.lower(), info.context.languages)

    @field_validator("prompt")
    @classmethod
    def _for_the_decoder(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("mode") == "fast":
            raise ValueError("mode=fast cannot use a prompt; send its words as hotwords")
        return value

    @field_validator("beam_size")
    @classmethod
    def _of_the_decoder(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("mode") == "fast":
            raise ValueError("mode=fast does not search with the decoder; leave it out")
        return value

    @field_validator("stream", mode="wrap")
    @classmethod
    def _as_a_whole(cls, value: Any, read: ValidatorFunctionWrapHandler) -> bool:
        with suppress(ValidationError):
            if not read(value):
                return False
        raise ValueError("only false is supported: the answer comes as a whole")

    @field_validator("timestamp_granularities")
    @classmethod
    def _granularities_fit(
        cls, value: tuple[Granularity, ...], info: ValidationInfo
    ) -> tuple[Granularity, ...]:
        # A response_format that failed its own check is absent here and reported by itself.
        response_format = info.data.get("response_format", "verbose_json")
        # Some clients always ask for segments, which is what there is in any case.
        if "word" in value and response_format != "verbose_json":
            raise ValueError(
                f"only response_format=verbose_json has words' times; got {response_format}"
            )
        return value


OPTION_NAMES = tuple(Options.model_fields)


@dataclass(frozen=True)
class TranscriptionRequest:
    """One request, checked: the file's bytes as they came, and the options."""

    audio: bytes | bytearray
    options: Options


def parse_request(
    parts: Sequence[Part], headers: Mapping[str, str], supported: Supported
) -> TranscriptionRequest:
    """Read one request.

    Args:
        parts: what TorchServe made of the body, in the order of the wire.
        headers: the request's headers; their names may have any case.
        supported: which models and languages may be asked for.

    Raises:
        RequestError: naming the field, its value, and what would be right.
    """
    folded = {name.lower(): value for name, value in headers.items()}
    media_type = folded.get("content-type", "").split(";")[0].strip().lower()
    if media_type == "application/x-www-form-urlencoded":
        # What `curl --data-binary` sends by default. TorchServe has parsed the audio as a form,
        # and the bytes are lost.
        raise RequestError(
            "unsupported_media_type",
            "Content-Type application/x-www-form-urlencoded cannot carry audio; send the file "
            "with Content-Type: application/octet-stream, or as multipart/form-data",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    if media_type == "multipart/form-data" and "boundary=" not in folded["content-type"].lower():
        raise RequestError(
            "invalid_value",
            "Content-Type multipart/form-data has no boundary; let the client write this header",
            param="Content-Type",
        )
    if len(parts) > MOST_PARTS:
        raise RequestError(
            "invalid_value", f"the form has more than {MOST_PARTS} fields; no request needs so many"
        )
    in_headers = _header_options(folded)
    if media_type == "multipart/form-data" or RAW_BODY_NAMES.isdisjoint(p.name for p in parts):
        audio, in_body = _read_form(parts)  # what gRPC sends is one, too
    elif media_type == "application/json":
        audio, in_body = _read_json(_only(parts))
    else:
        audio, in_body = _only(parts), []
    return TranscriptionRequest(audio, _check_options(in_headers, in_body, supported))


def _only(parts: Sequence[Part]) -> bytes | bytearray:
    """Return the body. On paths of TorchServe's that nobody needs, a query comes with it."""
    if len(parts) == 1:
        return parts[0].value
    beside = next((p.name for p in parts if p.name not in RAW_BODY_NAMES), parts[-1].name)
    raise RequestError(
        "unknown_field",
        f"{quoted(beside)} came beside the body; a query string is not read, send options as "
        "X-Steno-… headers, form fields or JSON keys",
        param=beside,
    )


def _header_options(headers: Mapping[str, str]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for header, value in headers.items():
        if not header.startswith(HEADER_PREFIX):
            continue
        name = header.removeprefix(HEADER_PREFIX).replace("-", "_")
        # Java reads the bytes of a header as Latin-1 (RFC 9110, section 5.5); clients write UTF-8.
        with suppress(UnicodeError):
            value = value.encode("latin-1").decode("utf-8")
        if name == "timestamp_granularities":
            pairs += [(name, item.strip()) for item in value.split(",")]
        else:
            pairs.append((name, value))
    return pairs


def _read_form(parts: Iterable[Part]) -> tuple[bytes | bytearray, list[tuple[str, Any]]]:
    files: list[bytes | bytearray] = []
    pairs: list[tuple[str, Any]] = []
    for part in parts:
        if part.name == "file":
            files.append(part.value)
            continue
        try:
            pairs.append((part.name, part.value.decode("utf-8")))
        except UnicodeDecodeError as error:
            raise RequestError(
                "invalid_value", f"{part.name} is not UTF-8 text: {error}", param=part.name
            ) from error
    if len(files) != 1:
        raise RequestError(
            "repeated_field" if files else "missing_field",
            f"the form has {len(files)} fields named 'file'; send exactly one, with the audio",
            param="file",
        )
    return files[0], pairs


def _read_json(body: bytes | bytearray) -> tuple[bytes, list[tuple[str, Any]]]:
    if (commas := body.count(b",")) > MOST_COMMAS:
        raise RequestError(
            "invalid_json",
            f"the body has {commas} commas; no request needs more than {MOST_COMMAS}",
        )
    try:
        value = json.loads(body, object_pairs_hook=_JsonObject, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError("invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(value, _JsonObject):
        raise RequestError(
            "invalid_json", 'the body is not a JSON object; send {"audio": "<base64>", ...}'
        )
    encoded = [audio for name, audio in value.pairs if name == "audio"]
    if len(encoded) != 1:
        raise RequestError(
            "repeated_field" if encoded else "missing_field",
            f"the object has {len(encoded)} keys named 'audio'; send exactly one, with base64",
            param="audio",
        )
    options: list[tuple[str, Any]] = []
    for name, option in value.pairs:
        if name.removesuffix("[]") in LISTS and isinstance(option, list | None):
            items = option or []
            _check_count(name, len(items))
            options += [(name, item) for item in items]
        elif name != "audio":
            options.append((name, option))
    return _decode_base64(encoded[0]), options


@dataclass(frozen=True)
class _JsonObject:
    """A JSON object as its pairs, so that a repeated key is seen."""

    pairs: list[tuple[str, Any]]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _decode_base64(encoded: object) -> bytes:
    if not isinstance(encoded, str):
        raise RequestError(
            "invalid_base64", f"audio must be base64 text, got {quoted(encoded)}", param="audio"
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            "invalid_base64", f"audio is not base64: {error}", param="audio"
        ) from error


def _check_options(
    in_headers: Iterable[tuple[str, Any]], in_body: Iterable[tuple[str, Any]], supported: Supported
) -> Options:
    fields = _gather(in_headers)
    for name, value in _gather(in_body).items():
        if name in fields:
            raise _given_twice(name)
        fields[name] = value
    try:
        return Options.model_validate(fields, context=supported)
    except ValidationError as error:
        raise _as_request_error(error, fields) from error


def _gather(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Options by their names; those of lists with all their values."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        key = name.removesuffix("[]") if name.removesuffix("[]") in LISTS else name
        if key not in Options.model_fields:
            raise _unknown(name)
        if key not in LISTS:
            if key in fields:
                raise _given_twice(name)
            fields[key] = value
            continue
        values = fields.setdefault(key, [])
        if key == "hotwords" and isinstance(value, str):
            _check_count(name, len(values) + value.count(","))  # the last one may be empty
            values += filter(str.strip, value.split(","))
        elif value != "":
            values.append(value)
        _check_count(name, len(values))
    return {key: value for key, value in fields.items() if value not in (None, "")}


def _check_count(name: str, count: int) -> None:
    """Refuse a list before its values cost anything."""
    most = LISTS[name.removesuffix("[]")]
    if count > most:
        raise RequestError(
            "invalid_value", f"{name} has {count} values; at most {most} are possible", param=name
        )


def _given_twice(name: str) -> RequestError:
    return RequestError("repeated_field", f"{name} is given twice; send it once", param=name)


def _unknown(name: str) -> RequestError:
    if not _is_text(name):
        return RequestError("unknown_field", "a field's name is not valid Unicode text")
    known = ", ".join(OPTION_NAMES)
    return RequestError(
        "unknown_field", f"unknown field {quoted(name)}; the options are: {known}", param=name
    )


def _is_text(value: str) -> bool:
    """Whether it can be written; JSON may hold half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_request_error(error: ValidationError, fields: Mapping[str, Any]) -> RequestError:
    """Say what was wrong with the first bad field, as a caller can act on it."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    param = GRANULARITIES_FIELD if name == "timestamp_granularities" else name
    value: Any = fields[name]
    if len(first["loc"]) > 1 and isinstance(value, list):
        value = value[int(first["loc"][1])]
    if first["type"] == "literal_error":
        allowed = get_args(Granularity if param == GRANULARITIES_FIELD else _literal(name))
        reason = f"the allowed values are: {', '.join(allowed)}"
    elif first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
    else:
        reason = first["msg"]
    return RequestError("invalid_value", f"{param} is {quoted(value)}: {reason}", param=param)


def _literal(name: str) -> Any:
    return Options.model_fields[name].annotation


def _one_of(value: str | None, allowed: Sequence[str]) -> str | None:
    if value is not None and value not in allowed:
        raise ValueError(f"the allowed values are: {', '.join(allowed)}")
    return value

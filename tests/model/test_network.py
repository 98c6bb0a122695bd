"""The network is Whisper's, at any length."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperForConditionalGeneration

from model.audio import load_audio
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.compiled_layer import _attend_one_by_one
from model.features import LogMel
from model.int8 import Int8Linear, Int8Weight
from model.network import (
    KERNEL_STEP,
    MANY_QUERIES,
    Attention,
    Decoder,
    EncoderLayer,
    ModelDimensions,
    Network,
    _attend_in_steps,
)
from model.precision import has_int8_units, sums_int8_in_full
from model.search import greedy_search
from model.whisper import from_whisper
from model.whisper import main as make_start
from tests.random_checkpoint import SHIPPED, make_random_checkpoint

CLIPS = sorted((Path(__file__).parents[1] / "fixtures").glob("*.*"))
CLIPS = [c for c in CLIPS if c.suffix in (".flac", ".mp3", ".ogg", ".m4a", ".webm", ".wav")]


def reference(checkpoint: Checkpoint, positions: int) -> WhisperForConditionalGeneration:
    """Hugging Face's Whisper with the same weights, for inputs of `positions` encoder frames."""
    dims = checkpoint.config.dimensions
    config = WhisperConfig(
        vocab_size=dims.vocabulary,
        num_mel_bins=dims.n_mels,
        encoder_layers=dims.audio_layers,
        decoder_layers=dims.text_layers,
        encoder_attention_heads=dims.audio_width // 64,
        decoder_attention_heads=dims.text_width // 64,
        d_model=dims.audio_width,
        encoder_ffn_dim=4 * dims.audio_width,
        decoder_ffn_dim=4 * dims.text_width,
        max_source_positions=positions,
        max_target_positions=dims.text_positions,
        pad_token_id=0,
    )
    model = WhisperForConditionalGeneration(config).eval()
    network = checkpoint.network
    state = {f"model.{k}": v for k, v in network.state_dict().items() if not k.startswith("ctc.")}
    state["model.encoder.embed_positions.weight"] = network.encoder.embed_positions[:positions]
    missing, unknown = model.load_state_dict(state, strict=False)
    assert missing in ([], ["proj_out.weight"]) and not unknown
    model.tie_weights()
    return model


@torch.inference_mode()
def reference_greedy(
    model: WhisperForConditionalGeneration,
    features: torch.Tensor,
    checkpoint: Checkpoint,
    most: int,
) -> list[int]:
    """Greedy search without a cache, one clip, as plainly as it can be written."""
    tokenizer = checkpoint.tokenizer
    encoded = model.model.encoder(features)
    tokens: list[int] = []
    while len(tokens) < most:
        fed = torch.tensor([[*tokenizer.prompt, *tokens]])
        scores = model(encoder_outputs=encoded, decoder_input_ids=fed, use_cache=False).logits[
            0, -1
        ]
        scores[tokenizer.suppressed] = -torch.inf
        if not tokens:
            scores[tokenizer.suppressed_first] = -torch.inf
        token = int(scores.argmax())
        if token == tokenizer.end:
            break
        tokens.append(token)
    return tokens


def test_features_are_whispers(sound):
    waveform = sound(7.3, 1)
    theirs = WhisperFeatureExtractor(feature_size=80)(
        waveform.numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    ours = LogMel(80).whisper(waveform[None])
    assert ours.shape == theirs.shape == (1, 80, 3000)
    assert torch.allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("seconds", [0.02, 1.0, 3.33, 29.4])
def test_encoder_and_decoder_are_whispers_at_the_clips_own_length(
    random_checkpoint, sound, seconds
):
    network = random_checkpoint.network
    waveform = sound(seconds, 2)
    features, frames = random_checkpoint.features(waveform[None], torch.tensor([len(waveform)]))
    model = reference(random_checkpoint, int(frames))
    tokens = torch.randint(random_checkpoint.config.dimensions.vocabulary, (1, 30))
    with torch.inference_mode():
        encoded = network.encoder(features, frames)
        decoder = network.decoder
        scores = decoder.scores(decoder(tokens, decoder.start(encoded, frames)))
        theirs = model(input_features=features, decoder_input_ids=tokens)
    assert torch.allclose(encoded, theirs.encoder_last_hidden_state, atol=1e-5)
    assert torch.allclose(scores, theirs.logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS, ids=lambda c: c.name)
@pytest.mark.parametrize("padded", [True, False], ids=["30 s", "own length"])
def test_writes_the_same_tokens_as_the_reference_with_the_shipped_weights(clip, padded):
    checkpoint = load_checkpoint(SHIPPED)
    waveform = load_audio(clip)
    if padded:
        features = checkpoint.features.whisper(waveform[None])
        frames = torch.tensor([1500])
    else:
        features, frames = checkpoint.features(waveform[None], torch.tensor([len(waveform)]))
    encoded = checkpoint.network.encoder(features, frames)
    (found,) = greedy_search(checkpoint.network.decoder, encoded, frames, checkpoint.tokenizer)
    model = reference(checkpoint, int(frames))
    assert len(found.tokens) > 3
    assert list(found.tokens) == reference_greedy(model, features, checkpoint, 200)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_starts_from_any_whisper_file(random_checkpoint, tmp_path, prefix):
    theirs = reference(random_checkpoint, 1500).model.state_dict()
    save_file({prefix + k: v.contiguous() for k, v in theirs.items()}, tmp_path / "w.safetensors")
    random_checkpoint.tokenizer.pairs.save(str(tmp_path / "tokenizer.json"))
    started = from_whisper(tmp_path / "w.safetensors", tmp_path / "tokenizer.json", ctc_layers=2)
    assert started.config.dimensions.audio_width == 64
    assert started.config.dimensions.ctc_layers == 2
    for name, value in random_checkpoint.network.state_dict().items():
        if not name.startswith("ctc."):
            assert torch.equal(started.network.state_dict()[name], value)


@pytest.mark.parametrize("changed", [None, "encoder.conv1.weight", "decoder.layer_norm.bias"])
def test_refuses_a_start_that_is_not_whispers(random_checkpoint, tmp_path, random_folder, changed):
    state = {"layer.weight": torch.zeros(2)}
    if changed:  # Whisper's names, and one size that fits to no other
        state = dict(reference(random_checkpoint, 1500).model.state_dict())
        state[changed] = torch.zeros(7, 80, 3) if "conv" in changed else torch.zeros(7)
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    with pytest.raises(CheckpointError, match=f"{path} is not a Whisper model"):
        from_whisper(path, random_folder / "tokenizer.json")


def test_command_line_makes_a_start(random_checkpoint, tmp_path):
    theirs = reference(random_checkpoint, 1500).model.state_dict()
    save_file({k: v.contiguous() for k, v in theirs.items()}, tmp_path / "w.safetensors")
    random_checkpoint.tokenizer.pairs.save(str(tmp_path / "tokenizer.json"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "model.whisper",
            tmp_path / "w.safetensors",
            tmp_path / "tokenizer.json",
            tmp_path / "start",
        ],
        check=True,
    )
    assert load_checkpoint(tmp_path / "start").config.dimensions.ctc_layers == 1


def test_command_line_says_what_is_no_whisper(tmp_path, capsys, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"none")
    words = ["whisper", tmp_path / "w.safetensors", tmp_path / "t.json", tmp_path / "start"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    assert make_start() == 1
    assert "is not a whole safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "start").exists()


def test_refuses_audio_longer_than_its_positions(random_checkpoint):
    with pytest.raises(ValueError, match="1501 encoder frames; this network takes at most 1500"):
        random_checkpoint.network.encoder(torch.zeros(1, 80, 3002), torch.tensor([1501]))


def test_refuses_sizes_that_cannot_be():
    good = {
        "n_mels": 80,
        "audio_positions": 1500,
        "audio_width": 64,
        "audio_layers": 1,
        "text_positions": 448,
        "text_width": 64,
        "text_layers": 1,
        "vocabulary": 300,
        "ctc_layers": 0,
        "ctc_labels": 29,
    }
    Network(ModelDimensions(**good))
    with pytest.raises(ValueError, match="audio_width is 65"):
        ModelDimensions(**good | {"audio_width": 65, "text_width": 65})
    with pytest.raises(ValueError, match="vocabulary is 0"):
        ModelDimensions(**good | {"vocabulary": 0})


def test_weights_file_has_no_position_table(tmp_path):
    folder = make_random_checkpoint(tmp_path / "c")
    assert "encoder.embed_positions" not in load_file(folder / "model.safetensors")


def _as_multiplied(weight: torch.Tensor) -> torch.Tensor:
    """A weight as a product in int8 has it."""
    return Int8Weight.of(weight, in_pairs=not sums_int8_in_full()).dense


@torch.inference_mode()
@pytest.mark.skipif(not has_int8_units(torch.device("cpu")), reason="FBGEMM needs AVX2")
def test_no_sum_of_int8_products_overflows_on_this_cpu():
    generator = torch.Generator().manual_seed(7)
    # As bad as can be: neighbours of 64 and 64, of 127 and 1, all of one sign, and inputs of 255 steps.
    first = torch.randint(1, 128, (32, 48), generator=generator)
    weight = torch.stack([first, 128 - first], -1).flatten(1).float()
    weight[0] = 127  # neighbours that together have twice the room
    weight[16:] *= -1
    x = torch.full((5, 96), 255.0)
    x[0, :48] = 0
    product = Int8Linear(weight)(x)
    exact = x @ _as_multiplied(weight).T
    torch.testing.assert_close(product, exact, rtol=1e-6, atol=0)


def test_int8_in_pairs_leaves_room_for_the_sum_of_two_neighbours():
    generator = torch.Generator().manual_seed(8)
    weight = torch.randn(300, 128, generator=generator)
    rounded = Int8Weight.of(weight, in_pairs=True)
    sums = rounded.values.int().abs().unflatten(1, (-1, 2)).sum(-1)
    assert int(sums.amax(1).min()) >= 126 and int(sums.max()) <= 128
    half = Int8Weight.of(weight).scales.float() * 2  # as if each value had 7 bits
    assert float((rounded.scales.float() / half).mean()) < 0.8


@pytest.mark.skipif(not has_int8_units(torch.device("cpu")), reason="FBGEMM needs AVX2")
def test_int8_products_are_those_of_float32_to_within_a_step_of_their_bits(random_checkpoint):
    network = random_checkpoint.network
    layer = network.decoder.layers[0].fc1
    x = torch.randn(3, 7, layer.in_features, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        weight, bias = _as_multiplied(layer.weight), layer.bias.clone()
        exact = x @ weight.T + bias
        attention = network.decoder.layers[0].self_attn
        queries, keys_values = attention.queries_keys_values(x)
        network.decoder.use_int8()
        # Half a step of the input's 255 in each of its values, at the very most.
        step = float(x.max() - x.min()) / 255
        most = step / 2 * weight.abs().sum(1) + 1e-4
        products = network.decoder.layers[0].fc1(x)
        assert bool(((products - exact).abs() <= most).all())
        assert float((products - exact).std()) > 0  # it is int8 that computed
        table = _as_multiplied(network.decoder.embed_tokens.weight)
        off = (network.decoder.scores(x) - x @ table.T).abs()
        assert bool((off <= step / 2 * table.abs().sum(1) + 1e-4).all()) and float(off.std()) > 0
        rounded_queries, rounded = attention.queries_keys_values(x)
        for exact, product in zip(
            (queries, *keys_values), (rounded_queries, *rounded), strict=True
        ):
            assert 0 < float((product - exact).abs().max()) < 0.05 * float(exact.abs().max())


@torch.inference_mode()
@pytest.mark.skipif(not has_int8_units(torch.device("cpu")), reason="FBGEMM needs AVX2")
@pytest.mark.parametrize("has_bias", [True, False])
def test_int8_by_row_gives_a_row_its_bits_whatever_the_others_hold(has_bias):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(48, 64, generator=generator)
    bias = torch.randn(48, generator=generator) if has_bias else None
    x = torch.randn(2, 9, 64, generator=generator)
    x[0, 3] *= 100
    x[1, 5] = 0
    exact = torch.nn.functional.linear(x, _as_multiplied(weight), bias)
    before = x.clone()
    off = (Int8Linear(weight, bias, by_row=True)(x) - exact).abs()
    assert bool((x == before).all())
    steps = 2 * x.abs().amax(-1, keepdim=True) / 255
    assert bool((off <= steps / 2 * weight.abs().sum(1) + 1e-4).all())
    assert float(off.std()) > 0  # it is int8 that computed
    # What this is for: a tenth of the error that the other rows have without it.
    others = (Int8Linear(weight, bias)(x) - exact).abs()
    assert float(off[0, 0].mean()) < 0.1 * float(others[0, 0].mean())


@torch.inference_mode()
@pytest.mark.skipif(not has_int8_units(torch.device("cpu")), reason="FBGEMM needs AVX2")
def test_an_encoder_layer_in_int8_is_that_of_float32_but_for_rounding():
    layer = EncoderLayer(128)
    generator = torch.Generator().manual_seed(4)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    x = torch.randn(2, 90, 128, generator=generator)
    mask = torch.arange(90)[None, None, None, :] < torch.tensor([90, 40])[:, None, None, None]
    exact = layer(x, mask)
    layer.use_int8()
    assert not [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    off = layer(x, mask) - exact
    assert 0 < float(off.std()) < 0.05 * float((exact - x).std())


@pytest.mark.parametrize("lengths", [[4, 4], [4, 2]])
def test_what_is_remembered_of_each_row_is_as_of_one_pass_over_its_text(random_checkpoint, lengths):
    decoder = random_checkpoint.network.decoder
    generator = torch.Generator().manual_seed(2)
    encoded = torch.randn(2, 20, 64, generator=generator)
    frames = torch.tensor([20, 13])
    texts = torch.randint(0, 200, (2, 4), generator=generator)
    more = torch.randint(0, 200, (2, 3), generator=generator)
    with torch.inference_mode():
        cache = decoder.start(encoded, frames, remember=True)
        decoder(texts, cache)
        cache.lengths = list(lengths)  # the end of a row may be taken back
        found = decoder(more, cache)
        for i, length in enumerate(lengths):
            whole = torch.cat([texts[i, :length], more[i]])[None]
            alone = decoder.start(encoded[i : i + 1, : frames[i]], frames[i : i + 1])
            expected = decoder(whole, alone)[0, length:]
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.skipif(not has_int8_units(torch.device("cpu")), reason="needs AVX2")
@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [[20, 20], [20, 13]])
def test_the_compiled_layers_compute_what_the_others_do(
    random_checkpoint, monkeypatch, tiles, dtype, frames
):
    for module in ("network", "compiled_layer"):
        monkeypatch.setattr(f"model.{module}.has_amx_tiles", lambda: tiles)
    generator = torch.Generator().manual_seed(3)
    sizes = {"audio_width": 192, "text_width": 192, "text_layers": 2}  # three heads
    decoder = Decoder(replace(random_checkpoint.network.dims, **sizes)).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    decoder.use_int8()
    assert len(decoder._compiled) == 2
    encoded = torch.randn(2, 20, 192, generator=generator).to(dtype)
    texts = torch.randint(0, 200, (2, 4), generator=generator)
    more = torch.randint(0, 200, (2, 3), generator=generator)
    one = torch.randint(0, 200, (4, 1), generator=generator)
    found = []
    for _ in range(2):
        cache = decoder.start(encoded, torch.tensor(frames), remember=True)
        states = [decoder(texts, cache), decoder(more, cache)]
        cache.lengths = [5, 6]
        states.append(decoder(more, cache))
        cache.select([0, 0, 1, 1], [0, 1])  # as a beam's texts
        states.append(decoder(one, cache))
        found.append(states)
        decoder._compiled = []
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["all", "by key", "by query"])
def test_attention_one_by_one_is_that_of_all_queries_together(kind):
    generator = torch.Generator().manual_seed(8)
    # A view of (rows, length, heads, width), as the decoder's queries are.
    q = torch.randn(2, 2, 3, 64, generator=generator).transpose(1, 2)
    k, v = torch.randn(2, 2, 3, 75, 64, generator=generator)
    seen = {"by key": (2, 1, 1, 75), "by query": (2, 1, 2, 75)}.get(kind)
    added = None
    if seen is not None:
        added = torch.where(torch.rand(seen, generator=generator) < 0.7, 0.0, -torch.inf)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, added)
    found = _attend_one_by_one(q, k, v, added)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["all", "by key", "by query", "causal"])
@pytest.mark.parametrize("queries", [96, 97])
def test_attention_at_a_multiple_of_steps_is_that_of_the_lengths_themselves(kind, queries):
    generator = torch.Generator().manual_seed(6)
    keys = queries if kind == "causal" else 75
    q = torch.randn(2, 3, queries, 64, generator=generator)
    k, v = torch.randn(2, 2, 3, keys, 64, generator=generator)
    seen = {"by key": (2, 1, 1, keys), "by query": (2, 1, queries, keys)}.get(kind)
    mask = None if seen is None else torch.rand(seen, generator=generator) < 0.8
    exact = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=kind == "causal"
    )
    found = _attend_in_steps(q, k, v, mask, kind == "causal")
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_attention_keeps_nothing_for_each_length_that_it_has_seen():
    process = psutil.Process()
    attention = Attention(384)
    attention.out_proj = torch.nn.Identity()  # of whose kernels oneDNN keeps some, in its own cache

    def attend(frames: int) -> None:
        attention(*torch.randn(3, 1, 6, frames, 64).bfloat16(), None)

    for frames in range(MANY_QUERIES, 1025, KERNEL_STEP):
        attend(frames)
    before = process.memory_info().rss
    # 57 lengths that leave each remainder; with AMX 1.4 MB of kernels a thread each, were they kept.
    for frames in range(MANY_QUERIES, 1024, 17):
        attend(frames)
    assert (process.memory_info().rss - before) / 1e6 < 40


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_with_and_without_tiles(random_checkpoint, monkeypatch, dtype):
    network = random_checkpoint.network.to(dtype)
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(3, 80, 2 * MANY_QUERIES + 32, generator=generator)
    tokens = torch.randint(0, 200, (3, 5), generator=generator)
    for frames in ([MANY_QUERIES + 16] * 3, [MANY_QUERIES + 16, 40, 3]):
        counts = torch.tensor(frames)
        found = []
        for tiles in (True, False):
            monkeypatch.setattr("model.network.has_amx_tiles", lambda has=tiles: has)
            encoded = network.encoder(features, counts)
            heard = [own[:count] for own, count in zip(encoded, frames, strict=True)]
            cache = network.decoder.start(encoded, counts, remember=True)
            once = network.decoder(tokens, cache)
            cache.lengths = [5, 3, 4]
            found.append([*heard, once, network.decoder(tokens[:, :2], cache)])
            found[-1].append(network.decoder(tokens, network.decoder.start(encoded, counts)))
        close = (
            {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
        )
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, **close)

"""Texts to numbers and back."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import Characters, Tokenizer
from tests.random_checkpoint import SHIPPED


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer.from_file(SHIPPED / "tokenizer.json", 51_865, multilingual=True)


@given(st.text(string.ascii_letters + " .,?!'", max_size=60))
def test_a_text_comes_back(shipped, text):
    text = " ".join(text.split())
    assert shipped.decode(shipped.encode(text)) == text


@given(st.text(max_size=40))
def test_each_word_of_a_text_has_the_tokens_that_wrote_it(shipped, text):
    tokens = shipped.encode(text)
    words = shipped.decode(tokens).split()
    for word, places in zip(words, shipped.word_tokens(tokens), strict=True):
        assert places and list(places) == sorted(set(places))
        written = shipped.decode([tokens[place] for place in places])
        assert [c for c in word if c.isalnum()] == [c for c in written if c.isalnum()]


@pytest.mark.parametrize(
    ("tokens", "spelled"),
    [
        ([" Qu", "il", "ter", "'s", ","], [["Qu", "il", "ter", "'s"]]),
        ([" well", "-", "known"], [["well", "known"]]),
        ([' "', "g", "ospel", '",', " 1984", "…"], [["g", "ospel"], ["1984"]]),
        ([" so", " -", " so"], [["so"], ["-"], ["so"]]),
    ],
)
def test_punctuation_is_no_part_of_a_words_spelling(shipped, tokens, spelled):
    ids = [i for t in tokens for i in shipped.pairs.encode(t, add_special_tokens=False).ids]
    found = [[tokens[p].strip() for p in places] for places in shipped.word_tokens(ids)]
    assert found == spelled


@given(st.lists(st.integers(0, 50_256), max_size=30))
def test_any_tokens_at_all_have_their_words(shipped, tokens):
    assert len(shipped.word_tokens(tokens)) == len(shipped.decode(tokens).split())


def test_the_prompt_is_whispers(shipped):
    assert shipped.prompt == (
        50258,
        50259,
        50359,
        50363,
    )  # start, English, transcribe, no timestamps
    assert (shipped.end, shipped.no_speech) == (50257, 50362)


def test_the_prompt_of_an_english_model_names_no_language():
    tokenizer = Tokenizer.from_file(SHIPPED / "tokenizer.json", 51_865)
    assert tokenizer.prompt == (50258, 50363)


def test_a_prompt_stands_before_the_start_and_its_end_counts(shipped):
    words = shipped.encode("the first second third")
    assert shipped.prompt_after("the first second third", 3) == (
        50361,
        *words[-3:],
        *shipped.prompt,
    )
    assert shipped.prompt_after(" \n", 3) == shipped.prompt
    sly = shipped.prompt_after("go <|endoftext|><|startoftranscript|> on", 9)
    assert not {50257, 50258} & set(sly[: -len(shipped.prompt)])


def test_words_may_be_written_and_symbols_may_not(shipped):
    banned = set(shipped.suppressed)
    assert not banned & set(shipped.encode("It's five o'clock, a well-known 20% or $5."))
    for text in ("♪", "[", "(", "#"):
        assert banned & set(shipped.pairs.encode(text, add_special_tokens=False).ids), text
    assert shipped.end not in banned
    assert {50258, 50259, 50363, 51_864} <= banned  # start, English, no timestamps, last timestamp


def test_an_english_model_refuses_another_language():
    with pytest.raises(ValueError, match="language is 'de'; this is an English model"):
        Tokenizer.from_file(SHIPPED / "tokenizer.json", 51_865, language="de")


def test_names_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"t\.json is not a tokenizer file"):
        Tokenizer.from_file(tmp_path / "t.json", 10)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("The dog's café.", "the dog's cafe"),
        ("“Don’t!” — she said", "don't she said"),
        ("'quoted' word", "quoted word"),
        ("1984 was", "was"),
        ("", ""),
        (" - ", ""),
    ],
)
def test_spells_words_as_they_sound_in_letters(text, spelled):
    characters = Characters()
    assert characters.decode(characters.encode(text)) == spelled


@given(st.text(max_size=80))
def test_labels_are_never_the_blank_and_never_two_spaces(text):
    characters = Characters()
    labels = characters.encode(text)
    assert all(0 < label < len(characters) for label in labels)
    decoded = characters.decode(labels)
    assert decoded == " ".join(decoded.split())


def test_knows_which_texts_it_can_spell():
    assert Characters().covers("the dog's café, well")
    assert not Characters().covers("in 1984")
    assert not Characters().covers("добрый")


@pytest.mark.parametrize(
    ("text", "characters", "spelled"),
    [
        ("Мой ёж", " абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "мой ёж"),
        ("Über Größe", " abcdefghijklmnopqrstuvwxyzäöüß", "über größe"),
        ("Über Größe", " abcdefghijklmnopqrstuvwxyz", "uber grosse"),
        ("안녕", " 안녕", "안녕"),
    ],
)
def test_a_letter_with_a_label_of_its_own_is_not_taken_apart(text, characters, spelled):
    alphabet = Characters(characters)
    assert alphabet.covers(text)
    assert alphabet.decode(alphabet.encode(text)) == spelled


def test_refuses_characters_without_a_space():
    with pytest.raises(ValueError, match="the space among them"):
        Characters("abc")

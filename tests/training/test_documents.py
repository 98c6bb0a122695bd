"""Tables in documents are filled between their marks, and nothing else is touched."""

from pathlib import Path

import pytest

from training.documents import fill


def test_a_table_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- rates -->\nold\n<!-- /rates -->\n\nAfter.\n")
    fill(page, "rates", "| a |\n|---|")
    fill(page, "rates", "| b |\n|---|")
    assert (
        page.read_text() == "Before.\n\n<!-- rates -->\n| b |\n|---|\n<!-- /rates -->\n\nAfter.\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- rates -->",
        "<!-- /rates --><!-- rates -->",
        "<!-- rates --><!-- rates --><!-- /rates -->",
    ],
)
def test_a_page_without_its_marks_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must hold <!-- rates --> and then <!-- /rates -->"):
        fill(page, "rates", "new")
    assert page.read_text() == text

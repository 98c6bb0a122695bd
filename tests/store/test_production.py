"""The production pointer moves only from the version that was expected there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from store import Conflict, Corrupted, ModelStore, NotFound, Release
from store.models import PRODUCTION

Publish = Callable[..., Release]
WRITERS = 4


@pytest.fixture
def published(store: ModelStore, publish: Publish) -> ModelStore:
    for version in ("v1", "v2", "v3"):
        publish(store, version)
    return store


def test_nothing_is_in_production_at_first(published: ModelStore) -> None:
    assert published.production() is None


def test_the_pointer_moves_on_and_back(published: ModelStore) -> None:
    first = published.promote("v1", expected=None)
    moved = published.promote("v2", expected="v1")
    assert published.production() == moved
    assert (moved.version, moved.previous) == ("v2", "v1")

    back = published.promote("v1", expected="v2")
    assert (back.version, back.previous) == ("v1", "v2")
    assert len({first.id, moved.id, back.id}) == 3  # no two writers write the same bytes


@pytest.mark.parametrize("expected", [None, "v2", "v9"])
def test_a_decision_against_another_version_than_the_one_that_serves_is_refused(
    published: ModelStore, expected: str | None
) -> None:
    before = published.promote("v1", expected=None)
    with pytest.raises(Conflict, match=f"v1 is in production, not {expected or 'nothing'}"):
        published.promote("v3", expected=expected)
    assert published.production() == before


def test_promoting_what_serves_already_moves_nothing(published: ModelStore) -> None:
    published.promote("v1", expected=None)
    moved = published.promote("v2", expected="v1")
    assert published.promote("v2", expected="v1") == moved  # a step that is run again
    assert published.production() == moved


def test_of_several_promotions_at_the_same_time_one_wins(
    store: ModelStore, publish: Publish
) -> None:
    publish(store, "v0")
    store.promote("v0", expected=None)
    versions = [f"v{number}" for number in range(1, WRITERS + 1)]
    for version in versions:
        publish(store, version)
    together = Barrier(WRITERS)

    def attempt(version: str) -> str | None:
        together.wait()
        try:
            return store.promote(version, expected="v0").version
        except Conflict:
            return None

    with ThreadPoolExecutor(WRITERS) as pool:
        won = [version for version in pool.map(attempt, versions) if version]

    assert len(won) == 1
    current = store.production()
    assert current is not None
    assert (current.version, current.previous) == (won[0], "v0")


def test_a_pointer_that_has_come_back_is_not_the_one_that_was_read(published: ModelStore) -> None:
    published.promote("v1", expected=None)
    read = published.objects.read(PRODUCTION)
    published.promote("v2", expected="v1")
    published.promote("v1", expected="v2")
    with pytest.raises(Conflict):
        published.objects.swap(PRODUCTION, b"{}", read.tag)


def test_only_a_published_version_can_serve(
    published: ModelStore, publish: Publish, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="there is no version v4"):
        published.promote("v4", expected=None)

    (tmp_path / "short").write_bytes(b"cut")
    published.objects.upload(tmp_path / "short", "models/asr/v3/asr.mar")
    with pytest.raises(Corrupted, match="has 3 bytes and not 100000"):
        published.promote("v3", expected=None)
    assert published.production() is None

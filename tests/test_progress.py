import re

import pytest

from sublens import progress


def test_the_time_left_of_resumed_work_counts_from_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 30.0, 60.0])
    monkeypatch.setattr("sublens.progress.time.monotonic", lambda: next(clock))
    with progress.visible("training", 100) as advance:
        for done in (50, 60):
            advance(done, "well")
    assert re.search(r"training: 60%  well  120 s left", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("n", "seconds", "words"), [(3000, 2.0, "1,500 images/s"), (2, 17.0, "8.5 s an image"), (0, 9.0, "")]
)
def test_a_rate_is_told_in_words_that_are_not_zero(
    n: int, seconds: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, seconds])
    monkeypatch.setattr("sublens.progress.time.monotonic", lambda: next(clock))
    told: list[str] = []
    progress.Count(lambda done, said: told.append(said)).add(n)
    assert told == [words]

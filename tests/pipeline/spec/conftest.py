from collections.abc import Callable

import pytest

from pipeline.spec import SpecError, parse_spec

# Line numbers matter to the tests: one field a line, "name" on line 1.
TEXT = """\
name: digits-demo
data:
  name: digits
  source:
    kind: digits
  records: 1438
  size: 8
  channels: 1
  classes: [zero, one, two]
  holdout:
    source: {kind: digits, split: holdout}
    public: true
privacy:
  epsilon: 10
  delta: 1e-4
model:
  attention: [4]
train:
  batch: 256
  steps: 400
  views: 4
synthesize:
  images: 100
evaluate:
  epochs: 3
"""


@pytest.fixture
def text() -> str:
    return TEXT


@pytest.fixture
def edited() -> Callable[..., str]:
    """The spec with parts replaced; a part that is not there is a mistake in the test."""

    def edit(*changes: tuple[str, str]) -> str:
        text = TEXT
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text

    return edit


@pytest.fixture
def complaints(edited: Callable[..., str]) -> Callable[..., list[str]]:
    """What is said of the spec with parts replaced, one line a problem."""

    def complain(*changes: tuple[str, str]) -> list[str]:
        with pytest.raises(SpecError) as caught:
            parse_spec(edited(*changes), file="my.yaml")
        assert caught.value.exit_code == 2
        return str(caught.value).splitlines()

    return complain

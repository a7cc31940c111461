"""What is refused, and whether it is said."""

from __future__ import annotations

import logging
from typing import Any, Callable, Iterable, Sequence


def refusals(calls: Iterable[Callable[[], Any]]) -> list[str]:
    """What those of some calls say that are refused."""
    texts = []
    for call in calls:
        try:
            call()
        except (RuntimeError, TypeError, ValueError) as error:
            texts.append(str(error))
    return texts


def assert_said(texts: Sequence[str], expected: Sequence[str]) -> None:
    """Each text has its words, or one of several between bars."""
    assert len(texts) == len(expected), texts
    for text, words in zip(texts, expected):
        assert any(word in text for word in words.split("|")), text


def said(work: Callable[[], Any]) -> list[str]:
    """What the package says while something is done."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("adaptis").addHandler(handler)
    work()
    logging.getLogger("adaptis").removeHandler(handler)
    return told

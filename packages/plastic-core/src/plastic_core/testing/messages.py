"""The message of a command that refuses."""

from __future__ import annotations


def assert_one_error(printed: str, *parts: str) -> None:
    """Assert that one line was printed, an error that holds these parts.

    Examples:
        >>> assert_one_error("error: a.json: it is cut; download it again", "a.json", "cut")
    """
    lines = printed.strip().splitlines()
    assert len(lines) == 1, printed
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0], lines[0]

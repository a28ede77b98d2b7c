"""The rows of a file that teach nothing, by the reason: they are named and left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

SHOWN = 5  # numbers of rows that a line names


class RowsLeftOut:
    """Rows of one file that are left out, and those that lose their ends.

    Args:
        unit: What is counted, ``"line"`` or ``"row"``.
        window: Tokens that stay of a longer row.
    """

    def __init__(self, unit: str, window: int) -> None:
        self._unit, self._window = unit, window
        self._numbers: dict[str, list[int]] = defaultdict(list)
        self.shortened = 0

    def empty(self, number: int) -> None:
        """Leave out a row whose text or answer is empty."""
        self._numbers["its text or answer is empty"].append(number)

    def cut_away(self, number: int) -> None:
        """Leave out a row of whose answer the window leaves nothing."""
        reason = f"a window of {self._window} tokens leaves nothing of its answer"
        self._numbers[reason].append(number)

    def __len__(self) -> int:
        return sum(map(len, self._numbers.values()))

    def lines(self, total: int) -> Iterator[str]:
        """Say what became of some of so many rows.

        Args:
            total: Rows of the file.
        """
        for reason, numbers in self._numbers.items():
            yield f"left out {len(numbers)} of {total} rows, {self._named(numbers)}: {reason}"
        if self.shortened:
            yield (
                f"cut the ends of {self.shortened} of {total} rows, which are beyond the window "
                f"of {self._window} tokens"
            )

    def _named(self, numbers: list[int]) -> str:
        shown = ", ".join(map(str, numbers[:SHOWN]))
        more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
        return f"{self._unit}{'s' * (len(numbers) > 1)} {shown}{more}"

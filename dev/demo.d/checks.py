"""Comparisons of what the pipeline says with what is true, and the table of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from terminal import bold, green, print_table, red, say

SHOWN_DIFFERENCES = 5


@dataclass
class Check:
    """One line of the table. `differences` are sentences, one for each number that differs."""

    section: str
    what: str
    expected: str
    got: str
    compared: int
    differences: list[str] = field(default_factory=list)

    def verdict(self) -> str:
        if not self.differences:
            return green("✓")
        return red(f"✗ {len(self.differences):,} wrong")


class Checks:
    """All comparisons of a run, in the order in which they were made."""

    def __init__(self) -> None:
        self.made: list[Check] = []
        self.heading = ""

    def section(self, heading: str) -> None:
        """What the checks from here on are about."""
        self.heading = heading

    def mismatches(self) -> int:
        return sum(len(check.differences) for check in self.made)

    def number(self, what: str, expected: int, got: int | None) -> int:
        """Compares a single number."""
        return self.mapping(what, {"": expected}, {"": got})

    def mapping(
        self,
        what: str,
        expected: Mapping[Any, Any],
        got: Mapping[Any, Any],
        *,
        show: tuple[Any, Any] | None = None,
        tolerance: float = 0.0,
    ) -> int:
        """Compares value by value; a key that only one side has differs too. Returns how many differ.
        `show` is what stands in the table as (expected, got); by default how many entries each side has."""
        differences = [
            describe(key, expected.get(key), got.get(key))
            for key in sorted(expected.keys() | got.keys(), key=str)
            if not same(expected.get(key), got.get(key), tolerance)
        ]
        if show is None:
            single = list(expected) == [""]
            show = (expected[""], got[""]) if single else (len(expected), len(got))
        check = Check(self.heading, what, number(show[0]), number(show[1]), len(expected), differences)
        self.made.append(check)
        self._tell(check)
        return len(differences)

    def _tell(self, check: Check) -> None:
        compared = f"  ({check.compared:,} values)" if check.compared > 1 else ""
        say(f"  {check.verdict()} {check.what}: {check.got}{compared}")
        for difference in check.differences[:SHOWN_DIFFERENCES]:
            say(f"      {difference}")
        if len(check.differences) > SHOWN_DIFFERENCES:
            say(f"      … and {len(check.differences) - SHOWN_DIFFERENCES:,} more")

    def print(self) -> None:
        rows: list[tuple[str, ...]] = []
        for previous, check in zip([None, *self.made], self.made):
            if previous is None or previous.section != check.section:
                rows.append((check.section, "", "", "", ""))
            rows.append((f"  {check.what}", check.expected, check.got, f"{check.compared:,}", check.verdict()))
        print_table(("", "expected", "got", "compared", ""), rows)
        wrong = self.mismatches()
        numbers = "1 number differs" if wrong == 1 else f"{wrong:,} numbers differ"
        say(bold(red(f"\n  {numbers}") if wrong else green("\n  every number is right")))


def same(expected: Any, got: Any, tolerance: float) -> bool:
    """Equal, or both numbers and within a share of the expected one."""
    if expected == got:
        return True
    numbers = all(isinstance(value, (int, float)) for value in (expected, got))
    return bool(tolerance) and numbers and abs(got - expected) <= tolerance * abs(expected)


def describe(key: Any, expected: Any, got: Any) -> str:
    """Names only the fields that differ, where both sides are records."""
    if isinstance(expected, dict) and isinstance(got, dict):
        fields = [name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)]
        expected = {name: expected.get(name) for name in sorted(fields)}
        got = {name: got.get(name) for name in sorted(fields)}
    where = " ".join(map(str, key)) if type(key) is tuple else str(key)
    return f"{where + ': ' if where else ''}expected {expected}, got {got}"


def number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)

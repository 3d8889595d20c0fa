"""What a person sees: steps, progress bars and tables; sparse plain lines where no terminal is."""

import os
import shutil
import sys
import time

TERMINAL = sys.stdout.isatty()
COLOUR = TERMINAL and "NO_COLOR" not in os.environ
LABEL_WIDTH = 18
SPARSE_SECONDS = 15.0


class DemoError(Exception):
    """Something without which the demo cannot go on; its text says what to do."""


def paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def green(text: str) -> str:
    return paint("32", text)


def red(text: str) -> str:
    return paint("31", text)


def bold(text: str) -> str:
    return paint("1", text)


def say(text: str = "") -> None:
    """Lines are flushed, so that a log shows how far a run is while it runs."""
    print(text, flush=True)


def step(title: str) -> None:
    say(f"\n{bold(f'== {title}')}")


class Bar:
    """A progress bar. Without a terminal: a line per quarter, or every SPARSE_SECONDS where it is slow."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, max(total, 1), unit
        self.began = self.told_at = time.monotonic()
        self.told = 0
        self.drawn = 0.0

    def update(self, done: int) -> None:
        done = min(done, self.total)
        if TERMINAL:
            self._draw(done)
        elif done * 4 // self.total > self.told * 4 // self.total or self._silent_for_long():
            self._tell(done)

    def finish(self, done: int) -> None:
        """The last state stays on the screen, whether or not everything was reached."""
        if TERMINAL:
            self.drawn = 0.0
            self._draw(min(done, self.total))
            say()
        elif done != self.told:
            self._tell(min(done, self.total))

    def _silent_for_long(self) -> bool:
        return time.monotonic() - self.told_at >= SPARSE_SECONDS

    def _draw(self, done: int) -> None:
        if time.monotonic() - self.drawn < 0.05:
            return
        self.drawn = time.monotonic()
        label, state = f"  {self.label:<{LABEL_WIDTH}} ", f" {self._state(done)}"
        # A line that wraps could not be written over.
        width = max(0, min(30, shutil.get_terminal_size().columns - len(label) - len(state) - 1))
        filled = done * width // self.total
        sys.stdout.write(f"\r\033[K{label}{green('━' * filled)}{'─' * (width - filled)}{state}")
        sys.stdout.flush()

    def _tell(self, done: int) -> None:
        self.told, self.told_at = done, time.monotonic()
        say(f"  {self.label:<{LABEL_WIDTH}} {self._state(done)}")

    def _state(self, done: int) -> str:
        seconds = time.monotonic() - self.began
        return f"{done * 100 // self.total:>3} %  {done:,} of {self.total:,} {self.unit}  {seconds:.1f} s"


def print_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table whose first column is text and whose other columns but the last are numbers. The last
    column may be coloured, so it is not padded."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    for number, row in enumerate([headings, *rows]):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1])]
        line = "  " + "   ".join([*cells, row[-1]])
        say(bold(line) if number == 0 else line)

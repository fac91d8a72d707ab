"""One text on its way to the terminal: the work to standard output, the plan beside it."""

import sys
from typing import TextIO

from lwz_ray.config import TemplateConfig
from lwz_ray.templates import TagOrder

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class TerminalStream:
    """Takes a text piece by piece and shows it without its tags.

    What stands in the answer goes to `out`, so that `… > letter.txt` holds the work and nothing else; plan and whatever
    stands outside of both go to `aside`. The beginning of a tag is held back until it is known to be none. A tag that
    is not in its place is part of the text, as it is for `lwz_ray.templates.parse_completion`.
    """

    def __init__(self, template: TemplateConfig, out: TextIO | None = None, aside: TextIO | None = None) -> None:
        """out, aside: standard output and standard error where not given."""
        self._out, self._aside = out or sys.stdout, aside or sys.stderr
        self._order = TagOrder(template.arm)
        self._tagged = bool(template.stop)
        self._held = ""
        self._last: TextIO | None = None
        self._line_open = False
        self.feed(template.prefill)

    def feed(self, piece: str) -> None:
        """Show the next piece of the text."""
        self._held += piece
        while found := self._next_tag():
            position, tag = found
            self._show(self._held[:position])
            if not self._order.take(tag):
                self._show(tag)
            self._held = self._held[position + len(tag) :]
        keep = self._unfinished() if self._tagged else 0
        self._show(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def close(self) -> None:
        """Show what was held back and end the line."""
        self._show(self._held)
        self._held = ""
        self._end_line()

    def _next_tag(self) -> tuple[int, str] | None:
        if not self._tagged:
            return None
        return min(((at, tag) for tag in self._order.expected if (at := self._held.find(tag)) >= 0), default=None)

    def _unfinished(self) -> int:
        """Return how many of the last characters may be the beginning of a tag."""
        starts = (n for tag in self._order.expected for n in range(1, len(tag)) if self._held.endswith(tag[:n]))
        return max(starts, default=0)

    def _show(self, text: str) -> None:
        work = not self._tagged or self._order.inside == "answer"
        stream = self._out if work else self._aside
        if stream is not self._last:
            text = text.lstrip("\n")
        if not text:
            return
        if stream is not self._last:
            self._end_line()  # both may be the same terminal
        stream.write(f"{DIM}{text}{PLAIN}" if stream is self._aside and stream.isatty() else text)
        stream.flush()
        self._last, self._line_open = stream, not text.endswith("\n")

    def _end_line(self) -> None:
        if self._last is not None and self._line_open:
            self._last.write("\n")
            self._last.flush()
        self._line_open = False

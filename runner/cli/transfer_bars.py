"""Bars for the parts of a model that are under way, drawn with rich. Imported for a terminal only.

No text in here is read as markup: all of it is `Text`, or comes through columns that are told so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from runner.cli.transfer_display import Notes, label, shown_layers, stage
from runner.units import format_bytes

_WHOLE: Final = "all parts"
_OTHER_LINES: Final = 4  # the stage, the whole, how many are not shown, and the cursor's
_NARROW: Final = 72  # columns below which a bar has no rate


class _Rate(ProgressColumn):
    """Over the last half minute, in the units of everything else."""

    def render(self, task: Task) -> Text:
        if task.finished or not task.speed:
            return Text("")
        return Text(f"{format_bytes(int(task.speed))}/s", style="progress.data.speed", justify="right")


class _Left(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return Text("done", style="progress.remaining") if task.finished else super().render(task)


class Bars:
    """A line that tells the stage, a bar for each part, and one for all of them when there are several."""

    def __init__(self, verb: str, name: str, *, rows: int, console: Console | None = None) -> None:
        self._verb = verb
        self._name = name
        self._console = console or Console(stderr=True, markup=False, highlight=False, emoji=False)
        self._rows = max(1, min(rows, self._console.height - _OTHER_LINES))
        self._progress = Progress(*self._columns(), console=self._console, auto_refresh=False)
        self._tasks: dict[str, TaskID] = {}
        self._spinner = Spinner("line", Text(stage(verb, name, None)))
        self._notes = Notes()
        self._hidden = 0
        self._is_over = False

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draws while it is entered, and leaves the bars behind."""
        drawing = Live(
            get_renderable=self.drawn,
            console=self._console,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with drawing:
            try:
                yield
            finally:
                self._is_over = True  # of the stage, a line that comes next tells the end

    def show(self, progress: Mapping[str, Any]) -> None:
        for note in self._notes.fresh(progress):
            self._console.print(Text(note))
        self._spinner.update(text=Text(stage(self._verb, self._name, progress)))
        layers = progress["layers"]
        shown = shown_layers(layers, self._rows)
        self._hidden = len(layers) - len(shown)
        shown_digests = {layer["digest"] for layer in shown}
        for layer in layers:  # all of them, since bars stand in the order of their making
            self._draw(
                layer["digest"],
                label(layer),
                layer["size_bytes"],
                layer["done_bytes"],
                is_visible=layer["digest"] in shown_digests,
            )
        if len(layers) > 1:
            self._draw("", _WHOLE, progress["total_bytes"], progress["done_bytes"], is_visible=True)

    def _draw(self, key: str, text: str, total: int, done: int, *, is_visible: bool) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(text, total=total, completed=done, visible=is_visible)
        task = self._tasks[key]
        shown = self._progress.tasks[task]
        if (done < total and shown.finished) or not shown.completed:
            # A part that has to start again; or one that begins, maybe with what was fetched earlier: that
            # was not fetched at the rate of today.
            self._progress.reset(task, total=total, completed=done)
        self._progress.update(task, total=total, completed=done, visible=is_visible)

    def drawn(self) -> RenderableType:
        """What stands on the terminal now."""
        lines: list[RenderableType] = [] if self._is_over else [self._spinner]
        lines.append(self._progress.get_renderable())
        if self._hidden:
            lines.append(Text(f"and {self._hidden} more"))
        return Group(*lines)

    def _columns(self) -> list[Any]:
        is_narrow = self._console.width < _NARROW
        return [
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", max_width=self._console.width // 3),
            ),
            BarColumn(bar_width=None if is_narrow else self._console.width // 4),
            DownloadColumn(binary_units=True, table_column=Column(no_wrap=True)),
            *([] if is_narrow else [_Rate()]),
            _Left(compact=True),
        ]

"""Drawing the show: a live picture in a terminal, plain lines anywhere else."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from meshmsg.cli.demo.show import Note, Show

LINE_EVERY_S = 1.0
NOTES_SHOWN = 8
STYLES = {"working": "green", "killed": "bold red", "lost": "red", "silent": "yellow"}


def describe_note(note: Note) -> str:
    """A note with its time."""
    return f"{note.time_s:6.2f} s  {note.text}"


def describe_progress(show: Show, now: float) -> str:
    """The picture in one line."""
    books = show.ledger
    workers = ", ".join(
        f"{each.name} {each.done} at {each.rate(now):.0f}/s"
        if each.state == "working"
        else f"{each.name} {each.done} ({each.state})"
        for each in show.workers.values()
    )
    retries = f", {books.scheduled} to be retried" if books.scheduled else ""
    return (
        f"{len(show.measured)} of {show.total} files: {workers}; "
        f"{books.ready} waiting, {books.in_flight} in flight{retries}"
    )


def draw_picture(show: Show, now: float) -> RenderableType:
    """The picture: workers, producers, progress, what happened."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("process")
    table.add_column("pid", justify="right")
    table.add_column("state", min_width=9)
    for column in ("done", "files/s", "queue", "failed", "retried"):
        table.add_column(column, justify="right", min_width=5)
    for worker in show.workers.values():
        rate = f"{worker.rate(now):.0f}" if worker.state == "working" else "-"
        numbers = (str(worker.done), rate, str(worker.held), str(worker.failed), str(worker.retried))
        table.add_row(worker.name, str(worker.pid), Text(worker.state, STYLES.get(worker.state, "dim")), *numbers)
    for producer in show.producers.values():
        books = producer.ledger
        state = "done" if producer.final else "sending" if books.accepted else "starting"
        waiting = str(books.ready + books.scheduled)
        table.add_row(producer.name, str(producer.pid), state, str(books.processed), "-", waiting, str(books.dead), "-")
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(1, show.total), completed=len(show.measured), width=50),
        f"{len(show.measured)} of {show.total} files, {show.ledger.in_flight} in flight, {now:.1f} s",
    )
    notes = [Text(describe_note(note), no_wrap=True, overflow="ellipsis") for note in show.notes[-NOTES_SHOWN:]]
    return Group(table, bar, *notes)


class LiveView:
    """The picture, drawn over itself."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def draw(self, show: Show, now: float) -> None:
        """Draws it anew."""
        self._live.update(draw_picture(show, now), refresh=True)

    def tell(self, note: Note) -> None:
        """Notes are part of the picture."""

    def close(self) -> None:
        """Leaves the last picture on the screen."""
        self._live.stop()


class PlainView:
    """A line a second, and one for each thing that happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_at = LINE_EVERY_S

    def draw(self, show: Show, now: float) -> None:
        """A line, if it is time for one."""
        if now >= self._next_at and not show.finished:
            self._next_at = now + LINE_EVERY_S
            self._print(describe_note(Note(now, describe_progress(show, now))))

    def tell(self, note: Note) -> None:
        """A line at once."""
        self._print(describe_note(note))

    def close(self) -> None:
        """Nothing is left to do."""

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._console.file.flush()

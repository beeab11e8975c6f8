"""``meshmsg demo``: the verb."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from pathlib import Path

import click
from rich.console import Console

from meshmsg.cli import exits
from meshmsg.cli.bodies import to_json
from meshmsg.cli.demo.files import choose_folder, list_files
from meshmsg.cli.demo.report import as_document, describe
from meshmsg.cli.demo.stage import Plan, Stage
from meshmsg.cli.demo.views import LiveView, PlainView
from meshmsg.cli.numbers import NOT_NEGATIVE
from meshmsg.cli.running import Stop, complain, run
from meshmsg.cli.session import Session, session_options

MAX_NAP_S = 0.25
# Shorter naps are mostly the timer's inaccuracy.
MIN_NAP_S = 0.001


def choose_nap(seconds: float, files: int, workers: int) -> float:
    """How long a worker naps over each file, so that the whole takes about ``seconds``."""
    nap_s = seconds * workers / max(1, files)
    return min(MAX_NAP_S, nap_s) if nap_s >= MIN_NAP_S else 0.0


def describe_plan(plan: Plan) -> str:
    """The first lines."""
    nap = f"Over each file a worker naps {plan.nap_s * 1000:.0f} ms, so that there is something to see. "
    return (
        f"{len(plan.names)} files of {plan.title}: checksum and word count of each,\n"
        f"sent by {plan.producers} producers to {plan.workers} workers, all processes of their own.\n"
        f"{nap if plan.nap_s else ''}One task is made to fail.\n"
    )


@click.command("demo")
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--workers", type=click.IntRange(1, 50), default=3, show_default=True, help="Worker processes.")
@click.option("--producers", type=click.IntRange(1, 20), default=2, show_default=True, help="Producer processes.")
@click.option(
    "--kill/--no-kill",
    default=True,
    show_default=True,
    help="SIGKILL a worker half way; with one worker nobody is killed.",
)
@click.option(
    "--seconds",
    type=NOT_NEGATIVE,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Stretch the work to about this long by naps, at most 0.25 s a file; 0 for none.",
)
@session_options(json_help="The outcome as one JSON document; progress goes to standard error.")
def demo(session: Session, folder: Path | None, workers: int, producers: int, kill: bool, seconds: float) -> None:
    """Watch real processes finish real work although one is killed.

    Producers and workers, each a process of its own, find each other through mDNS on loopback. The producers send
    every file under DIR as a task; the workers compute its checksum and count its words; the results come back through
    a second queue. Half way one worker is killed with SIGKILL, in the worst moment, and others redo what it held. One
    task, which the demo adds, always fails, and becomes a dead letter. It ends with the ledger, and the totals beside
    those of a plain loop in one process; the exit code is 0 only if they are the same and the ledger is balanced.

    DIR is this project's tree if that is where meshmsg was started from, else the installed package. Version control,
    virtual environments and caches are left out.

    \b
    Examples:
      meshmsg demo
      meshmsg demo ~/documents --workers 5 --seconds 10
      meshmsg demo --json | jq .ledger
    """  # fmt: skip
    if not session.mdns:
        raise click.UsageError("the demo shows how processes find each other through mDNS; it has no --no-mdns")
    chosen, title = (folder, str(folder)) if folder is not None else choose_folder()
    chosen = chosen.resolve()
    names = tuple(list_files(chosen))
    plan = Plan(
        mesh=session.mesh or f"demo-{secrets.token_hex(4)}",
        folder=chosen,
        title=title,
        names=names,
        workers=workers,
        producers=producers,
        kill=kill,
        nap_s=choose_nap(seconds, len(names), workers),
        interfaces=session.interfaces,
        seeds=session.seeds,
        unencrypted=session.unencrypted,
    )
    # What the mesh says about a killed worker is part of the picture.
    if not session.verbose:
        logging.getLogger("meshmsg").setLevel(logging.ERROR)
    run(lambda stop: show_demo(plan, session, stop))


async def show_demo(plan: Plan, session: Session, stop: Stop) -> int:
    """Runs the plan, draws it, reports."""
    console = Console(stderr=session.json)
    console.print(describe_plan(plan), soft_wrap=True, markup=False, highlight=False)
    live = console.is_terminal and os.environ.get("TERM") != "dumb"
    view = LiveView(console) if live else PlainView(console)
    try:
        outcome = await Stage(plan, view).run(stop)
    finally:
        view.close()
    if outcome is None:
        return complain("interrupted; all processes of the demo are gone", exits.INTERRUPTED)
    console.print()
    for line in describe(outcome):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if session.json:
        click.echo(to_json(as_document(outcome)))
        sys.stdout.flush()
    return exits.NOTHING if outcome.problems else exits.OK

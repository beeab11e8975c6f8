"""All verbs by name; the module of a verb is imported when the verb is used, so that ``--help`` stays quick."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click

from meshmsg import __version__


class Verb(NamedTuple):
    """Where a verb is, and its line in the list of verbs."""

    module: str
    command: str
    summary: str


# The summaries repeat the first line of each verb's help; tests/cli/test_main.py compares them.
VERBS = {
    "demo": Verb("meshmsg.cli.demo.verb", "demo", "Watch real processes finish real work although one is killed."),
    "nodes": Verb("meshmsg.cli.nodes", "nodes", "List the nodes of a mesh."),
    "queues": Verb("meshmsg.cli.queues", "queues", "List the queues of a mesh, with who produces and who consumes."),
    "push": Verb("meshmsg.cli.push", "push", "Send messages to a queue, and wait until they are processed."),
    "pull": Verb("meshmsg.cli.pull", "pull", "Take messages from a queue and print each as a line."),
    "topics": Verb("meshmsg.cli.topics", "topics", "List the topics of a mesh, with who publishes and who subscribes."),
    "pub": Verb("meshmsg.cli.pub", "pub", "Publish messages to a topic, and wait until its subscribers have them."),
    "sub": Verb("meshmsg.cli.sub", "sub", "Subscribe to topics and print each message as a line."),
    "tap": Verb("meshmsg.cli.tap", "tap", "Watch topics from the side: every message with its number, every gap."),
    "services": Verb("meshmsg.cli.services", "services", "List the services of a mesh, with who offers them."),
    "request": Verb("meshmsg.cli.request", "request_", "Call a method of a service, and print what it returns."),
    "survey": Verb("meshmsg.cli.survey", "survey", "Ask everybody who serves a method, and print a line of each."),
    "reply": Verb("meshmsg.cli.reply", "reply", "Offer a method that runs a command, or returns a constant."),
    "bench": Verb(
        "meshmsg.cli.bench", "bench", "Measure meshmsg on this machine, each time beside a baseline in the same run."
    ),
}

EXIT_CODES = """\b
Exit codes:
  0    done
  1    nothing found, or time ran out before everything was done
  2    wrong use: an option, a body or a format that cannot work
  3    messages became dead letters, or a requested method failed
  4    the node could not run: address taken, mDNS unavailable
  130  interrupted before it was done"""


class LazyGroup(click.Group):
    """A group that knows its verbs' names and summaries without importing them."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names, in the order of ``VERBS``."""
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Imports the verb."""
        verb = VERBS.get(name)
        if verb is None:
            return None
        command = getattr(importlib.import_module(verb.module), verb.command)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the verb; for a misspelt one the error lists the names, without importing them."""
        if arguments and arguments[0] not in VERBS and not arguments[0].startswith("-"):
            context.fail(f"No such verb {arguments[0]!r}; there are {', '.join(VERBS)}.")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


def _show_version(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"meshmsg {__version__}")
        context.exit()


@click.group(
    cls=LazyGroup,
    epilog=EXIT_CODES,
    subcommand_metavar="VERB [ARGUMENTS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
def meshmsg() -> None:
    """Brokerless messaging: nodes that find each other and hand each other work.

    \b
    Try:
      meshmsg demo
      meshmsg pull greetings
      meshmsg push greetings hello      (in a second terminal)

    Each verb has its own help with an example: meshmsg push --help
    """

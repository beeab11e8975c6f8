"""The options that every verb takes, and the node that they make."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from meshmsg import Node
from meshmsg.cli.bodies import escape_lines

VerbT = TypeVar("VerbT", bound=Callable[..., Any])
DEFAULT_MESH = "default"


@dataclass(frozen=True, slots=True)
class Session:
    """What was said about the mesh, and how to print."""

    json: bool = False
    mesh: str | None = None
    interfaces: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    mdns: bool = True
    unencrypted: bool = False
    verbose: bool = False

    @property
    def mesh_name(self) -> str:
        """The mesh, also if none was named."""
        return self.mesh or DEFAULT_MESH

    def make_node(self, role: str, **options: Any) -> Node:
        """A node for this process; ``role`` and process id are its name, so that nobody shares it."""
        return Node(
            f"{role}-{os.getpid()}",
            mesh=self.mesh_name,
            seeds=self.seeds,
            mdns=self.mdns,
            interfaces=list(self.interfaces) or None,
            unencrypted=self.unencrypted,
            **options,
        )


class Formatter(logging.Formatter):
    """Writes what other nodes said so that it cannot steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of one record."""
        return escape_lines(super().format(record))


def session_options(json_help: str) -> Callable[[VerbT], VerbT]:
    """Gives a verb the shared options; it takes them as one argument ``session``."""
    options = [
        click.option("--json", is_flag=True, help=json_help),
        click.option("--mesh", metavar="NAME", envvar="MESHMSG_MESH", help="The mesh to join; also $MESHMSG_MESH."),
        click.option("--interface", "interfaces", metavar="NAME", multiple=True,
                     help="Interface name or address instead of loopback; repeatable."),
        click.option("--seed", "seeds", metavar="HOST:PORT", multiple=True,
                     help="A node to dial besides what mDNS finds; repeatable."),
        click.option("--mdns/--no-mdns", default=True, help="Look for nodes through multicast DNS.", show_default=True),
        click.option("--unencrypted", is_flag=True, help="Allow interfaces beyond loopback. For test networks only."),
        click.option("-v", "--verbose", is_flag=True, help="Log to standard error what the node does."),
    ]  # fmt: skip

    def decorate(verb: VerbT) -> VerbT:
        @functools.wraps(verb)
        def with_session(
            *arguments: Any,
            json: bool,
            mesh: str | None,
            interfaces: tuple[str, ...],
            seeds: tuple[str, ...],
            mdns: bool,
            unencrypted: bool,
            verbose: bool,
            **rest: Any,
        ) -> Any:
            handler = logging.StreamHandler()
            handler.setFormatter(Formatter("meshmsg: %(levelname)s: %(message)s"))
            logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
            if mesh == "":  # an empty variable is as good as none, but here somebody's script lost a name
                raise click.UsageError("--mesh takes a name, and this one is empty")
            session = Session(json, mesh, interfaces, seeds, mdns, unencrypted, verbose)
            return verb(*arguments, session=session, **rest)

        decorated: Any = with_session
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]  # click's decorators keep the function

    return decorate

"""Chat: people talk in a room, each through a process of their own. There is no server.

    python chat.py ada                     # joins the room "lobby"; start another one in another terminal
    python chat.py grace --room music

A line is said to the room; ``/who`` tells who is there, ``/tell NAME TEXT`` is for one person, ``/quit`` leaves.

What is said is published (G6): nobody misses a line without a word about it, and who comes later gets the last 100
lines of each one who is still there. Who is there is published, too: retained, and with a last will for those that
crash. What is told to one person is work (G1): whoever told it hears that it was shown, or that nobody is there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time

from meshmsg import Gap, MeshError, Message, Node, WaitTimeout

HISTORY = 100  # lines
PATIENCE_S = 3.0  # of somebody who tells something


class Chat:
    """One person in one room."""

    def __init__(self, node: Node, name: str, room: str) -> None:
        self.node = node
        self.name = name
        self.people: dict[str, str] = {}  # names by the id of their nodes: two may have the same name
        self.said = node.pub(f"chat.said.{room}", history=HISTORY)
        self.here = node.pub(f"chat.here.{room}.{node.id}", retain=True, will=["gone", name])
        node.pull(f"chat.told.{name}")(self.be_told)
        node.sub(f"chat.here.{room}.*", replay="latest")(self.meet)
        node.sub(f"chat.said.{room}", replay="history", on_gap=self.miss)(self.hear)

    # -- what others do --------------------------------------------------------------------------------------

    async def hear(self, message: Message) -> None:
        """Somebody has said something."""
        person, name, at, text = message.body
        if person != self.node.id:
            show(f"{time.strftime('%H:%M', time.localtime(at))} {name}: {text}")

    async def meet(self, message: Message) -> None:
        """Somebody came, left, or is gone without a word."""
        state, name = message.body
        person = str(message.topic).rpartition(".")[2]
        if state == "here":
            self.people[person] = name
        else:
            self.people.pop(person, None)
        if person != self.node.id:
            show(f"* {name} {'has left' if state == 'left' else f'is {state}'}")

    async def be_told(self, message: Message) -> None:
        """Somebody tells us something, and hears that it was shown once this returns."""
        name, text = message.body
        show(f"{name} tells you: {text}")

    def miss(self, gap: Gap) -> None:
        """What was said meanwhile is more than anybody keeps."""
        show(f"* {gap.missed} lines of {gap.publisher} are lost")

    # -- what we do ------------------------------------------------------------------------------------------

    async def enter(self) -> None:
        """Says that we are here; who comes later hears it as well."""
        await self.here.send(["here", self.name])

    async def leave(self) -> None:
        """Says goodbye, so that nobody has to read our last will."""
        await self.here.send(["left", self.name])

    async def obey(self, line: str) -> None:
        """Does what one line says."""
        command, _, rest = line.partition(" ")
        if command == "/who":
            show(f"* here: {', '.join(sorted(self.people.values()))}")
        elif command == "/tell":
            await self.tell(*rest.partition(" ")[::2])
        elif command.startswith("/"):
            show("* /who, /tell NAME TEXT, /quit; anything else is said to the room")
        elif line:
            await self.said.send([self.node.id, self.name, time.time(), line])

    async def tell(self, name: str, text: str) -> None:
        """Tells one person something, and says what came of it."""
        try:
            # Without `ttl` it would wait for the person to come, and be shown then: mail instead of talk.
            await self.node.push(f"chat.told.{name}", ttl=PATIENCE_S).deliver([self.name, text], timeout=2 * PATIENCE_S)
            show(f"* {name} has seen it")
        except (MeshError, WaitTimeout):
            show(f"* nobody called {name!r} has seen it")


def show(text: str) -> None:
    """Prints what people wrote, without what would play with the terminal."""
    print("".join(letter if letter.isprintable() else "?" for letter in text), flush=True)


def read_lines(loop: asyncio.AbstractEventLoop) -> asyncio.Queue[str]:
    """Lines from standard input, be it a terminal, a pipe or a file; ``/quit`` at its end."""
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.strip())
        loop.call_soon_threadsafe(lines.put_nowait, "/quit")

    # Nothing can stop a thread that waits for a person. A daemon does not hold up the end of the program.
    threading.Thread(target=read, daemon=True).start()
    return lines


async def talk(mesh: str, name: str, room: str) -> None:
    """Joins a room, and obeys the lines that a person types until ``/quit``."""
    async with Node(name, mesh=mesh) as node:
        chat = Chat(node, name, room)
        await chat.enter()
        lines = read_lines(asyncio.get_running_loop())
        while (line := await lines.get()) != "/quit":
            await chat.obey(line)
        await chat.leave()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="what others see")
    parser.add_argument("--room", default="lobby")
    parser.add_argument("--mesh", default="chat", help="people of one mesh can hear each other")
    arguments = parser.parse_args()
    try:
        asyncio.run(talk(arguments.mesh, arguments.name, arguments.room))
    except MeshError as error:  # a name or a room that cannot be one
        raise SystemExit(f"{error}") from None
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()

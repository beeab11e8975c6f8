"""Presence: everybody knows who is there, in what state, and who is gone, without asking.

Problem
    Members of a mesh come, change their state, leave, and crash. The others want a list that is right at any moment,
    also when they have only just come, and also about who can no longer say that it is gone.
Guarantee
    A watcher gets the last state of every member at once, and each later one in order (G6). A member that vanishes
    without a goodbye has its last will published to every watcher, by the watcher's own side.
How it fails
    ``--fail`` kills a member. Its connection breaks, and its will ("gone") is published about half a second later: so
    long it might come back. One that is cut off or frozen takes 2 s (``gone_after``), and says that it is there when it
    is back. A member that leaves in order says so by itself, and its will is void. Being "there" means just that: a
    process that answers, not that what you send next will be done. Work needs acks (work_queue.py).
What to change
    ``states``: what your members do. A state is a body like any other: put an address in it, a load, a version.
    With ``node.peers()`` a node sees who is connected, without states and without a line of code.

Run it: ``python presence.py [--fail]``
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from meshmsg import Node

MEMBERS = ["ada", "grace", "edsger"]


async def be(mesh: str, name: str) -> None:
    """A member: says that it is there, then what it does, and that it leaves."""
    async with Node(name, mesh=mesh) as node:
        # `retain` is for watchers that come later, `will` for the case that nobody here can speak any more.
        presence = node.pub(f"presence.{name}", retain=True, will="gone")
        orders = node.pull(f"orders.{name}")
        state = "idle"
        await presence.send(state)

        async def repeat() -> None:
            # Whoever took this member for gone, when it was frozen or cut off, believed its last will.
            async for event in node.events():
                if event.kind in ("peer.up", "peer.back"):
                    await presence.send(state)

        repeating = asyncio.create_task(repeat())
        async for message in orders:
            with message:
                state = message.body
                await presence.send(state)
                if state == "left":
                    break
        repeating.cancel()


async def watch(mesh: str, members: dict[str, subprocess.Popen[bytes]], fail: bool) -> None:
    """A watcher, which here also tells the members what to do."""
    async with Node("watcher", mesh=mesh) as node:
        states: dict[str, str] = {}
        changes = node.sub("presence.*", replay="latest")

        async def look_until(name: str, state: str) -> None:
            while states.get(name) != state:
                message = await changes.get(timeout=30)
                member = str(message.topic).removeprefix("presence.")
                if states.get(member) != message.body:
                    states[member] = message.body
                    by = " (its last will)" if "will" in message.headers else ""
                    print(f"{message.topic} is {message.body}{by}", flush=True)

        for name in MEMBERS:
            await look_until(name, "idle")
        await node.push("orders.ada").send("busy")
        await look_until("ada", "busy")
        if fail:
            members["grace"].kill()
            await look_until("grace", "gone")
        await node.push("orders.edsger").deliver("left", timeout=30)
        await look_until("edsger", "left")

        # Who comes now has not seen any of that, and needs not: what is there says how it is.
        late = node.sub("presence.*", replay="latest")
        there = {f"presence.{name}": state for name, state in states.items() if state not in ("gone", "left")}
        known: dict[str, str] = {}
        while known != there:
            message = await late.get(timeout=30)
            if message.body != "left":  # of one that is on its way out
                known[str(message.topic)] = message.body
        print("a late watcher sees", known)
        print("the first one saw", dict(sorted(states.items())))


def main(fail: bool) -> None:
    """Starts members as processes of their own; all find each other through mDNS."""
    mesh = f"presence-{os.getpid()}"
    members = {name: subprocess.Popen([sys.executable, __file__, "member", mesh, name]) for name in MEMBERS}
    try:
        asyncio.run(watch(mesh, members, fail))
    finally:
        for member in members.values():
            member.terminate()
        for member in members.values():
            member.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["member", mesh, name]:
            asyncio.run(be(mesh, name))
        case arguments:
            main(fail="--fail" in arguments)

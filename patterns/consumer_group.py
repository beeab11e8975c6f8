"""Consumer group: every service gets every event, and within a service one process handles it, although some crash.

Problem
    Several services want the same events: billing writes an invoice for each order, shipping a label. Each service
    is several processes, and an order must be handled by one of them: not by all, and not by none.
Guarantee
    Every group gets a copy of each message; one of its members handles it, and another one if that is lost, until it
    is done or a dead letter (G7): a group is a work queue that a topic fills, with all that work queues promise (G1
    to G5). With ``key=``, what belongs together stays in order within its topic, also when a member crashes.
How it fails
    ``--fail`` kills a member of one group while it has work in hand. That group's other members take it over; the
    message in hand is handled twice, so handlers know what they did by the message's id. The other group notices
    nothing. A message that no member can handle becomes a dead letter of its group at the publisher.
What to change
    The groups, and their work. ``durable=True`` has publishers collect for a group while none of its members is
    there; without it, a group gets what is published while it exists. ``where={"region": "eu"}`` takes only what has
    that header.

Run it: ``python consumer_group.py [--fail]``
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter

from meshmsg import Message, Node

ORDERS = 200
CUSTOMERS = {"ada": "eu", "grace": "us", "edsger": "eu", "barbara": "eu"}
# By member: its group, and the orders that this wants.
MEMBERS = {
    "billing-1": ("billing", "orders.**"),
    "billing-2": ("billing", "orders.**"),
    "shipping-1": ("shipping", "orders.eu"),
    "shipping-2": ("shipping", "orders.eu"),
}


def handle_orders(mesh: str, name: str) -> None:
    """A member: handles orders until it is told to stop (SIGTERM), and then finishes what it has begun."""
    group, pattern = MEMBERS[name]
    node = Node(name, mesh=mesh)
    results = node.push("results")

    @node.sub(pattern, group=group, prefetch=4, concurrency=2)
    async def handle(order: Message) -> None:
        await asyncio.sleep(0.002)  # the work
        # Acked when this returns: `deliver` makes sure that the result has arrived by then.
        result = {"group": group, "id": order.id, "customer": order.key, "number": order.body["number"]}
        await results.deliver(result)

    node.run()


async def publish(mesh: str, members: dict[str, subprocess.Popen[bytes]], fail: bool) -> None:
    """The shop: publishes orders, and looks at what the groups made of them."""
    done: dict[str, dict[str, int]] = {"billing": {}, "shipping": {}}  # by group and message, the order's number
    last: dict[tuple[str, str], int] = {}  # the last order that a group handled for a customer
    by: Counter[str] = Counter()
    duplicates = disorders = 0

    async with Node("shop", mesh=mesh) as node:

        @node.pull("results")
        async def collect(result: Message) -> None:
            nonlocal duplicates, disorders
            group, order, number = result.body["group"], result.body["id"], result.body["number"]
            if order in done[group]:
                duplicates += 1
                return
            done[group][order] = number
            by[result.sender] += 1
            place = group, result.body["customer"]
            disorders += number < last.get(place, 0)
            last[place] = number
            if fail and result.sender == "billing-1" and by["billing-1"] == 10:
                print(f"killing billing-1 before it can ack order {number}")
                members["billing-1"].kill()

        orders = node.pub("orders.*")
        for group in done:
            await node.wait_for(group=group, count=2, timeout=30)
        for number in range(ORDERS):
            customer, region = list(CUSTOMERS.items())[number % len(CUSTOMERS)]
            await orders.send({"number": number}, topic=f"orders.{region}", key=customer)
        while any(books.pending for books in node.ledger().values()):
            await asyncio.sleep(0.01)

        for group, results in done.items():
            print(f"{group} handled {len(results)} orders")
        print(f"{duplicates} handled twice, {disorders} out of a customer's order")
        print(", ".join(f"{name} did {count}" for name, count in sorted(by.items())))
        for queue, books in node.ledger().items():
            print(queue, books)


def main(fail: bool) -> None:
    """Starts the members as processes of their own; all find each other through mDNS."""
    mesh = f"consumer-group-{os.getpid()}"
    members = {name: subprocess.Popen([sys.executable, __file__, "member", mesh, name]) for name in MEMBERS}
    try:
        asyncio.run(publish(mesh, members, fail))
    finally:
        for member in members.values():
            member.terminate()
        for member in members.values():
            member.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["member", mesh, name]:
            handle_orders(mesh, name)
        case arguments:
            main(fail="--fail" in arguments)

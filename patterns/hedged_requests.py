"""Hedged requests: a second provider is asked when the first one takes longer than usual.

Problem
    A service answers in a millisecond, except for the few times when a provider collects garbage, waits for a disk, or
    stands still. Whoever needs ten of its answers for one page meets such a time on most pages.
Guarantee
    A request has one outcome, the first answer, however many providers were asked; the others are called off (G8).
    Only idempotent requests are asked twice, and not more than a fifth of them and ten a second (the budget that
    retries have, too): when everything is slow, hedging would make it worse.
How it fails
    ``--fail`` freezes a provider (SIGSTOP) in the middle of the run. Nobody waits for it: what it has is asked of
    another one, and balancing avoids it, long before it counts as silent.
What to change
    ``hedge_after=``: seconds, or ``"p95"``, the time that 95 of 100 recent requests took. The method must do no harm
    when it runs twice. Where slowness is not by chance but means too much work, hedging does not help.

Run it: ``python hedged_requests.py [--fail]``
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time

from meshmsg import Dealer, Node

PROVIDERS = ["provider-1", "provider-2", "provider-3"]
REQUESTS = 300
SIDE_BY_SIDE = 5
SLOW_S = 0.4  # for one request in thirty


class Prices:
    """The service: quick, mostly."""

    def __init__(self, name: str) -> None:
        self.chance = random.Random(name)
        self.begun = self.stopped = 0

    async def price(self, article: int) -> int:
        """The price of an article. Asking for it twice does no harm."""
        self.begun += 1
        try:
            await asyncio.sleep(SLOW_S if self.chance.random() < 1 / 30 else 0.002)
        except asyncio.CancelledError:  # another provider was faster
            self.stopped += 1
            raise
        return article * 3

    async def counts(self) -> list[int]:
        """How many requests began here, and how many were called off."""
        return [self.begun, self.stopped]


def provide(mesh: str, name: str) -> None:
    """A provider: serves until it is told to stop (SIGTERM)."""
    node = Node(name, mesh=mesh)
    node.router("prices").offer(Prices(name))
    node.run()


async def use(mesh: str, providers: dict[str, subprocess.Popen[bytes]], fail: bool) -> None:
    """The client: makes the same requests twice, without hedging and with it."""
    async with Node("client", mesh=mesh) as node:
        plain = node.dealer("prices")
        hedged = node.dealer("prices", idempotent=["price"], hedge_after=0.02)
        await node.wait_for(router="prices", count=len(PROVIDERS), timeout=30)

        async def run(dealer: Dealer, articles: range, times: list[float]) -> None:
            for article in articles:
                started = time.perf_counter()
                assert await dealer.price(article) == article * 3
                times.append(time.perf_counter() - started)
                if fail and dealer is hedged and len(times) == REQUESTS // 2:
                    print("freezing provider-1")
                    providers["provider-1"].send_signal(signal.SIGSTOP)

        for title, dealer in (("plain", plain), ("hedged", hedged)):
            times: list[float] = []
            parts = [range(start, REQUESTS, SIDE_BY_SIDE) for start in range(SIDE_BY_SIDE)]
            await asyncio.gather(*(run(dealer, part, times) for part in parts))
            times.sort()
            milliseconds = {percent: times[len(times) * percent // 100] * 1000 for percent in (50, 95, 99)}
            told = ", ".join(f"{percent} % within {value:.0f} ms" for percent, value in milliseconds.items())
            counts = [answer.value async for answer in plain.survey("counts", timeout=5) if answer.error is None]
            begun, stopped = (sum(column) for column in zip(*counts, strict=True))
            print(f"{title}: {len(times)} answers, {told}; so far {begun} began, {stopped} called off")


def main(fail: bool) -> None:
    """Starts the providers as processes of their own; all find each other through mDNS."""
    mesh = f"hedged-requests-{os.getpid()}"
    command = [sys.executable, __file__, "provider", mesh]
    providers = {name: subprocess.Popen([*command, name]) for name in PROVIDERS}
    try:
        asyncio.run(use(mesh, providers, fail))
    finally:
        for provider in providers.values():
            provider.kill()  # one may be frozen, and hear nothing else
        for provider in providers.values():
            provider.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["provider", mesh, name]:
            provide(mesh, name)
        case arguments:
            main(fail="--fail" in arguments)

"""A node's serving and requesting sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from meshmsg.checks import require_name
from meshmsg.driver import Driver
from meshmsg.options import DealerOptions, RouterOptions, make_options
from meshmsg.sockets.dealer import Dealer
from meshmsg.sockets.interceptors import InterceptedDealer
from meshmsg.sockets.router import Router
from meshmsg.sockets.under_way import settle


class Services:
    """Opens them. The node has checked that it is open."""

    def __init__(self, driver: Driver, max_message_bytes: int) -> None:
        self._driver = driver
        self._engine = driver.engine
        self._max_message_bytes = max_message_bytes
        self._routers: set[Router] = set()  # those that are not closed, and those that still end
        self.make_dealer: type[Dealer] = Dealer
        driver.on_answered = settle

    def connect(self) -> None:
        """The node has started."""
        for router in self._routers:
            router._start()

    async def drain(self, seconds: float) -> None:
        """Takes no more requests, and gives those that run time to end."""
        await asyncio.gather(*(router.close(seconds) for router in self._routers))

    def router(self, service: str, options: Mapping[str, Any]) -> Router:
        """One router a service."""
        require_name("router(service)", service)
        plain = dict(options)
        interceptors = plain.pop("interceptors", ())
        chosen = make_options(RouterOptions, f"router({service!r})", plain)
        offered = self._engine.serving.open(service, chosen)  # announced with its first method
        try:
            router = Router(
                self._driver, offered, self._engine.serving, chosen, interceptors, self._max_message_bytes,
                self._routers.discard,
            )  # fmt: skip
        except BaseException:
            self._engine.serving.close(service)
            raise
        self._routers.add(router)
        return router

    def dealer(self, service: str, options: Mapping[str, Any]) -> Dealer:
        """Any number of dealers a service, each with options of its own."""
        require_name("dealer(service)", service)
        plain = dict(options)
        interceptors = plain.pop("interceptors", ())
        chosen = make_options(DealerOptions, f"dealer({service!r})", plain)
        what = (self._driver, self._engine.calls, service, chosen, self._max_message_bytes)
        return InterceptedDealer(*what, interceptors=interceptors) if interceptors != () else self.make_dealer(*what)

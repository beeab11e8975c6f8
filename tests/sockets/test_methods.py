"""What a method may be called: services have dots in their names, methods have none."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg import ConfigurationError, NoSuchMethod
from tests.sockets.desk import Desk, refused


async def work() -> int:
    return 1


class Dotted:
    """A class whose method was put there by name."""

    async def plain(self) -> int:
        return 1


setattr(Dotted, "do.it", work)


@pytest.mark.parametrize("name", ["do.it", ".it", "it."])
async def test_a_dot_in_the_name_of_a_method_is_refused(name: str) -> None:
    desk = Desk()
    router = desk.router("shop.orders")
    for offer in (lambda: router.method(work, name=name), lambda: router.method(name=name)(work)):
        with pytest.raises(ConfigurationError) as caught:
            offer()
        assert f"router('shop.orders') has no method {name!r}" in str(caught.value)
        assert "names of services have dots, those of methods have none" in str(caught.value)
    assert router.methods == ("ping", "info", "stats")


@pytest.mark.parametrize("offered", [Dotted, Dotted()])
async def test_a_dot_in_the_name_of_an_offered_method_is_refused(offered: Any) -> None:
    desk = Desk()
    router = desk.router()
    with pytest.raises(ConfigurationError, match=r"router\('math.do'\) with the method 'it', or call it 'do_it'"):
        router.offer(offered)
    assert router.methods == ("ping", "info", "stats")


@pytest.mark.guarantee("G8")
async def test_who_asks_for_a_name_with_a_dot_hears_that_there_is_no_such_method() -> None:
    desk = Desk()
    desk.router().method(work, name="it")
    assert isinstance(await refused(desk.ask("do.it")), NoSuchMethod)
    assert await desk.ask("it") == 1


async def test_a_service_with_dots_in_its_name_knows_a_similar_method() -> None:
    desk = Desk()
    desk.router("shop.orders").method(work, name="lists")
    error = await refused(desk.ask("list", service="shop.orders"))
    assert str(error) == "shop.orders.list: no such method: did you mean 'lists'?"

"""One suite over every discovery: what `Discovery` promises, whoever implements it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
import uvloop

from meshmsg.discovery import Candidate, Discovery, StaticDiscovery
from meshmsg.errors import MeshError
from tests.discovery.sightings import Sightings, announced, new_id, new_mdns

ENDPOINT = "tcp://127.0.0.1:41077"


@dataclass
class Scene:
    """A world in which one node exists at ``ENDPOINT``, and ways to look at it."""

    make: Callable[[], Discovery]
    """A new discovery that should find that node."""
    newcomer: Callable[[], AbstractAsyncContextManager[None]]
    """Lets one more node appear, and waits until some other discovery would have reported it."""


@asynccontextmanager
async def static_scene() -> AsyncIterator[Scene]:
    @asynccontextmanager
    async def newcomer() -> AsyncIterator[None]:
        yield  # nothing ever appears to seeds

    yield Scene(lambda: StaticDiscovery([ENDPOINT]), newcomer)


@asynccontextmanager
async def mdns_scene() -> AsyncIterator[Scene]:
    mesh = new_id()

    @asynccontextmanager
    async def newcomer() -> AsyncIterator[None]:
        node_id = new_id()
        async with announced(new_mdns(mesh, node_id=node_id)):
            await witness.until(lambda seen: node_id in seen.ids)
            yield

    async with announced(new_mdns(mesh, port=41077)) as witness:
        yield Scene(lambda: new_mdns(mesh), newcomer)


SceneMaker = Callable[[], AbstractAsyncContextManager[Scene]]


@pytest.fixture(params=[static_scene, mdns_scene], ids=["static", "mdns"])
def scene_of(request: pytest.FixtureRequest) -> SceneMaker:
    return request.param


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return request.param


pytestmark = pytest.mark.usefixtures("loop_factory")


def refuse(argument: Candidate | str) -> None:
    raise AssertionError(f"called with {argument}")


async def test_found_is_called_for_what_exists(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        discovery, seen = scene.make(), Sightings()
        await discovery.start(seen.found, seen.lost)
        await seen.until(lambda seen: bool(seen.candidates))
        assert seen.candidates[0].endpoints == (ENDPOINT,)
        await discovery.close()
        assert len(seen.candidates) == 1


async def test_found_is_called_on_the_event_loop(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        discovery, loops = scene.make(), asyncio.Queue[asyncio.AbstractEventLoop]()
        await discovery.start(lambda _: loops.put_nowait(asyncio.get_running_loop()), refuse)
        assert await loops.get() is asyncio.get_running_loop()
        await discovery.close()


async def test_no_callback_comes_after_close(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        discovery, seen = scene.make(), Sightings()
        await discovery.start(seen.found, seen.lost)
        await seen.until(lambda seen: bool(seen.candidates))
        closing = asyncio.ensure_future(discovery.close())
        async with scene.newcomer():
            pass
        await closing
        async with scene.newcomer():
            pass
        assert len(seen.candidates) == 1
        assert not seen.gone


async def test_close_may_be_called_again_and_at_the_same_time(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        discovery = scene.make()
        await discovery.start(lambda _: None, refuse)
        await asyncio.gather(discovery.close(), discovery.close())
        await discovery.close()


async def test_close_without_start(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        await scene.make().close()


async def test_close_outlives_its_cancelled_caller(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        discovery = scene.make()
        await discovery.start(lambda _: None, refuse)
        caller = asyncio.ensure_future(discovery.close())
        await asyncio.sleep(0)  # it runs up to its first wait, if it waits at all
        caller.cancel()
        await asyncio.wait([caller])
        await discovery.close()


async def test_a_second_start_raises(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        discovery = scene.make()
        await discovery.start(lambda _: None, refuse)
        with pytest.raises(MeshError, match="already started"):
            await discovery.start(refuse, refuse)
        await discovery.close()


async def test_start_after_close_raises(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        discovery = scene.make()
        await discovery.close()
        with pytest.raises(MeshError, match="or closed"):
            await discovery.start(refuse, refuse)


async def test_a_failing_callback_is_logged_and_harms_nothing(
    scene_of: SceneMaker, caplog: pytest.LogCaptureFixture
) -> None:
    called = asyncio.Event()

    def fail(candidate: Candidate) -> None:
        called.set()
        raise ValueError("a mistake in the callback")

    async with scene_of() as scene:
        discovery = scene.make()
        await discovery.start(fail, refuse)
        await called.wait()
        await discovery.close()
    assert "a mistake in the callback" in caplog.text


async def test_nothing_is_left_running(scene_of: SceneMaker) -> None:
    async with scene_of() as scene:
        before = asyncio.all_tasks()
        discovery = scene.make()
        await discovery.start(lambda _: None, refuse)
        await discovery.close()
        assert asyncio.all_tasks() <= before

"""What every test gets: `async def` tests, one meshmsg for all processes, and the list of guarantees.

Run with `make quick` (this checkout) or `make test` (the built wheel); `pytest --guarantees` lists which
tests hold which promise of docs/guarantees.md.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
ASYNC_TIMEOUT_S = 30.0

# Benchmarks measure speed, tests do not: a busy machine must not fail one. CI repeats what it did before.
hypothesis.settings.register_profile(
    "meshmsg",
    deadline=None,
    max_examples=60,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("meshmsg")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guarantees", action="store_true", help="list each guarantee's tests and run none")


def pytest_configure(config: pytest.Config) -> None:
    """Make tests and the processes they start import one and the same meshmsg, wherever they are started."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # at the end: an installed meshmsg goes before the checkout's
    package = importlib.util.find_spec("meshmsg")
    if package is not None and package.submodule_search_locations:
        home = str(Path(package.submodule_search_locations[0]).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([home, str(ROOT)]))
    os.environ["PYTHONSAFEPATH"] = "1"  # otherwise the current folder comes first, often the checkout


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test in a loop of its own.

    A fixture named `loop_factory`, if the test has one, says which kind of loop. There are no async fixtures:
    `async with` in the test says the same and is easier to follow.
    """
    test = pyfuncitem.obj
    fixtures: dict[str, Any] = pyfuncitem.funcargs
    marker = pyfuncitem.get_closest_marker("timeout")
    timeout_s = float(marker.args[0]) if marker else ASYNC_TIMEOUT_S
    run = functools.partial(run_async, timeout_s=timeout_s, loop_factory=fixtures.get("loop_factory"))
    given = getattr(test, "hypothesis", None)
    if given is not None:
        given.inner_test = in_loop(given.inner_test, run)
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    run(test(**{name: fixtures[name] for name in inspect.signature(test).parameters}))
    return True


def in_loop(test: Callable[..., Any], run: Callable[..., None]) -> Callable[..., Any]:
    """Return an async test as a plain function: hypothesis calls it once an example, each in its own loop."""
    test = getattr(test, "async_test", test)  # the same test with other parameters came here before
    if not inspect.iscoroutinefunction(test):
        return test

    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    call.async_test = test  # type: ignore[attr-defined]  # functions may carry attributes
    return call


def run_async(
    test: Coroutine[Any, Any, None],
    timeout_s: float,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    """Run one coroutine under a deadline, and name what it was doing when the deadline passed."""

    async def with_deadline() -> None:
        async with asyncio.timeout(timeout_s):
            await test

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(with_deadline())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a mark that names no guarantee: the list would have it under a wrong heading."""
    for item in items:
        for marker in item.iter_markers("guarantee"):
            for number in marker.args or ("nothing",):
                if not isinstance(number, str) or re.fullmatch("G[1-9][0-9]?", number) is None:
                    raise pytest.UsageError(f"{item.nodeid}: guarantee() takes numbers such as 'G1', not {number!r}")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With --guarantees: print each promise with the tests that hold it, and stop."""
    if not session.config.getoption("--guarantees"):
        return None
    writer = session.config.get_terminal_writer()
    held: dict[str, list[str]] = {}
    for item in session.items:
        for marker in item.iter_markers("guarantee"):
            for number in marker.args:
                held.setdefault(number, []).append(item.nodeid)
    for number in sorted(held, key=lambda name: int(name.removeprefix("G"))):
        writer.line("\n  ".join([f"\n{number}", *dict.fromkeys(held[number])]))
    return True

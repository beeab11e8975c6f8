"""What a method takes and returns, read from its signature: binding, what the router gives, descriptions."""

from __future__ import annotations

import dataclasses
import functools
import gc
import operator
import typing
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.errors import BadRequest, ConfigurationError
from meshmsg.sockets.signatures import Signature
from meshmsg.wire.codec import decode_body, make_packer

if typing.TYPE_CHECKING:
    from fractions import Fraction as OnlyForCheckers


class Context:
    """Stands in for the router's."""

    def __init__(self, *items: Any) -> None:
        self.sent = items

    def items(self) -> Items:
        return Items(self.sent)


class Items:
    def __init__(self, sent: tuple[Any, ...]) -> None:
        self.left = list(sent)

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Any:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)

    def __iter__(self) -> Items:
        return self

    def __next__(self) -> Any:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


@dataclasses.dataclass
class Order:
    article: str
    count: int = 1


def call(function: Callable[..., Any], *args: Any, context: Any = None, **kwargs: Any) -> Any:
    """Do what a router does with what came over the wire."""
    args, kwargs = decode_body(make_packer()([args, kwargs]))
    signature = Signature(function, "math.add", Context)
    bound_args, bound_kwargs = signature.bind(list(args), kwargs, context)
    return function(*bound_args, **bound_kwargs)


def refuse(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        call(function, *args, **kwargs)
    return str(caught.value)


def add(a: int, b: int = 1) -> int:
    """Adds two numbers,
    and nothing else.

    Slowly.
    """
    return a + b


# --- binding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "kwargs"), [((2, 3), {}), ((2,), {"b": 3}), ((), {"b": 3, "a": 2})])
def test_arguments_come_by_position_and_by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert call(add, *args, **kwargs) == 5


@pytest.mark.parametrize(
    ("args", "kwargs", "argument", "text"),
    [
        ((2, "x"), {}, "b", "math.add: argument 'b' takes int, got str 'x'"),
        ((2,), {"b": "x"}, "b", "math.add: argument 'b' takes int, got str 'x'"),
        ((None,), {}, "a", "math.add: argument 'a' takes int, got None"),
        ((), {}, "a", "math.add: argument 'a' is missing: (a: int, b: int = 1) -> int"),
        ((), {"b": 1}, "a", "math.add: argument 'a' is missing: (a: int, b: int = 1) -> int"),
        (
            (1,),
            {"a": 1},
            "a",
            "math.add: argument 'a' came twice, by position and by name: (a: int, b: int = 1) -> int",
        ),
        ((1,), {"colour": 1}, "colour", "math.add has no argument 'colour': it takes (a: int, b: int = 1) -> int"),
        ((1, 2, 3), {}, None, "math.add takes at most 2 arguments by position, got 3: (a: int, b: int = 1) -> int"),
    ],
)
def test_what_does_not_fit_is_named(args: Any, kwargs: Any, argument: str | None, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        call(add, *args, **kwargs)
    assert (str(caught.value), caught.value.argument) == (text, argument)


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    def paint(colour: str) -> None: ...

    assert len(refuse(paint, **{"n" * 10_000: 1})) < 300
    assert refuse(paint, color="red") == "math.add has no argument 'color': did you mean 'colour'?"


def test_every_kind_of_parameter() -> None:
    def method(first: int, /, second: int, *rest: int, third: int, fourth: int = 4, **named: int) -> Any:
        return first, second, rest, third, fourth, named

    assert call(method, 1, 2, third=3) == (1, 2, (), 3, 4, {})
    assert call(method, 1, second=2, third=3) == (1, 2, (), 3, 4, {})
    assert call(method, 1, 2, 7, 8, third=3, fourth=5, first=9) == (1, 2, (7, 8), 3, 5, {"first": 9})
    assert "argument 'first' is missing" in refuse(method, first=1, second=2, third=3)
    assert "argument 'third' is missing" in refuse(method, 1, 2)
    assert "argument 'rest[1]' takes int, got str 'x'" in refuse(method, 1, 2, 3, "x", third=3)
    assert "argument 'other' takes int, got str 'x'" in refuse(method, 1, 2, third=3, other="x")
    text = "(first: int, /, second: int, *rest: int, third: int, fourth: int = 4, **named: int) -> Any"
    assert Signature(method, "a.b").describe()["signature"] == text


def test_without_annotations_everything_goes() -> None:
    def method(a, b=2, *, c=3):  # type: ignore[no-untyped-def]
        return a, b, c

    assert call(method, [1], "x", c={"y": None}) == ([1], "x", {"y": None})
    assert Signature(method, "a.b").describe()["signature"] == "(a, b=2, *, c=3)"


values = st.lists(st.integers(0, 3), max_size=4)
names = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e", "context"]), st.integers(0, 3), max_size=4)


@given(args=values, kwargs=names)
def test_binding_accepts_what_python_accepts(args: list[int], kwargs: dict[str, int]) -> None:
    def one(a, /, b, c=5, *rest, d, e=6): ...  # type: ignore[no-untyped-def]
    def two(a, b=5, /, **named): ...  # type: ignore[no-untyped-def]
    def three(a=1, *, b=2): ...  # type: ignore[no-untyped-def]
    def four(*rest): ...  # type: ignore[no-untyped-def]

    for function in (one, two, three, four):
        try:
            function(*args, **kwargs)  # type: ignore[operator]
            accepted = True
        except TypeError:
            accepted = False
        try:
            assert Signature(function, "x").bind(list(args), dict(kwargs)) == (args, kwargs)
            assert accepted
        except BadRequest:
            assert not accepted


def test_bound_methods_partials_decorated_functions_and_callable_objects() -> None:
    class Adder:
        """Adds what it was made with."""

        def __init__(self, much: int) -> None:
            self.much = much

        def add(self, a: int) -> int:
            return a + self.much

        def __call__(self, a: int) -> int:
            return a + self.much

    @functools.wraps(add)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        return add(*args, **kwargs)

    for function in (Adder(1).add, Adder(1), functools.partial(add, 1), functools.lru_cache(add), decorated):
        assert call(function, 2) == 3
        assert "takes int, got str 'x'" in refuse(function, "x")
    assert Signature(Adder(1), "x.add").describe()["doc"] == "Adds what it was made with."
    assert Signature(functools.partial(add, 1), "x.add").describe()["doc"] == "Adds two numbers, and nothing else."


def test_names_are_those_of_the_function_inside() -> None:
    class Shop:
        def __call__(self, order: Order) -> Order:
            return order

    def place(order: Order) -> Order:
        return order

    for method in (Shop(), functools.lru_cache(place), functools.partial(functools.lru_cache(place))):
        assert Signature(method, "shop.place").bind([{"article": "nut"}], {}) == ([Order("nut")], {})


def test_arguments_can_be_bound_again() -> None:
    context = Context()

    def both(context: Context, a: float, *rest: float, b: float, it: Context, **named: float) -> Any: ...
    def checked(a: float, *rest: float, **named: float) -> Any: ...
    def given(context: Context, a: Any, *rest: Any, it: Context, **named: Any) -> Any: ...

    for method, inserted, named in (
        (both, [context], {"it": context}),
        (checked, [], {}),
        (given, [context], {"it": context}),
    ):
        signature, args, kwargs = Signature(method, "x", Context), [1, 2], {"b": 3, "c": 4}
        for _ in range(2):
            assert signature.bind(args, kwargs, context) == ([*inserted, 1, 2], {"b": 3, "c": 4, **named})
            assert (args, kwargs) == ([1, 2], {"b": 3, "c": 4})
            assert [type(each) for each in (*args, *kwargs.values())] == [int] * 4


def test_what_a_partial_has_set_is_not_for_callers() -> None:
    def fetch(path: str, *, secret: str = "", **more: Any) -> Any:
        return path, secret, more

    method = functools.partial(fetch, secret="s3", root="/srv")
    assert call(method, "a") == ("a", "s3", {"root": "/srv"})
    assert "has no argument 'secret'" in refuse(method, "a", secret="mine")
    assert "has no argument 'root'" in refuse(method, "a", root="/")
    assert Signature(method, "a.b").describe()["signature"] == "(path: str, **more: Any) -> Any"


def test_a_function_in_c_takes_what_it_takes() -> None:
    assert call(operator.add, 2, 3) == 5
    assert call(max, 2, 3) == 3
    assert Signature(max, "math.max").describe()["signature"] == "(...)"


# --- what the router gives ----------------------------------------------------------------------------------------


def test_the_context_goes_to_whoever_wants_it() -> None:
    context = Context()

    def first(context: Context, a: int, b: int = 2) -> Any:
        return context, a, b

    def middle(a: int, given: Optional[Context] = None, b: int = 2) -> Any:  # noqa: UP045
        return given, a, b

    def only_named(a: int, b: int = 2, *, it: Annotated[Context, "of the call"]) -> Any:
        return it, a, b

    def only_placed(a: int, b: int = 2, given: Context | None = None, /) -> Any:
        return given, a, b

    for method in (first, middle, only_named):
        for args, kwargs in (((1, 3), {}), ((1,), {"b": 3}), ((), {"a": 1, "b": 3})):
            assert call(method, *args, context=context, **kwargs) == (context, 1, 3)
        assert call(method, 1, context=context) == (context, 1, 2)
        assert "argument 'a' takes int" in refuse(method, "x")
    for args, b in (((1,), 2), ((1, 3), 3)):
        assert call(only_placed, *args, context=context) == (context, 1, b)
    assert Signature(middle, "a.b", Context).wants_context and not Signature(middle, "a.b", Context).takes_items
    assert Signature(middle, "a.b", Context).describe()["signature"] == "(a: int, b: int = 2) -> Any"
    assert not Signature(add, "a.b", Context).wants_context


def test_no_caller_can_give_the_context() -> None:
    def method(a: int, context: Context, **more: Any) -> Any:
        return context

    signature = Signature(method, "math.add", Context)
    with pytest.raises(BadRequest, match="has no argument 'context'"):
        signature.bind([1], {"context": "mine"}, Context())
    with pytest.raises(BadRequest, match="at most 1 argument by position"):
        signature.bind([1, "mine"], {}, Context())


async def test_an_iterator_gets_the_callers_items() -> None:
    async def total(scale: int, numbers: AsyncIterator[float]) -> float:
        return scale * sum([each async for each in numbers])

    def plain(numbers: Iterator[int], scale: int) -> int:
        return scale * sum(numbers)

    def untyped(numbers: Iterator) -> int:  # type: ignore[type-arg]
        return sum(numbers)

    assert await call(total, 2, context=Context(1, 2.5)) == 7.0
    assert call(plain, 3, context=Context(1, 2)) == 9
    assert call(untyped, context=Context(1, 2)) == 3
    described = Signature(total, "math.total", Context).describe()
    assert described["takes_items"] and described["signature"] == "(scale: int) -> float"
    with pytest.raises(BadRequest, match=r"^math\.add: item 2 of 'numbers' takes float, got str 'x'$"):
        await call(total, 2, context=Context(1, "x"))
    with pytest.raises(BadRequest, match=r"^math\.add: item 1 of 'numbers' takes int, got bool True$"):
        call(plain, 2, context=Context(True))


@pytest.mark.parametrize("name", ["timeout", "headers", "peer", "key", "idempotent", "items"])
def test_a_name_that_only_the_dealer_hears_is_refused(name: str) -> None:
    space: dict[str, Any] = {"Context": Context, "AsyncIterator": AsyncIterator}
    exec(
        f"def only_named(a, *, {name}=None): return a, {name}\n"
        f"def by_position(a, {name}=None): return a, {name}\n"
        f"def the_routers(a, *, {name}: Context): return a, {name}\n"
        f"def the_callers(a, *, {name}: AsyncIterator): return a, {name}\n"
        f"def several(a, **more): return a, more\n",
        space,
    )
    with pytest.raises(ConfigurationError, match=rf"^math\.add: no caller could give '{name}'"):
        Signature(space["only_named"], "math.add", Context)
    with pytest.raises(ConfigurationError, match="rename it, or let it come by position too"):
        Signature(functools.partial(space["by_position"], a=1), "math.add", Context)
    Signature(functools.partial(space["by_position"], **{name: 1}), "math.add", Context)
    assert call(space["by_position"], 1, 2) == (1, 2)
    for method in ("the_routers", "the_callers", "several"):
        assert Signature(space[method], "math.add", Context).text == ("(a)" if method != "several" else "(a, **more)")


# --- names in annotations -----------------------------------------------------------------------------------------


def test_names_that_are_defined_where_the_method_is() -> None:
    @dataclasses.dataclass
    class Local:
        a: int

    def method(it: Local, *, more: list[Local]) -> Local:
        assert isinstance(more[0], Local)
        return it

    assert call(method, {"a": 1}, more=[{"a": 2}]) == Local(1)


def test_names_that_only_type_checkers_know() -> None:
    def argument(a: int, it: OnlyForCheckers) -> None: ...
    def result(a: int) -> OnlyForCheckers: ...  # type: ignore[empty-body]
    def context(a: int, it: typing_only.Context | None = None) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return it

    with pytest.raises(ConfigurationError, match=r"argument 'it' is annotated 'OnlyForCheckers', which is not defined"):
        Signature(argument, "math.add")
    assert "argument 'a' takes int" in refuse(result, "x")
    assert Signature(result, "math.add").describe()["signature"] == "(a: int) -> OnlyForCheckers"
    assert call(context, 1, context="the context") == "the context"


# --- results ------------------------------------------------------------------------------------------------------


def test_items_of_a_stream() -> None:
    async def count(to: int) -> AsyncIterator[int]:
        yield to

    def letters() -> Iterable[str]:
        yield "a"

    def anything():  # type: ignore[no-untyped-def]
        yield 1

    signature = Signature(count, "math.count")
    signature.check_result(3)
    with pytest.raises(TypeError, match=r"^math\.count yields int by its annotation, got str 'x'$"):
        signature.check_result("x")
    with pytest.raises(TypeError, match="yields str"):
        Signature(letters, "math.letters").check_result(1)
    Signature(anything, "math.anything").check_result(object())
    assert [Signature(each, "x").streams for each in (count, letters, anything, add)] == [True, True, True, False]


def test_a_method_that_forgot_to_yield() -> None:
    def method() -> AsyncIterator[int]: ...  # type: ignore[empty-body]

    Signature(method, "x").check_result("whoever runs it will say so")


def test_description() -> None:
    async def method(
        order: Order,
        many: dict[str, list[Order]],
        how: Literal["a.b"] = "a.b",
        when: Any = Context,
    ) -> None: ...

    assert Signature(add, "math.add").describe() == {
        "name": "add",
        "signature": "(a: int, b: int = 1) -> int",
        "doc": "Adds two numbers, and nothing else.",
        "streams": False,
        "takes_items": False,
    }
    described = Signature(method, "shop.place").describe()
    assert described["signature"] == (
        "(order: Order, many: dict[str, list[Order]], how: Literal['a.b'] = 'a.b', when: Any = ...) -> None"
    )
    assert described["doc"] == ""
    make_packer()(described)


def wrapped_plainly(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper() -> Any:
        return function()

    return wrapper


@pytest.mark.filterwarnings("error")  # such as "was never awaited"
def test_a_plain_wrapper_of_the_work_is_told_whatever_it_promises() -> None:
    async def one() -> int:
        return 1

    async def yielded() -> AsyncIterator[Any]:
        yield one()

    cause = "which nobody runs: offer the function itself, or make the wrapper of its kind"
    for annotation in (int, list[int], None):
        one.__annotations__["return"] = annotation
        with pytest.raises(TypeError, match=rf"^math\.add returned a coroutine, {cause}$"):
            Signature(wrapped_plainly(one), "math.add").check_result(one())
    with pytest.raises(TypeError, match=rf"^math\.add returned a generator, {cause}$"):
        Signature(wrapped_plainly(one), "math.add").check_result(each for each in (1, 2))
    yielded.__annotations__["return"] = AsyncIterator[int]
    with pytest.raises(TypeError, match=rf"^math\.add yielded a coroutine, {cause}$"):
        Signature(yielded, "math.add").check_result(one())
    gc.collect()


def test_what_callers_see_can_travel() -> None:
    def add(a=1): ...  # type: ignore[no-untyped-def]

    add.__doc__ = "A caf\udce9."
    add.__annotations__ = {"return": "caf\udce9"}
    described = Signature(add, "math.add").describe()
    assert (described["signature"], described["doc"]) == ("(a=1) -> caf?", "A caf?.")

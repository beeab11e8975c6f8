"""Options: their defaults, their limits, and what is said to somebody who got them wrong."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from meshmsg import ConfigurationError, Retry, UnknownOption
from meshmsg.checks import require_bool, require_choice, require_int, require_name, require_number
from meshmsg.options import (
    DealerOptions,
    GroupOptions,
    LivenessOptions,
    PubOptions,
    PullOptions,
    PushOptions,
    RouterOptions,
    SubOptions,
    describe_difference,
    make_options,
)


def test_the_defaults_are_the_documented_ones() -> None:
    retry = Retry()
    assert (retry.max_attempts, retry.backoff, retry.factor, retry.max_backoff, retry.jitter) == (5, 0.5, 2, 60, "full")
    pull, push, live = PullOptions(), PushOptions(), LivenessOptions()
    assert (pull.prefetch, pull.concurrency, pull.timeout, pull.reliable) == (256, 1, None, True)
    assert (push.balance, push.overflow, push.max_pending) == ("least_outstanding", "wait", 10_000)
    assert (push.ttl, push.unroutable_after, push.dead_letter_to) == (None, None, None)
    assert (live.heartbeat, live.gone_after) == (0.5, 2.0)


def test_options_do_not_change() -> None:
    for options in (Retry(), PullOptions(), PushOptions(), LivenessOptions()):
        with pytest.raises(FrozenInstanceError):
            setattr(options, fields(options)[0].name, 1)


def test_the_backoff_grows_up_to_its_cap() -> None:
    retry = Retry(backoff=1, factor=3, max_backoff=20)
    assert [retry.ceiling(attempts) for attempts in (1, 2, 3, 4, 1000)] == [1, 3, 9, 20, 20]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_attempts": 0}, r"Retry\(max_attempts=\) takes 1 or more, got 0"),
        ({"max_attempts": True}, "takes a whole number, not bool True"),
        ({"max_attempts": 2.0}, "takes a whole number, not float 2.0"),
        ({"backoff": -1}, "takes 0 or more"),
        ({"backoff": float("inf")}, "takes a finite number"),
        ({"factor": 0.5}, "takes 1 or more"),
        ({"max_backoff": "60"}, "takes a number, not str '60'"),
        ({"jitter": "half"}, "takes one of 'full', 'none', got 'half'"),
    ],
)
def test_retries_that_cannot_work(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Retry(**options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"heartbeat": 0}, "takes more than 0"),
        ({"heartbeat": 2}, "heartbeat < suspect_after"),
        ({"suspect_after": 3}, "suspect_after <= gone_after"),
        ({"stall_after": 1}, "gone_after <= stall_after"),
    ],
)
def test_liveness_that_cannot_work(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        LivenessOptions(**options)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"prefetc": 1}, r"pull\('q'\) has no option 'prefetc': did you mean 'prefetch'\?"),
        ({"zzz": 1}, "it has prefetch, concurrency, timeout, type, reliable"),
    ],
)
def test_unknown_options(given: dict[str, Any], why: str) -> None:
    with pytest.raises(UnknownOption, match=why) as caught:
        make_options(PullOptions, "pull('q')", given)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)


def test_one_dealer_has_less_under_way_than_one_router_takes() -> None:
    router = RouterOptions()
    assert DealerOptions().max_pending < router.concurrency + router.max_queue


def test_what_differs_is_named_alone() -> None:
    told = describe_difference(PubOptions(history=5, will="x" * 1000), PubOptions(retry=Retry(max_attempts=2)))
    assert told.startswith("history=5, not 0; will='xxx") and "max_pending" not in told and len(told) < 700
    assert "retry=Retry(max_attempts=5, backoff=0.5" in told and "not Retry(max_attempts=2, " in told


def test_known_options_arrive() -> None:
    options = make_options(PushOptions, "push('q')", {"max_pending": 3, "retry": Retry(max_attempts=1)})
    assert (options.max_pending, options.retry.max_attempts, options.overflow) == (3, 1, "wait")


@pytest.mark.parametrize("name", ["work", "a.b-c_d/e:f", "größe", "仕事", "x" * 200])
def test_names_that_can_be(name: str) -> None:
    assert require_name("push(queue)", name) == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "1 to 200 bytes"),
        ("x" * 201, "1 to 200 bytes"),
        ("ü" * 101, "1 to 200 bytes"),
        ("a b", "without white space"),
        ("a\tb", "without white space"),
        ("a\x00", "without white space"),
        ("\u2028", "without white space"),
        (b"work", "not bytes"),
        (None, "not NoneType"),
    ],
)
def test_names_that_cannot_be(name: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        require_name("push(queue)", name)


def test_the_checks_name_the_place() -> None:
    checks = [
        lambda: require_int("here", "1", at_least=0),
        lambda: require_number("here", None, at_least=0),
        lambda: require_number("here", float("nan"), above=0),
        lambda: require_number("here", True, above=0),
        lambda: require_number("here", 0, above=0),
        lambda: require_choice("here", "c", ("a", "b")),
        lambda: require_bool("here", 1),
    ]
    for check in checks:
        with pytest.raises(ConfigurationError, match=r"^here takes "):
            check()


@pytest.mark.parametrize("too_many", [2**62 + 1, 2**64, 2**80])
@pytest.mark.parametrize(
    "options", [Retry, PushOptions, PullOptions, PubOptions, SubOptions, RouterOptions, DealerOptions]
)
def test_whole_numbers_have_an_upper_bound_each(options: type[Any], too_many: int) -> None:
    """What no frame can count, a peer could not be told; found when the option is given, not when it is used."""
    defaults = options()
    names = [each.name for each in fields(options) if type(getattr(defaults, each.name)) is int]
    assert names
    for name in names:
        with pytest.raises(ConfigurationError, match=rf"{name}=\)? takes at most \d+, got "):
            options(**{name: too_many})


def test_the_largest_numbers_that_can_be() -> None:
    assert PubOptions(window=2**62, history=2**62).window == 2**62


@pytest.mark.parametrize(
    ("options", "given", "why"),
    [
        (SubOptions, "durable", r"^s has no option 'durable': only members of a group have it, as in sub\("),
        (SubOptions, "retain", r"^s has no option 'retain': it is one of pub\(\)$"),
        (SubOptions, "history", r"^s has no option 'history': it is one of pub\(\)$"),
        (SubOptions, "group_", r"^s has no option 'group_': did you mean 'group'\?$"),
        (SubOptions, "durabel", r"^s has no option 'durabel': did you mean 'durable'\?$"),
        (SubOptions, "zzz", "it has latest, .*, reliable, where, on_gap, group, durable$"),
        (GroupOptions, "reliable", r"^s has no option 'reliable': a group is always reliable, and .* without group="),
        (GroupOptions, "replay", r"^s has no option 'replay': only subscriptions without group= have it"),
        (GroupOptions, "on_gap", r"^s has no option 'on_gap': only subscriptions without group= have it"),
        (GroupOptions, "retain", r"^s has no option 'retain': it is one of pub\(\)$"),
        (PubOptions, "latest", r"^s has no option 'latest': it is one of sub\(\)$"),
        (PubOptions, "group", r"^s has no option 'group': it is one of sub\(\)$"),
        (PubOptions, "durable", r"^s has no option 'durable': it is one of sub\(\)$"),
        (PushOptions, "on_dead_leter", r"^s has no option 'on_dead_leter': did you mean 'on_dead_letter'\?$"),
    ],
)
def test_options_of_another_kind_of_socket(options: type[Any], given: str, why: str) -> None:
    with pytest.raises(UnknownOption, match=why):
        make_options(options, "s", {given: True})

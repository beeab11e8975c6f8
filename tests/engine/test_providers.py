"""Calls go to those who answer soonest, not to those who fail; retries have a limit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine.providers import (
    EJECT_S,
    FAILURES_TO_EJECT,
    MAX_EJECT_S,
    MAX_KEYS_REMEMBERED,
    SAMPLE,
    Latencies,
    Provider,
    Providers,
    RetryBudget,
)

BALANCES = ("fastest", "least_outstanding", "round_robin", "random")


def make_providers(names: str | Iterable[str], seed: int = 1) -> Providers:
    """Providers with these names, in their first life each; all alive and serving."""
    providers = Providers(random.Random(seed))
    for name in names:
        providers.update(f"{name}.1", name, serving=True, alive=True)
    return providers


def find(providers: Providers, name: str) -> Provider:
    return next(each for each in providers.everybody() if each.name == name)


def pick(providers: Providers, now: float = 0.0, balance: str = "fastest", key: str | None = None) -> Provider:
    provider = providers.pick(balance, now, key)
    assert provider is not None
    providers.check()
    return provider


def ask(providers: Providers, count: int, now: float = 0.0, balance: str = "fastest") -> Counter[str]:
    """Starts calls in one turn; how many went to whom."""
    shares: Counter[str] = Counter()
    for _ in range(count):
        provider = pick(providers, now, balance)
        providers.started(provider, now)
        shares[provider.name] += 1
    return shares


def answer(providers: Providers, provider: Provider, now: float, seconds: float, *, failed: bool = False) -> None:
    """One call to it from beginning to end."""
    providers.started(provider, now - seconds)
    providers.ended(provider, now, seconds, failed)


def fail(providers: Providers, name: str, now: float, times: int = FAILURES_TO_EJECT) -> None:
    for _ in range(times):
        answer(providers, find(providers, name), now, 0.001, failed=True)


def names_asked(providers: Providers, now: float, balance: str = "random") -> set[str]:
    """Who is asked at all."""
    return {pick(providers, now, balance).name for _ in range(200)}


# -- who there is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_nobody_is_asked_who_does_not_serve_or_is_not_alive(balance: str) -> None:
    providers = make_providers("ab")
    providers.update("a.1", "a", serving=False, alive=True)
    assert names_asked(providers, 0.0, balance) == {"b"}
    providers.update("b.1", "b", serving=True, alive=False)
    assert providers.pick(balance, 0.0) is None
    assert providers.listed() == []
    assert {each.name for each in providers.everybody()} == {"a", "b"}
    providers.update("a.1", "a", serving=True, alive=True)
    assert names_asked(providers, 0.0, balance) == {"a"}
    providers.remove("a.1")
    assert providers.pick(balance, 0.0, "key") is None
    providers.remove("a.1")


def test_a_list_that_was_handed_out_stays_as_it_is() -> None:
    providers = make_providers("abc")
    asked = []
    for provider in providers.listed():
        asked.append(provider.name)
        providers.remove(provider.key)
    assert asked == ["a", "b", "c"]


def test_a_call_may_end_after_its_provider_left() -> None:
    providers = make_providers("ab")
    gone = find(providers, "a")
    for _ in range(FAILURES_TO_EJECT):
        providers.started(gone, 0.0)
    providers.remove("a.1")
    providers.update("a.1", "a", serving=True, alive=True)
    for _ in range(FAILURES_TO_EJECT):
        providers.ended(gone, 1.0, 1.0, failed=True)
    assert gone.pending == 0
    assert names_asked(providers, 1.0) == {"a", "b"}, "what the old one did is not the new one's fault"


@pytest.mark.parametrize("balance", BALANCES)
@given(seed=st.integers(0, 1000))
def test_avoided_are_asked_only_if_there_is_nobody_else(balance: str, seed: int) -> None:
    providers = make_providers("abc", seed)
    for key in (None, "key"):
        chosen = providers.pick(balance, 0.0, key, {"a.1", "b.1"})
        assert chosen is not None and chosen.name == "c"
        assert providers.pick(balance, 0.0, key, {"a.1", "b.1", "c.1"}) is not None
    assert providers.has_other(0.0, {"a.1", "b.1"})
    assert not providers.has_other(0.0, {"a.1", "b.1", "c.1"})


# -- balances ------------------------------------------------------------------------------------------------


def test_fastest_prefers_the_faster() -> None:
    providers = make_providers("ab")
    answer(providers, find(providers, "a"), 1.0, 0.010)
    answer(providers, find(providers, "b"), 1.0, 0.100)
    assert {pick(providers, 1.0).name for _ in range(50)} == {"a"}


@given(seed=st.integers(0, 100))
def test_fastest_shares_a_burst_by_speed(seed: int) -> None:
    providers = make_providers("ab", seed)
    answer(providers, find(providers, "a"), 1.0, 0.001)
    answer(providers, find(providers, "b"), 1.0, 0.003)
    assert ask(providers, 400, now=1.0) == {"a": 300, "b": 100}


@given(seed=st.integers(0, 100))
def test_fastest_gives_an_unknown_one_a_single_call_until_it_has_answered(seed: int) -> None:
    providers = make_providers("ab", seed)
    answer(providers, find(providers, "a"), 1.0, 0.001)
    assert ask(providers, 200, now=1.0) == {"a": 199, "b": 1}
    providers.ended(find(providers, "b"), 1.0, 0.001, failed=False)
    assert ask(providers, 200, now=1.0)["b"] > 190, "it is as fast, and has nothing to do"


@given(seed=st.integers(0, 100))
def test_unknown_ones_share_evenly(seed: int) -> None:
    assert ask(make_providers("ab", seed), 100) == {"a": 50, "b": 50}


def test_fastest_spreads_over_hundreds() -> None:
    names = [f"n{number}" for number in range(300)]
    shares = ask(make_providers(names), 3000)
    assert len(shares) > 295
    assert max(shares.values()) <= 16, "two choices keep the fullest near the mean of 10"


def test_a_peak_counts_at_once_and_fades_with_answers() -> None:
    providers = make_providers("a")
    provider = find(providers, "a")
    answer(providers, provider, 1.0, 0.010)
    answer(providers, provider, 1.0, 2.0)
    assert provider.cost == 2.0
    answer(providers, provider, 11.0, 0.010)
    assert provider.cost == pytest.approx(0.010 + 1.990 / 2.718281828)
    answer(providers, provider, 111.0, 0.010)
    assert provider.cost == pytest.approx(0.010, rel=0.01)


def test_answers_of_one_turn_leave_the_peak() -> None:
    providers = make_providers("a")
    for seconds in (0.005, 0.001, 0.004):
        answer(providers, find(providers, "a"), 1.0, seconds)
    assert find(providers, "a").cost == 0.005


def test_an_answer_in_no_time_is_an_answer() -> None:
    providers = make_providers("ab")
    answer(providers, find(providers, "a"), 1.0, 0.0)
    assert ask(providers, 100, now=1.0) == {"a": 99, "b": 1}


def test_one_that_was_slow_gets_one_call_to_prove_itself() -> None:
    providers = make_providers("ab")
    slow = find(providers, "b")
    answer(providers, slow, 0.0, 10.0)
    answer(providers, find(providers, "a"), 0.0, 0.001)
    assert "b" not in ask(providers, 50, now=20.0)
    for _ in range(50):
        providers.ended(find(providers, "a"), 200.0, 0.001, failed=False)
    assert ask(providers, 50, now=200.0) == {"a": 49, "b": 1}, "and no more before it has answered"
    providers.ended(slow, 200.001, 0.001, failed=False)
    assert slow.cost == pytest.approx(0.001, rel=0.01)


def test_failing_fast_does_not_look_fast() -> None:
    providers = make_providers("ab")
    answer(providers, find(providers, "a"), 1.0, 0.010)
    answer(providers, find(providers, "b"), 1.0, 0.020)
    for now in range(2, 60):
        answer(providers, find(providers, "b"), float(now), 0.0001, failed=True)
        find(providers, "b").failures = 0  # this test is not about ejection
    assert find(providers, "b").cost == 0.020


def test_who_always_loses_against_a_hedge_is_known_to_be_slow() -> None:
    providers = make_providers("ab")
    slow = find(providers, "a")
    providers.started(slow, 1.0)
    providers.dropped(slow, 3.0, 2.0)
    assert slow.pending == 0
    assert slow.cost == 2.0
    providers.started(slow, 3.0)
    providers.dropped(slow)
    assert (slow.pending, slow.cost, slow.failures) == (0, 2.0, 0)


def test_a_timeout_is_blamed_with_its_time() -> None:
    providers = make_providers("ab")
    stuck = find(providers, "a")
    answer(providers, stuck, 1.0, 0.001)
    providers.started(stuck, 1.0)
    providers.blame(stuck, 6.0, 5.0)
    providers.dropped(stuck)
    assert (stuck.pending, stuck.cost, stuck.failures) == (0, 5.0, 1)


@given(count=st.integers(1, SAMPLE), calls=st.integers(0, 60), seed=st.integers(0, 100))
def test_least_outstanding_is_exact_for_a_few(count: int, calls: int, seed: int) -> None:
    providers = make_providers([f"n{number}" for number in range(count)], seed)
    ask(providers, calls, balance="least_outstanding")
    pending = [each.pending for each in providers.listed()]
    assert sum(pending) == calls
    assert max(pending) - min(pending) <= 1


def test_least_outstanding_breaks_ties_at_random() -> None:
    providers = make_providers("abcd")
    providers.started(find(providers, "b"), 0.0)
    counts = Counter(pick(providers, balance="least_outstanding").name for _ in range(3000))
    assert set(counts) == {"a", "c", "d"}
    assert max(counts.values()) < 1.2 * min(counts.values()), "nobody gets more for standing behind a busy one"


def test_least_outstanding_stays_level_over_hundreds() -> None:
    shares = ask(make_providers([f"n{number}" for number in range(300)]), 3000, balance="least_outstanding")
    assert len(shares) == 300
    assert max(shares.values()) - min(shares.values()) <= 4


@given(count=st.integers(1, 20), rounds=st.integers(1, 5))
def test_round_robin_gives_all_the_same(count: int, rounds: int) -> None:
    shares = ask(make_providers([f"n{number}" for number in range(count)]), count * rounds, balance="round_robin")
    assert set(shares.values()) == {rounds}
    assert len(shares) == count


def test_random_is_uniform() -> None:
    counts = Counter(pick(make, balance="random").name for make in [make_providers("abcd")] for _ in range(4000))
    assert set(counts) == set("abcd")
    assert max(counts.values()) < 1.2 * min(counts.values())


# -- keys ----------------------------------------------------------------------------------------------------

KEYS = [f"customer-{number}" for number in range(400)]


def keepers(providers: Providers, keys: Iterable[str] = KEYS, balance: str = "fastest") -> dict[str, str]:
    return {key: pick(providers, 0.0, balance, key).name for key in keys}


@pytest.mark.parametrize("balance", BALANCES)
def test_all_callers_agree_who_keeps_a_key(balance: str) -> None:
    assert keepers(make_providers("abcde", 1)) == keepers(make_providers("edcba", 2), balance=balance)


def test_keys_stay_where_they_are_however_busy_that_is() -> None:
    providers = make_providers("abc")
    before = keepers(providers)
    for _ in range(100):
        answer(providers, find(providers, "a"), 0.0, 5.0)
        providers.started(find(providers, "a"), 0.0)
    assert keepers(providers) == before


def test_keys_are_spread_evenly() -> None:
    counts = Counter(keepers(make_providers("abcd")).values())
    assert len(counts) == 4
    assert max(counts.values()) < 1.5 * min(counts.values())


@pytest.mark.parametrize("how", ["remove", "silent", "not serving", "avoided"])
def test_only_the_keys_of_one_that_leaves_move(how: str) -> None:
    providers = make_providers("abcde")
    before = keepers(providers)
    ways: dict[str, Callable[[], object]] = {
        "remove": lambda: providers.remove("c.1"),
        "silent": lambda: providers.update("c.1", "c", serving=True, alive=False),
        "not serving": lambda: providers.update("c.1", "c", serving=False, alive=True),
        "avoided": lambda: None,
    }
    ways[how]()
    after = {}
    for key in KEYS:
        provider = providers.pick("fastest", 0.0, key, {"c.1"} if how == "avoided" else ())
        assert provider is not None
        after[key] = provider.name
    assert "c" not in after.values()
    assert {key: name for key, name in after.items() if before[key] != "c"} == {
        key: name for key, name in before.items() if name != "c"
    }
    assert len({after[key] for key in KEYS if before[key] == "c"}) == 4, "its keys are spread over all others"


def test_keys_stay_with_one_that_is_ejected() -> None:
    """Another caller, which has not seen it fail, asks it all the same."""
    providers = make_providers("abcde")
    before = keepers(providers)
    fail(providers, "c", 0.0)
    assert all(pick(providers, 0.0).name != "c" for _ in range(50))
    assert keepers(providers) == before


def test_a_node_that_starts_again_gets_its_keys_back() -> None:
    providers = make_providers("abc")
    before = keepers(providers)
    providers.remove("b.1")
    keepers(providers)
    providers.update("other-id.7", "b", serving=True, alive=True)
    assert keepers(providers) == before


def test_nodes_that_share_a_name_share_its_keys() -> None:
    providers = make_providers("ab")
    before = keepers(providers)
    providers.update("twin.1", "b", serving=True, alive=True)
    assert keepers(providers) == before
    lives = Counter(pick(providers, 0.0, key=key).key for key in KEYS if before[key] == "b")
    assert set(lives) == {"b.1", "twin.1"}
    assert max(lives.values()) < 2 * min(lives.values())


def test_any_text_is_a_key_and_not_all_are_remembered() -> None:
    providers = make_providers("ab")
    assert pick(providers, key="").name in "ab"
    assert pick(providers, key="\ud800").name in "ab"
    for number in range(MAX_KEYS_REMEMBERED + 10):
        providers.pick("fastest", 0.0, str(number))
    assert len(providers._keepers) <= MAX_KEYS_REMEMBERED


# -- ejection ------------------------------------------------------------------------------------------------


def test_who_fails_several_times_in_a_row_is_out_for_a_while() -> None:
    providers = make_providers("abc")
    fail(providers, "a", 10.0, FAILURES_TO_EJECT - 1)
    assert names_asked(providers, 10.0) == {"a", "b", "c"}
    fail(providers, "a", 10.0, 1)
    assert names_asked(providers, 10.0) == {"b", "c"}
    assert {each.name for each in providers.listed()} == {"a", "b", "c"}, "a survey asks it nevertheless"
    assert names_asked(providers, 9.9 + EJECT_S) == {"b", "c"}
    assert names_asked(providers, 10.0 + EJECT_S) == {"a", "b", "c"}


def test_an_answer_begins_the_count_anew() -> None:
    providers = make_providers("ab")
    for now in range(50):
        fail(providers, "a", float(now), FAILURES_TO_EJECT - 1)
        answer(providers, find(providers, "a"), float(now), 0.001)
    assert names_asked(providers, 50.0) == {"a", "b"}


def test_each_time_is_longer_and_good_times_are_counted() -> None:
    providers = make_providers("ab")
    now = 0.0
    for times in (1, 2, 3):
        fail(providers, "a", now)
        now += EJECT_S * times
        assert names_asked(providers, now - 0.1) == {"b"}
        assert names_asked(providers, now) == {"a", "b"}
    now += 2 * EJECT_S  # went well: two of the three are forgiven
    fail(providers, "a", now)
    assert names_asked(providers, now + 2 * EJECT_S - 0.1) == {"b"}
    assert names_asked(providers, now + 2 * EJECT_S) == {"a", "b"}


def test_nobody_is_out_for_longer_than_five_minutes() -> None:
    providers = make_providers("ab")
    now = 0.0
    for _ in range(20):
        fail(providers, "a", now)
        now = find(providers, "a").out_until
    fail(providers, "a", now)
    assert find(providers, "a").out_until == now + MAX_EJECT_S


def test_who_fails_while_not_heard_of_is_not_ejected_beside_another() -> None:
    providers = make_providers("abc")
    providers.update("c.1", "c", serving=True, alive=False)
    fail(providers, "c", 0.0)
    fail(providers, "a", 0.0)
    providers.update("c.1", "c", serving=True, alive=True)
    assert names_asked(providers, 1.0) == {"b", "c"}


@pytest.mark.parametrize(("count", "out"), [(1, 0), (2, 1), (3, 1), (19, 1), (20, 2), (35, 3)])
def test_at_most_a_tenth_is_out_but_one_may_be_and_never_the_last(count: int, out: int) -> None:
    names = [f"n{number}" for number in range(count)]
    providers = make_providers(names)
    for name in names:
        fail(providers, name, 0.0)
    assert sum(each.out_until > 0.0 for each in providers.listed()) == out
    assert providers.pick("fastest", 0.0) is not None
    providers.check()


def test_who_had_to_stay_goes_when_another_is_back() -> None:
    providers = make_providers("abc")
    fail(providers, "a", 0.0)
    fail(providers, "b", 1.0)
    assert names_asked(providers, 1.0) == {"b", "c"}
    fail(providers, "b", EJECT_S + 1, 1)
    assert names_asked(providers, EJECT_S + 1) == {"a", "c"}


def test_the_last_one_is_asked_although_it_was_ejected() -> None:
    providers = make_providers("ab")
    fail(providers, "a", 0.0)
    providers.remove("b.1")
    assert names_asked(providers, 1.0) == {"a"}
    providers.update("c.1", "c", serving=True, alive=True)
    assert names_asked(providers, 1.0) == {"c"}


def test_what_an_ejected_one_still_answers_changes_nothing_about_it() -> None:
    providers = make_providers([f"n{number}" for number in range(30)])
    for name in ("n0", "n1"):
        fail(providers, name, 0.0)
    answer(providers, find(providers, "n0"), 1.0, 0.001)
    fail(providers, "n1", 1.0)
    assert not {"n0", "n1"} & names_asked(providers, EJECT_S - 0.1)
    for name in ("n0", "n1"):
        fail(providers, name, EJECT_S, FAILURES_TO_EJECT - 1)
        assert find(providers, name).out_until == EJECT_S, "it begins anew, and is not out for what it did before"


STEP = st.tuples(
    st.sampled_from(["update", "remove", "start", "end", "fail", "drop", "wait"]),
    st.integers(0, 11),
    st.booleans(),
    st.booleans(),
)


@given(steps=st.lists(STEP, max_size=120), seed=st.integers(0, 3), balance=st.sampled_from(BALANCES))
def test_whatever_happens_one_who_serves_is_asked(
    steps: list[tuple[str, int, bool, bool]], seed: int, balance: str
) -> None:
    providers = make_providers([f"n{number}" for number in range(12)], seed)
    under_way: list[Provider] = []
    now = 0.0
    for what, number, serving, alive in steps:
        if what == "update":
            providers.update(f"n{number}.1", f"n{number}", serving=serving, alive=alive)
        elif what == "remove":
            providers.remove(f"n{number}.1")
        elif what == "wait":
            now += number * 7
        elif what == "fail":
            for each in providers.listed()[number:][:1]:
                fail(providers, each.name, now)
        elif what == "end" and under_way:
            providers.ended(under_way.pop(number % len(under_way)), now, number / 10, failed=serving)
        elif what == "drop" and under_way:
            providers.dropped(under_way.pop(number % len(under_way)))
        chosen = providers.pick(balance, now, "key" if alive else None, {f"n{number}.1"} if serving else ())
        providers.check()
        listed = providers.listed()
        assert (chosen in listed) if listed else chosen is None
        usable = [each for each in listed if each.out_until <= now or alive]  # a key's keeper may be ejected
        assert not usable or chosen in usable
        if chosen is not None:
            providers.started(chosen, now)
            under_way.append(chosen)
    for provider in under_way:
        providers.ended(provider, now, 0.1, failed=False)
    assert all(each.pending == 0 for each in [*providers.everybody(), *under_way])


# -- limits of retries and hedges ----------------------------------------------------------------------------


def taken(budget: RetryBudget, now: float, tries: int = 10_000) -> int:
    return sum(budget.take(now) for _ in range(tries))


def test_without_traffic_there_are_ten_retries_a_second() -> None:
    budget = RetryBudget()
    assert taken(budget, 5.0) == 100
    assert taken(budget, 13.9) == 0
    assert taken(budget, 16.0) == 100


def test_with_traffic_a_fifth_more() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.on_request(0.0)
    assert taken(budget, 0.5) == 300


def test_old_traffic_does_not_count() -> None:
    budget = RetryBudget()
    for tenth in range(50):
        for _ in range(20):
            budget.on_request(tenth / 10)
    assert taken(budget, 1000.0) == 100


def test_a_service_that_is_down_gets_a_fifth_more_and_not_five_times() -> None:
    budget = RetryBudget(per_second=0)
    retries = 0
    for step in range(6000):
        now = step / 100
        budget.on_request(now)
        retries += taken(budget, now, 4)
    assert 1100 <= retries <= 1200


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.integers(0, 60)), max_size=60))
def test_no_nine_seconds_have_more_than_the_limit(steps: list[tuple[float, int, int]]) -> None:
    budget = RetryBudget(ratio=0.5, per_second=2)
    now = 0.0
    history: list[tuple[float, int, int]] = []
    for pause, requests, tries in steps:
        now += pause
        for _ in range(requests):
            budget.on_request(now)
        retries = taken(budget, now, tries)
        history.append((now, requests, retries))
        recent = sum(count for when, _, count in history if when > now - 9)
        paid = sum(count for when, count, _ in history if when > now - 11)
        assert not retries or recent <= 0.5 * paid + 20


def test_p95_is_unknown_at_first() -> None:
    latencies = Latencies()
    for _ in range(Latencies.FEWEST - 1):
        latencies.add(1.0)
    assert latencies.p95() is None
    latencies.add(1.0)
    assert latencies.p95() == 1.0


def test_p95_is_what_nineteen_of_twenty_kept() -> None:
    latencies = Latencies()
    values = [number / 1000 for number in range(1, 101)]
    random.Random(1).shuffle(values)
    for value in values:
        latencies.add(value)
    assert latencies.p95() == 0.095


def test_p95_follows_the_last_answers_and_is_worked_out_now_and_then() -> None:
    latencies = Latencies()
    for _ in range(Latencies.KEPT):
        latencies.add(1.0)
    assert latencies.p95() == 1.0
    for _ in range(Latencies.RENEW_EVERY - 1):
        latencies.add(9.0)
        assert latencies.p95() == 1.0
    latencies.add(9.0)
    assert latencies.p95() == 9.0
    for _ in range(Latencies.KEPT):
        latencies.add(2.0)
    assert latencies.p95() == 2.0

"""Who serves a service, and whom to ask next: balancing, ejection of those who fail, limits for retries and hedges.

One ``Providers`` a service, at the caller. ``update`` and ``remove`` say who there is, ``pick`` chooses, and every
``started`` is followed by one ``ended`` (an outcome came), ``raised`` (an error that is an answer), ``refused`` (there
is no room) or ``dropped`` (nobody waits for one any more).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection
from hashlib import blake2b
from heapq import heappop, heappush
from math import exp, inf

# Finagle's PeakEwma: what was seen this long ago counts 1/e.
DECAY_S = 10.0
# What an unknown provider costs while its first answers are awaited: more than any known one.
UNKNOWN_S = 1e6
# No answer is quicker; 0 stands for a provider that has not answered yet.
QUICKEST_S = 1e-6
# least_outstanding looks at so many, from a random place on: all of a small service, and a sample of a large one.
SAMPLE = 8

# Outlier ejection with Envoy's defaults, except that a failure is what the caller says it is.
FAILURES_TO_EJECT = 5
EJECT_S = 30.0
MAX_EJECT_S = 300.0
MAX_EJECTED_SHARE = 10  # one of so many may be out

MAX_KEYS_REMEMBERED = 10_000

MAX_HELD = 1000  # calls of a provider that failed too quickly, and count as open for a while

MAX_METHODS = 256  # of a service, whose times are kept

# What can be asked of a provider that is alive, also when it does not serve: they are about the provider itself.
BUILT_IN = ("ping", "info", "stats")


class Provider:
    """A peer that offers the service. ``key`` names this life of it, ``pending`` counts what it has to answer."""

    __slots__ = (
        "alive",
        "answered_at",
        "asked_at",
        "cost",
        "ejections",
        "failures",
        "held",
        "key",
        "name",
        "out_until",
        "pending",
        "seed",
        "serving",
        "suspect",
    )

    def __init__(self, key: str, name: str) -> None:
        self.key = key
        self.name = name
        self.seed = _seed(name)
        self.serving = False
        self.alive = False
        self.suspect = False  # not alive, and that may be for a moment only
        self.pending = 0
        self.cost = 0.0  # recent seconds an answer, as of answered_at; 0 until the first
        self.answered_at = 0.0
        self.asked_at = 0.0  # or answered, if that was later
        self.failures = 0  # in a row
        self.held: list[float] = []  # a heap: until when calls that failed quickly count as open
        self.ejections = 0
        self.out_until = -inf

    def is_called(self, peer: str) -> bool:
        """Whether ``peer=`` means this one: by its name, its node's id, or this life of it."""
        return peer in (self.name, self.key, self.key.partition(".")[0])

    def count_open(self, now: float) -> int:
        """Calls that it has to answer, or would have if it did not fail quicker than answers come."""
        held = self.held
        while held and held[0] <= now:
            heappop(held)
        return self.pending + len(held)

    def load(self, now: float) -> float:
        """Seconds that one more call would take, by what is known: ``cost * (open calls + 1)``.

        A cost fades while the provider is not asked, so that one that was slow gets a call to prove itself. Asking it
        brings the whole cost back: it is one call, and not all those that begin before its answer is there.
        """
        if not self.cost:
            return UNKNOWN_S + self.pending if self.pending else 0.0
        calls = self.count_open(now) if self.held else self.pending
        return self.cost * (calls + 1) * exp((self.asked_at - now) / DECAY_S)

    def observe(self, now: float, seconds: float) -> None:
        """An answer took so long: a peak counts at once, lower values as time passes."""
        if seconds >= self.cost:
            self.cost = max(seconds, QUICKEST_S)
        elif now > self.answered_at:
            self.cost = max(seconds + (self.cost - seconds) * exp((self.answered_at - now) / DECAY_S), QUICKEST_S)
        self.answered_at = self.asked_at = now

    def observe_at_least(self, now: float, seconds: float) -> None:
        """There was no answer within so many seconds, or only a failure: nothing that makes it look faster."""
        if seconds > self.cost:
            self.observe(now, seconds)


class Providers:
    """All who offer one service, as one caller sees them."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._by_key: dict[str, Provider] = {}
        self._listed: list[Provider] | None = []
        self._usable: list[Provider] = []
        self._sort_at = inf  # when _usable is to be made anew: somebody comes back, or (-inf) something changed
        self._turns: deque[Provider] = deque()  # those of _usable; whose turn in round_robin was longest ago is first
        self._there: list[Provider] = []  # who serves, suspect or not
        self._keepers: dict[str, Provider] = {}  # of keys, among _there

    # -- who there is ----------------------------------------------------------------------------------------

    def update(self, key: str, name: str, *, serving: bool, alive: bool, suspect: bool = False) -> bool:
        """A peer offers the service, serves it now or not, and can be reached, or perhaps soon again (``suspect``).

        Says whether that is news.
        """
        provider = self._by_key.get(key)
        if provider is None:
            provider = self._by_key[key] = Provider(key, name)
        elif provider.serving == serving and provider.alive == alive and provider.suspect == suspect:
            return False
        provider.serving = serving
        provider.alive = alive
        provider.suspect = suspect
        self._changed()
        return True

    def remove(self, key: str) -> bool:
        """It is gone, or offers this service no longer; says whether it did. What it has to answer may still end."""
        if self._by_key.pop(key, None) is None:
            return False
        self._changed()
        return True

    def listed(self) -> list[Provider]:
        """Who is alive and serves, whether ejected or not. A list that never changes; change it not."""
        if self._listed is None:
            self._listed = [each for each in self._by_key.values() if each.serving and each.alive]
        return self._listed

    def everybody(self) -> list[Provider]:
        """All who offer it, also those who are not serving or not heard of just now."""
        return list(self._by_key.values())

    def there(self, *, anyway: bool = False) -> list[Provider]:
        """Who serves and is alive or suspect; ``anyway`` also who does not serve."""
        everybody = self._by_key.values()
        return [each for each in everybody if (each.alive or each.suspect) and (anyway or each.serving)]

    def others(self, without: Collection[str]) -> list[Provider]:
        """Who serves, without those who have these keys; the suspect ones only if there is nobody else."""
        there = [each for each in self.there() if each.key not in without]
        return [each for each in there if each.alive] or there

    def find(self, peer: str, *, anyway: bool = False) -> Provider | None:
        """The one that ``peer=`` means, of those who are ``there``; of several rather one that is alive."""
        found = None
        for each in self._by_key.values():
            if (each.alive or (each.suspect and found is None)) and (anyway or each.serving) and each.is_called(peer):
                found = each
                if each.alive:
                    break
        return found

    def explain_nobody(self, service: str, peer: str | None, awaited: Provider | None = None) -> str:
        """Why nobody can be asked, or not this peer; ``awaited`` was suspect, and the request waited for it."""
        everybody = self.everybody()
        if awaited is not None and awaited.key not in self._by_key:
            lost = f"{awaited.name!r} was suspect, and is gone; it never had this request"
            if peer is None:
                if everybody:
                    return f"{lost}, and nobody else is serving {service!r}, or can be reached yet"
                return f"{lost}, and nobody else offers {service!r}"
            return f"{lost}; {_name_all(everybody, service)}"
        if peer is not None:
            if any(each.is_called(peer) for each in everybody):
                return f"{peer!r} offers {service!r}, and says that it is not serving, or cannot be reached yet"
            others = _name_all(everybody, service)
            return f"no node known as {peer!r} offers {service!r}; {others}: give peer= a node's name or id"
        if everybody:
            told = "say that they are not serving, or cannot be reached yet"
            return f"all {len(everybody)} nodes that offer {service!r} {told}"
        return (
            f"nobody offers {service!r}: start a node with router({service!r}), "
            f"or wait for one with wait_for(router={service!r})"
        )

    def _changed(self) -> None:
        self._listed = None
        self._sort_at = -inf

    def _sort(self, now: float) -> None:
        listed = self.listed()
        self._there = self.there()
        self._usable = [each for each in listed if each.out_until <= now] or listed or self._there
        self._sort_at = min((each.out_until for each in listed if each.out_until > now), default=inf)
        self._keepers.clear()
        usable, had_turns = set(self._usable), set(self._turns)
        stay = [each for each in self._turns if each in usable]
        self._turns = deque([*(each for each in self._usable if each not in had_turns), *stay])

    # -- whom to ask -----------------------------------------------------------------------------------------

    def pick(
        self,
        balance: str,
        now: float,
        key: str | None = None,
        avoid: Collection[str] = (),
        without: Collection[str] = (),
    ) -> Provider | None:
        """Who gets the next call; None if nobody serves. If it is suspect, the call has to wait for what becomes of it.

        Parameters
        ----------
        balance:
            ``"fastest"``, ``"least_outstanding"``, ``"round_robin"`` or ``"random"``.
        key:
            Calls of one key go to one provider as long as it serves, whatever the balance. All callers agree on
            which, so it keeps them also when it is ejected or suspect here; if it leaves, its keys are spread over the
            others, and no other key moves.
        avoid:
            Keys of providers that are asked only if there is nobody else, not even one that is ejected.
        without:
            Keys of providers that are not asked; rather those that are ejected.
        """
        if now >= self._sort_at:
            self._sort(now)
        usable = self._usable if key is None else self._there
        if without:
            usable = [each for each in usable if each.key not in without] or self.others(without)
        if avoid:
            ejected = (each for each in self.listed() if each.key not in avoid and each.key not in without)
            usable = [each for each in usable if each.key not in avoid] or list(ejected) or usable
        if len(usable) < 2:
            return usable[0] if usable else None
        if key is not None:
            return self._keeper(key, usable)
        if balance == "fastest":
            return self._fastest(usable, now)
        if balance == "least_outstanding":
            return self._least_outstanding(usable, now)
        if balance == "round_robin" and not avoid:  # further attempts go to any other one, and are nobody's turn
            for place, provider in enumerate(self._turns):
                if provider.key not in without:
                    del self._turns[place]
                    self._turns.append(provider)
                    return provider
        return usable[int(self._generator.random() * len(usable))]

    def has_other(self, now: float, avoid: Collection[str]) -> bool:
        """Whether there is somebody who is not to be avoided, and not ejected; a hedge needs one."""
        if now >= self._sort_at:
            self._sort(now)
        return any(each.alive and each.key not in avoid for each in self._usable)

    def _fastest(self, usable: list[Provider], now: float) -> Provider:
        """The better of two at random: nearly as good as the best of all, and callers don't flock (Mitzenmacher)."""
        others = len(usable) - 1
        one, two = divmod(int(self._generator.random() * (others + 1) * others), others)
        first, second = usable[one], usable[two if two < one else two + 1]
        return first if first.load(now) <= second.load(now) else second

    def _least_outstanding(self, usable: list[Provider], now: float) -> Provider:
        chance = self._generator.random
        size = len(usable)
        start = int(chance() * size)
        best = usable[start]
        fewest = best.count_open(now) if best.held else best.pending
        ties = 1
        for position in range(start + 1, start + min(size, SAMPLE)):
            each = usable[position % size]
            calls = each.count_open(now) if each.held else each.pending
            if calls < fewest:
                best, fewest, ties = each, calls, 1
            elif calls == fewest:
                ties += 1
                if chance() * ties < 1:  # every one of the equals is as likely
                    best = each
        return best

    def _keeper(self, key: str, usable: list[Provider]) -> Provider:
        if usable is not self._there:
            return rendezvous(key, usable)
        keeper = self._keepers.get(key)
        if keeper is None:
            if len(self._keepers) >= MAX_KEYS_REMEMBERED:
                self._keepers.clear()
            keeper = self._keepers[key] = rendezvous(key, usable)
        return keeper

    # -- how it went -----------------------------------------------------------------------------------------

    def started(self, provider: Provider, now: float) -> None:
        """A call goes to it."""
        provider.pending += 1
        provider.asked_at = now

    def ended(self, provider: Provider, now: float, seconds: float, failed: bool) -> None:
        """A call's outcome came after so many seconds. ``failed`` is what speaks against the provider."""
        provider.pending -= 1
        if failed:
            self.blame(provider, now, seconds)
        else:
            provider.failures = 0
            provider.observe(now, seconds)

    def raised(self, provider: Provider, now: float, seconds: float, usual: float | None) -> None:
        """The outcome was an error that is an answer, after so many seconds; nothing speaks against who gave it."""
        provider.failures = 0
        self.refused(provider, now, seconds, usual)

    def refused(self, provider: Provider, now: float, seconds: float, usual: float | None) -> None:
        """A call brought an error after so many seconds, which says nothing about how well the provider is.

        Failing at once must not attract calls: it makes nobody faster, and the call counts as open until a result
        would have come, ``usual`` seconds after it was sent (None if that is not known, or says nothing).
        """
        provider.pending -= 1
        if provider.cost:
            provider.observe_at_least(now, seconds)
        elif usual is not None:  # it has given no result so far
            provider.observe(now, max(seconds, usual))
        if usual is not None and seconds < usual and len(provider.held) < MAX_HELD:
            heappush(provider.held, now - seconds + usual)

    def dropped(self, provider: Provider, now: float = 0.0, seconds: float = 0.0) -> None:
        """Nobody waits for a call any more, or its end says nothing about the provider but that it took ``seconds``.

        A hedge's loser must be told with its time: a provider that always loses would look like an unknown one.
        """
        provider.pending -= 1
        provider.observe_at_least(now, seconds)

    def blame(self, provider: Provider, now: float, seconds: float = 0.0) -> None:
        """A call failed by its fault. Who fails several times in a row gets no calls for a while."""
        provider.observe_at_least(now, seconds)
        if provider.out_until > now:
            return
        provider.failures += 1
        if provider.failures >= FAILURES_TO_EJECT:
            self._eject(provider, now)

    def _eject(self, provider: Provider, now: float) -> None:
        listed = self.listed()
        out = sum(each.out_until > now for each in listed)
        if provider not in listed or out >= max(1, len(listed) // MAX_EJECTED_SHARE) or len(listed) - out < 2:
            return  # stays a candidate: its next failure asks again
        if provider.ejections:  # one of them is forgiven for each such time that went well
            provider.ejections = max(0, provider.ejections - int((now - provider.out_until) / EJECT_S))
        provider.ejections += 1
        provider.out_until = now + min(EJECT_S * provider.ejections, MAX_EJECT_S)
        provider.failures = 0
        self._sort_at = -inf

    def check(self) -> None:
        """Raises AssertionError where this contradicts itself."""
        for key, provider in self._by_key.items():
            assert provider.key == key
            assert provider.pending >= 0, f"{provider.name}: {provider.pending} calls pending"
            assert provider.cost >= 0, f"{provider.name}: a cost of {provider.cost}"
            assert not (provider.alive and provider.suspect), f"{provider.name} is alive, and suspect"
        if self._sort_at > -inf:
            assert bool(self._usable) == bool(self.there()), "somebody serves, and nobody is asked"
            for each in self._usable:
                assert self._by_key.get(each.key) is each, f"{each.name} is gone, and is asked"
            assert len(self._turns) == len(self._usable), "not everybody who is asked has a turn"
            assert set(self._turns) == set(self._usable), "somebody has a turn who is not asked"


def _name_all(providers: list[Provider], service: str) -> str:
    """Who offers a service, as a sentence's part.

    >>> _name_all([Provider("1", "b"), Provider("2", "a")], "math")
    "'a' and 'b' offer 'math'"
    """
    *names, last = sorted({repr(each.name) for each in providers}) or ["nobody"]
    return f"{', '.join(names)} and {last} offer {service!r}" if names else f"{last} offers {service!r}"


def _seed(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=32).digest()


def rendezvous(key: str, providers: list[Provider]) -> Provider:
    """The provider that keeps a key: the one with the highest hash of both (Thaler & Ravishankar 1998).

    Names count, not ids, so that a node that starts again with its name gets its keys back. Nodes that share a name
    share its keys.
    """
    data = key.encode("utf-8", "surrogatepass")
    ranks = [blake2b(data, digest_size=16, key=each.seed).digest() for each in providers]
    highest = max(ranks)
    if ranks.count(highest) == 1:
        return providers[ranks.index(highest)]
    namesakes = [each for each, rank in zip(providers, ranks, strict=True) if rank == highest]
    return max(namesakes, key=lambda each: blake2b(data, digest_size=16, key=_seed(each.key)).digest())


class RetryBudget:
    """How many retries and hedges there may be: a share of the requests, and a few a second besides.

    Counted over the last ten seconds. When a service fails, the load on it grows by the share and not by the number of
    attempts. Finagle's RetryBudget with its defaults.
    """

    SLOTS = 10
    SLOT_S = 1.0

    def __init__(self, ratio: float = 0.2, per_second: float = 10) -> None:
        self._ratio = ratio
        self._reserve = per_second * self.SLOTS * self.SLOT_S
        self._past: deque[tuple[float, int, int]] = deque()  # (slot's end, requests, taken), the latest last
        self._slot_end = -inf
        self._requests = self._taken = 0  # in the present slot
        self._past_requests = self._past_taken = 0

    def on_request(self, now: float) -> None:
        """A request was made (not a retry)."""
        if now >= self._slot_end:
            self._turn(now)
        self._requests += 1

    def take(self, now: float) -> bool:
        """Whether there may be one more attempt now; it counts as made."""
        if now >= self._slot_end:
            self._turn(now)
        allowed = self._ratio * (self._past_requests + self._requests) + self._reserve
        if self._past_taken + self._taken + 1 > allowed:
            return False
        self._taken += 1
        return True

    def _turn(self, now: float) -> None:
        """Begins a slot, and forgets those that ended too long ago."""
        if self._requests or self._taken:
            self._past.append((self._slot_end, self._requests, self._taken))
            self._past_requests += self._requests
            self._past_taken += self._taken
        self._requests = self._taken = 0
        self._slot_end = now + self.SLOT_S
        while self._past and self._past[0][0] <= now - (self.SLOTS - 1) * self.SLOT_S:
            _, requests, taken = self._past.popleft()
            self._past_requests -= requests
            self._past_taken -= taken


class Latencies:
    """How long the last results of a method took: for ``hedge_after="p95"``, whose fault a deadline is, quick errors.

    >>> seen = Latencies()
    >>> for hundredth in range(1, 21):
    ...     seen.add(hundredth / 100)
    >>> seen.p95()
    0.19
    """

    KEPT = 128
    FEWEST = 20
    RENEW_EVERY = 32

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=self.KEPT)
        self._unseen = self.RENEW_EVERY - self.FEWEST  # added since they were worked out; so the first is not late
        self._p95: float | None = None
        self._median: float | None = None

    def add(self, seconds: float) -> None:
        """An answer took so long."""
        self._last.append(seconds)
        self._unseen += 1

    def p95(self) -> float | None:
        """Seconds within which 19 of 20 answers came; None while there were fewer than 20."""
        self._renew()
        return self._p95

    def median(self) -> float | None:
        """Seconds within which half of the answers came, from the first one on; None before."""
        self._renew()
        if self._median is None and self._last:
            return sorted(self._last)[(len(self._last) - 1) // 2]
        return self._median

    def _renew(self) -> None:
        if self._unseen >= self.RENEW_EVERY:
            self._unseen = 0
            ordered = sorted(self._last)
            self._p95 = ordered[-(-len(ordered) * 95 // 100) - 1]  # the nearest rank
            self._median = ordered[(len(ordered) - 1) // 2]


class Clients:
    """What this node knows of one service as its client."""

    def __init__(self, generator: random.Random) -> None:
        self.providers = Providers(generator)
        self.budget = RetryBudget()
        self.latencies: dict[str, Latencies] = {}  # by method

    def add_latency(self, method: str, seconds: float) -> None:
        """An answer of a method took so long."""
        latencies = self.latencies.get(method)
        if latencies is None:
            if len(self.latencies) >= MAX_METHODS:
                del self.latencies[next(iter(self.latencies))]  # the oldest
            latencies = self.latencies[method] = Latencies()
        latencies.add(seconds)

    def p95(self, method: str) -> float | None:
        """Seconds within which 19 of 20 answers of a method came; None if that is not known."""
        latencies = self.latencies.get(method)
        return None if latencies is None else latencies.p95()

    def median(self, method: str) -> float | None:
        """Seconds within which half of the answers of a method came; None if that is not known."""
        latencies = self.latencies.get(method)
        return None if latencies is None else latencies.median()

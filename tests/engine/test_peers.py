"""Who is there: introductions, proofs, and how each way to be gone is told apart."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshmsg.engine.peers import (
    FORGET_AFTER_S,
    HELLO_TIMEOUT_S,
    REDIAL_BROKEN_S,
    REDIAL_MAX_S,
    SELF_LINK,
    Identity,
    Peers,
)
from meshmsg.options import LivenessOptions
from meshmsg.wire.frames import Hello

pytestmark = pytest.mark.guarantee("G1", "G11")


class Desk:
    """The peers of node "me", and what the world says to it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.peers = Peers(Identity("me", 1, "me", "mesh", ("tcp://me:1",)), LivenessOptions(), random.Random(1))

    def found(self, node_id: str | None = "you", *endpoints: str) -> None:
        self.peers.discovered(node_id, endpoints or ("tcp://you:1",), self.now)
        self.peers.check()

    def hello(self, route: bytes = b"r1", **fields: Any) -> None:
        told = {
            **Hello("you", 1, "you", "mesh", ("tcp://you:1",), {}, 1, 1, None, None)._asdict(),
            **fields,
        }
        self.peers.on_hello(route, Hello(**told), self.now)
        self.peers.check()

    def link(self, link: int, news: Any) -> None:
        self.peers.on_link(link, news, self.now)
        self.peers.check()

    def at(self, now: float) -> None:
        self.now = now
        self.peers.tick(now)
        self.peers.check()

    def dials(self) -> list[tuple[int, str]]:
        dials, self.peers.dial = self.peers.dial, []
        return [(dial.link, dial.endpoint) for dial in dials]

    def downs(self) -> list[str]:
        downs, self.peers.downs = self.peers.downs, []
        return [why for _, why in downs]

    def notes(self) -> list[str]:
        notes, self.peers.notes = self.peers.notes, []
        return [note[0] for note in notes]

    def told(self) -> list[tuple[int, int | None]]:
        """Links that are to carry a HELLO, and what each of them answers."""
        hello, self.peers.hello = self.peers.hello, []
        return [(link, told.answers) for link, told in hello]

    def connect(self) -> None:
        """Both directions are proven: our link is number 1."""
        self.found()
        self.link(1, "up")
        self.hello(answers=1)
        assert self.peers.by_id["you"].state == "alive"
        self.dials()
        self.peers.hang_up.clear()


# --- becoming a peer ----------------------------------------------------------------------------------------


def test_what_is_found_is_dialled_and_introduced_to() -> None:
    desk = Desk()
    desk.found()
    assert desk.dials() == [(1, "tcp://you:1")]
    ((link, hello),) = desk.peers.hello
    assert (link, hello.token, hello.expects, hello.answers) == (1, 1, "you", None)


def test_a_hello_alone_proves_only_one_direction() -> None:
    desk = Desk()
    desk.hello()
    assert desk.peers.by_id["you"].state == "new" and not desk.peers.ups
    assert desk.dials() == [(1, "tcp://you:1")]
    assert desk.peers.hello[-1][1].answers == 1  # of its link 1
    assert desk.peers.listed(0.0) == []


def test_an_answer_to_our_link_proves_both() -> None:
    desk = Desk()
    desk.connect()
    assert [(peer.name, new) for peer, new in desk.peers.ups] == [("you", True)]


def test_several_addresses_are_dialled_side_by_side_and_one_is_kept() -> None:
    desk = Desk()
    desk.found("you", "tcp://one:1", "tcp://two:1")
    assert [link for link, _ in desk.dials()] == [1, 2]
    desk.hello(answers=2)
    assert desk.peers.hang_up == [1] and desk.peers.by_id["you"].link == 2
    desk.hello(answers=1)  # too late
    assert desk.peers.by_id["you"].link == 2


def test_nobody_can_answer_for_somebody_else() -> None:
    desk = Desk()
    desk.found()
    desk.hello(b"liar", node_id="mallory", answers=1)
    assert desk.peers.by_id["mallory"].link is None


def test_an_answer_to_a_link_that_is_over_is_ignored() -> None:
    desk = Desk()
    desk.found()
    desk.link(1, "failed")
    desk.hello(answers=1)
    assert desk.peers.by_id["you"].link is None


def test_another_mesh_and_another_addressee_are_refused() -> None:
    desk = Desk()
    desk.hello(mesh="other")
    desk.hello(expects="her")
    assert list(desk.peers.by_id) == ["me"]
    assert desk.notes() == ["mesh.other", "node.misdirected"]


def test_myself_through_a_seed_is_forgotten() -> None:
    desk = Desk()
    desk.found(None, "tcp://me:1")
    ((_, hello),) = desk.peers.hello
    desk.peers.on_hello(b"r", hello, 0.0)
    desk.peers.check()
    assert not desk.peers.prospects and desk.peers.hang_up == [1]


def test_another_process_with_my_id_is_reported() -> None:
    desk = Desk()
    desk.hello(node_id="me", incarnation=99)
    assert desk.notes() == ["node.id_clash"]


def test_two_nodes_of_one_name_are_two_peers() -> None:
    desk = Desk()
    desk.hello(b"r1", node_id="you", name="twin")
    desk.hello(b"r2", node_id="her", name="twin", endpoints=("tcp://her:1",))
    assert {"you", "her"} < set(desk.peers.by_id)
    assert "name.shared" in desk.notes()


def test_a_node_without_an_address_is_not_dialled_in_a_circle() -> None:
    desk = Desk()
    desk.hello(endpoints=())
    assert desk.dials() == []
    assert min(desk.peers.wake_at()) > desk.now


def test_what_it_says_itself_is_dialled_beside_an_old_announcement() -> None:
    desk = Desk()
    desk.found("you", "tcp://old:1")
    desk.link(1, "failed")
    desk.dials()
    desk.hello(endpoints=("tcp://new:1",))
    assert {endpoint for _, endpoint in desk.dials()} == {"tcp://old:1", "tcp://new:1"}


# --- dialling again -----------------------------------------------------------------------------------------


def test_pauses_between_dials_grow_to_a_limit() -> None:
    desk = Desk()
    desk.found()
    last, pauses = 0.0, []
    for _ in range(12):
        ((link, _),) = desk.dials()
        desk.link(link, "failed")
        desk.at(min(desk.peers.wake_at()))
        pauses.append(desk.now - last)
        last = desk.now
    assert pauses[0] < 0.5 and max(pauses) <= 1.25 * REDIAL_MAX_S
    assert pauses[-1] > 0.7 * REDIAL_MAX_S


def test_a_link_that_brings_no_answer_is_tried_again() -> None:
    desk = Desk()
    desk.found()
    desk.link(1, "up")
    desk.at(HELLO_TIMEOUT_S)
    assert desk.peers.hang_up == [1]
    desk.at(min(desk.peers.wake_at()))
    assert len(desk.dials()) == 2


def test_who_is_announced_no_more_is_forgotten_after_a_while() -> None:
    desk = Desk()
    desk.found()
    desk.link(1, "failed")
    desk.peers.withdrawn("you")
    desk.at(FORGET_AFTER_S - 1)
    assert desk.peers.prospects
    desk.at(FORGET_AFTER_S + 1)
    assert not desk.peers.prospects


# --- answers that are lost ----------------------------------------------------------------------------------


def test_an_answer_that_went_down_with_its_link_is_said_over_the_next_one() -> None:
    desk = Desk()
    desk.connect()
    desk.hello(b"r2", token=9)  # its link broke, and ours did too: nobody knows yet
    assert desk.told()[-1] == (1, 9)
    desk.link(1, "down")
    ((second, _),) = desk.dials()
    desk.link(second, "failed")
    desk.at(desk.now + 2 * REDIAL_BROKEN_S)
    ((third, _),) = desk.dials()
    assert desk.told() == [(second, None), (third, None)], "who is there now is not known yet"
    desk.hello(b"r2", token=9, answers=third)
    assert desk.told() == [(third, 9)]
    desk.hello(b"r2", token=9, answers=third)
    assert desk.told() == []


def test_an_answer_that_the_proven_link_has_carried_is_not_said_twice() -> None:
    desk = Desk()
    desk.hello(token=7)
    assert desk.told() == [(1, None), (1, 7)]
    desk.hello(token=7, answers=1)
    assert desk.told() == []


def test_an_answer_over_addresses_that_lead_nowhere_is_said_where_a_seed_leads() -> None:
    desk = Desk()
    desk.found(None, "tcp://gate:1")
    desk.hello(token=7)  # its first word; where it says that it is, nobody can reach it
    assert desk.told() == [(1, None), (2, None), (2, 7)]
    desk.hello(token=7, answers=1)
    assert desk.told() == [(1, 7)]


def test_an_answer_is_for_one_life_of_a_node() -> None:
    """Link numbers begin anew with each life: a word for the former one would prove a link that nobody has seen."""
    desk = Desk()
    desk.connect()
    desk.link(1, "down")
    assert desk.told()[-1] == (2, None)
    desk.hello(b"r2", incarnation=2, token=1, answers=2)
    assert desk.told()[-1] == (3, 1)


def test_an_answer_that_its_link_had_no_room_for_is_said_again() -> None:
    desk = Desk()
    desk.connect()
    desk.hello(b"r2", token=9)
    desk.told()
    desk.peers.introduce_again([1, 99])
    assert desk.told() == [(1, 9)]


# --- losing a peer ------------------------------------------------------------------------------------------


def test_a_crash_is_a_broken_link_and_a_refused_dial() -> None:
    desk = Desk()
    desk.connect()
    desk.link(1, "down")
    assert desk.notes() == ["peer.suspect"] and desk.downs() == []
    ((link, _),) = desk.dials()
    desk.link(link, "refused")
    assert desk.downs() == ["crashed"] and "you" not in desk.peers.by_id


def test_a_dial_that_leads_nowhere_is_no_crash() -> None:
    desk = Desk()
    desk.connect()
    desk.link(1, "down")
    ((link, _),) = desk.dials()
    desk.link(link, "failed")
    assert desk.downs() == [] and "you" in desk.peers.by_id


def test_a_process_that_lost_its_connections_before_its_port_is_dialled_again_at_once() -> None:
    desk = Desk()
    desk.connect()
    desk.link(1, "down")
    ((link, _),) = desk.dials()
    desk.link(link, "failed")
    desk.at(desk.now + 2 * REDIAL_BROKEN_S)
    ((link, _),) = desk.dials()
    desk.link(link, "refused")
    assert desk.downs() == ["crashed"]


def test_a_broken_link_that_is_mended_is_a_peer_again() -> None:
    desk = Desk()
    desk.connect()
    desk.peers.ups.clear()
    desk.link(1, "down")
    ((link, _),) = desk.dials()
    desk.hello(b"r2", token=9, answers=link)
    assert [(peer.name, new) for peer, new in desk.peers.ups] == [("you", False)]
    assert desk.peers.by_id["you"].state == "alive"


def test_a_frozen_or_cut_peer_is_gone_two_seconds_after_its_last_sign() -> None:
    desk = Desk()
    desk.connect()
    desk.now = 1.6
    desk.link(1, "down")  # heartbeats failed
    desk.at(1.9)
    assert desk.downs() == []
    assert min(desk.peers.wake_at()) == 2.0
    desk.at(2.0)
    assert desk.downs() == ["silent"]


def test_a_link_that_broke_late_gets_time_for_another_one() -> None:
    desk = Desk()
    desk.connect()
    desk.now = 5.0
    desk.link(1, "down")
    desk.at(5.1)
    assert desk.downs() == []
    desk.at(5.4)
    assert desk.downs() == ["silent"]


def test_a_process_that_lives_without_progress_is_suspect_first_and_stalled_much_later() -> None:
    desk = Desk()
    desk.connect()
    desk.at(1.4)
    assert desk.notes() == []
    assert min(desk.peers.wake_at()) == 1.5
    desk.at(1.5)
    assert desk.notes() == ["peer.suspect"] and desk.peers.by_id["you"].state == "suspect"
    desk.at(29.9)
    assert desk.downs() == []
    desk.at(30.0)
    assert desk.downs() == ["stalled"]


def test_who_introduced_itself_and_was_never_reached_is_given_up_when_it_falls_silent() -> None:
    desk = Desk()
    desk.found()
    desk.hello()
    assert desk.peers.by_id["you"].state == "new"
    for second in range(1, 4):
        desk.at(float(second))
    desk.peers.on_heard(desk.peers.by_id["you"], desk.now)
    desk.at(7.9)
    assert "you" in desk.peers.by_id
    assert min(desk.peers.wake_at()) <= 8.0
    desk.at(8.0)
    assert "you" not in desk.peers.by_id and desk.downs() == ["silent"]


def test_a_suspect_that_speaks_is_alive_again() -> None:
    desk = Desk()
    desk.connect()
    desk.peers.ups.clear()
    desk.at(3.0)
    desk.peers.on_heard(desk.peers.by_id["you"], 3.1)
    assert desk.peers.by_id["you"].state == "alive" and len(desk.peers.ups) == 1


def test_silence_while_this_node_itself_slept_is_forgiven() -> None:
    desk = Desk()
    desk.connect()
    desk.now = 60.0
    desk.peers.forgive(59.5, 60.0)
    desk.at(60.0)
    assert desk.downs() == [] and desk.notes() == []
    assert desk.peers.by_id["me"].heard_at == float("inf")


def test_a_goodbye_is_heard_at_once_and_nobody_dials_again() -> None:
    desk = Desk()
    desk.connect()
    you = desk.peers.by_id["you"]
    desk.peers.on_bye(you, "left", 1.0)
    assert desk.downs() == ["left"]
    desk.at(20.0)
    assert desk.dials() == []
    assert desk.peers.name_of(you.key) == you.name and desk.peers.name_of("else.1") == "else"


def test_a_restart_ends_the_life_before() -> None:
    desk = Desk()
    desk.connect()
    desk.hello(b"r2", incarnation=2, token=1)
    assert desk.downs() == ["restarted"]
    assert desk.peers.by_id["you"].incarnation == 2
    desk.hello(b"r1", incarnation=1)  # a late word
    assert desk.peers.by_id["you"].incarnation == 2 and desk.downs() == []
    assert b"r1" not in desk.peers.by_route


def test_after_it_is_gone_its_routes_say_nothing() -> None:
    desk = Desk()
    desk.connect()
    desk.peers.expel(desk.peers.by_id["you"], "protocol error", 0.0)
    assert list(desk.peers.by_route.values()) == [desk.peers.by_id["me"]]


def test_a_consumer_that_takes_less_than_this_node_sends_is_named() -> None:
    desk = Desk()
    desk.peers.identity.max_body_bytes = 2000
    desk.connect()
    assert [hello.max_body_bytes for _, hello in desk.peers.hello][-1] == 2000
    for limit, is_named in ((None, False), (2000, False), (1024, True)):
        desk.hello(answers=1, offers={"pull": {"q": {}}}, max_body_bytes=limit)
        assert ("up to 2000 bytes, 'you' takes 1024" in desk.peers.describe_consumers("q")) is is_named


def test_this_node_is_a_peer_of_its_own_that_never_goes() -> None:
    desk = Desk()
    desk.at(10_000.0)
    assert desk.downs() == [] and list(desk.peers.linked()) == [(SELF_LINK, desk.peers.by_id["me"])]
    assert desk.peers.listed(10_000.0) == []


def test_wake_at_never_lies_in_the_past_after_a_tick() -> None:
    """A timer that rings for nothing would ring again at once."""
    desk = Desk()
    desk.connect()
    desk.found("her", "tcp://her:1")
    for step in range(2000):
        desk.at(step * 0.0317)
        for link, _ in desk.dials():
            if link % 3:
                desk.link(link, "failed")
        assert min(desk.peers.wake_at(), default=desk.now + 1) > desk.now

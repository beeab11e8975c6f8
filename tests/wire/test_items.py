"""The items of a ``TALK``: each is read as it was said, and everything else is refused.

Every field with everything that it must not be, and the golden bytes, are in ``test_frames.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.errors import ProtocolError
from meshmsg.wire import frames, items
from meshmsg.wire.codec import decode_batch, make_packer
from tests.wire import talk_frames
from tests.wire.test_frames import JSON

pytestmark = pytest.mark.guarantee("G11")

pack = make_packer()
OPS = [items.CALL, items.CANCEL, items.CREDIT, items.UP_ITEMS, items.UP_END]
OPS += [items.RESULT, items.FAULT, items.ITEMS, items.END, items.UP_CREDIT]


def test_every_op_is_known_to_these_tests() -> None:
    assert sorted(item[0] for item in talk_frames.VALID_ITEMS) == sorted(OPS) == sorted(items._CHECKS)


@given(said=st.lists(talk_frames.ITEM, max_size=6))
def test_the_bodies_of_a_frame_are_those_of_its_items(said: list[list[Any]]) -> None:
    count = items.check_items(said)
    assert count == items.count_bodies(said) == sum(map(items.bodies_of, said))
    assert all(bool(items.bodies_of(item)) == (item[0] in items.WITH_BODIES) for item in said)
    talk = frames.decode(frames.encode(frames.Talk(1, 1, 0, 0, said, b""), [pack(each) for each in range(count)]))
    assert isinstance(talk, frames.Talk) and talk.items == said
    assert decode_batch(talk.payload, count) == list(range(count))


@given(item=talk_frames.ITEM, data=st.data())
def test_an_item_in_two_says_the_same(item: list[Any], data: st.DataObject) -> None:
    count = items.bodies_of(item)
    if count < 2:
        return
    at = data.draw(st.integers(1, count - 1))
    before = list(item)
    head, tail = items.split(item, at)
    assert item == before
    assert (items.check_items([head]), items.check_items([tail])) == (at, count - at)
    if item[0] == items.RESULT:
        assert head[1] + tail[1] == item[1]
    elif item[0] == items.CALL:
        assert tail[1] == head[1] + at == item[1] + at
        assert head[3:] == tail[3:] == item[3:]
    else:
        assert head[:2] == tail[:2] == item[:2]
        assert head[3:] == [] and tail[3:] == item[3:], "what is marked is marked at its end"


@given(op=st.sampled_from(OPS), fields=st.lists(JSON, max_size=9), payload=st.binary(max_size=9))
def test_wrong_fields_are_a_protocol_error_or_an_item(op: int, fields: list[Any], payload: bytes) -> None:
    try:
        talk = frames.decode([pack([frames.TALK, 1, 1, 0, 0, [[op, *fields]]]), payload])
        assert isinstance(talk, frames.Talk)
        decode_batch(talk.payload, items.count_bodies(talk.items))
    except ProtocolError:
        pass


@given(said=JSON)
def test_anything_else_is_a_protocol_error_or_items(said: Any) -> None:
    try:
        items.check_items(said)
    except ProtocolError:
        pass


@given(item=st.sampled_from(talk_frames.VALID_ITEMS), place=st.integers(1, 8), value=JSON)
def test_one_wrong_field_is_a_protocol_error_or_an_item(item: list[Any], place: int, value: Any) -> None:
    changed = [*item[:place], value, *item[place + 1 :]]
    try:
        assert items.check_items([changed]) == items.bodies_of(changed)
    except ProtocolError:
        pass


@given(item=st.sampled_from(talk_frames.VALID_ITEMS), more=st.lists(JSON, max_size=2))
def test_fields_from_the_future_are_ignored(item: list[Any], more: list[Any]) -> None:
    assert items.check_items([[*item, *more]]) == items.bodies_of(item)


@pytest.mark.parametrize("item", [item for item in talk_frames.VALID_ITEMS if item[0] in talk_frames.SHORTEST])
def test_fields_that_were_added_may_be_missing(item: list[Any]) -> None:
    for length in range(talk_frames.SHORTEST[item[0]], len(item)):
        assert items.check_items([item[:length]]) == items.bodies_of(item)


@pytest.mark.parametrize("item", [[99], [99, 5], [0], [-1, []], [2**63, {}]])
def test_an_op_from_the_future_has_no_bodies(item: list[Any]) -> None:
    assert items.check_items([item, [items.RESULT, [1]]]) == items.count_bodies([item, [items.RESULT, [1]]]) == 1


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({}, "items: expected an array, got dict"),
        ([5], "not an array starting with its op"),
        ([[]], "not an array starting with its op"),
        ([[items.END]], "item of op 19 with wrong fields"),
        ([[items.CALL, 0, 0, "s", "m", None, 0, 0, None]], "a CALL of nothing"),
        ([[items.CALL, 0, 1, "s\x1b", "m", None, 0, 0, None]], "service is a text with control characters"),
        ([[items.CALL, 0, 1, "s", "m", None, 0, 5, None]], "credit for items that it does not want"),
        ([[items.RESULT, []]], "about no calls"),
        ([[items.RESULT, [True]]], "numbers of calls"),
        ([[items.ITEMS, 1, 0]], "no items"),
        ([[items.END, 1]] * (items.MAX_ITEMS + 1), "65537 items in one frame"),
    ],
)
def test_what_is_refused_and_why(said: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        items.check_items(said)


@pytest.mark.parametrize(
    "payload", [b"", b"\x90", b"\x91\x01", b"\x93\x01\x02\x03", b"\x92\x01", b"\x92\x01\x02\x03", b"\xc1"]
)
def test_other_bodies_than_the_items_say_are_refused(payload: bytes) -> None:
    talk = frames.decode([pack([frames.TALK, 1, 1, 0, 0, [[items.RESULT, [1, 2]]]]), payload])
    assert isinstance(talk, frames.Talk)
    with pytest.raises(ProtocolError):
        decode_batch(talk.payload, items.count_bodies(talk.items))


def test_claimed_bodies_take_no_memory() -> None:
    said = [[items.ITEMS, 0, frames.MAX_SEQ]] * 3
    assert items.check_items(said) == 3 * frames.MAX_SEQ
    with pytest.raises(ProtocolError):
        decode_batch(b"\x91\x01", items.count_bodies(said))


def test_a_talk_without_payload_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no payload in its header or behind it"):
        frames.decode([pack([frames.TALK, 1, 1, 0, 0, [[items.END, 1]]])])

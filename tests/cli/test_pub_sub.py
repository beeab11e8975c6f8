"""`meshmsg pub`, `sub` and `tap` as processes that find each other through mDNS."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading

import pytest

from meshmsg import Message, Node
from meshmsg.cli import pub as pub_module
from meshmsg.cli import tap as tap_module
from meshmsg.cli.tap import Tape
from meshmsg.message import Gap
from meshmsg.testing import make_message
from tests.cli.shell import DEADLINE_S, Shell, Spooled, finish, interrupt, read_line, use


def subscribe(shell: Shell, *arguments: str) -> Spooled:
    return shell.spool("sub", *arguments)


def keep(shell: Shell, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a publisher that stays, and wait until it has published."""
    process = shell.start("pub", *arguments)
    assert process.stderr is not None
    assert b"keeps what late joiners" in process.stderr.readline()
    return process


def test_bodies_from_arguments_reach_every_subscriber_in_order(shell: Shell) -> None:
    subs = [subscribe(shell, pattern, "-n", "3") for pattern in ("a.b", "a.*", "**")]
    pub = shell.run("pub", "a.b", "one", "two", "ü", "--subscribers", "3")
    assert (pub.code, pub.stdout, pub.stderr) == (0, "", "")
    for sub in subs:
        ended = sub.finish()
        assert (ended.code, ended.lines) == (0, ["one", "two", "ü"]), ended


def test_lines_from_standard_input_arrive_as_they_are(shell: Shell) -> None:
    sub = subscribe(shell, "a", "-n", "4")
    pub = shell.run("pub", "a", stdin=b"one\n\n\xff\xfe\nlast")
    assert pub.code == 0, pub
    assert sub.finish().raw == b"one\n\n\xff\xfe\nlast\n"


def test_json_in_and_out(shell: Shell) -> None:
    sub = subscribe(shell, "a.*", "-n", "2", "--json")
    pub = shell.run("pub", "a.b", "--json", "--header", "x=1=2", stdin=b'{"path": "a.jpg"}\n\n[1, null]\n')
    assert pub.code == 0, pub
    document = json.loads(pub.stdout)
    assert document == {
        "topic": "a.b",
        "published": 2,
        "subscribers": [f"sub-{sub.process.pid}"],
        "behind": {},
        "pending": {},
        "dead": 0,
    }
    first, second = (json.loads(line) for line in sub.finish().lines)
    assert first.pop("id").endswith("/a.b/0") and first.pop("sender").startswith("pub-")
    assert first == {"topic": "a.b", "number": 0, "headers": {"x": "1=2"}, "body": {"path": "a.jpg"}}
    assert (second["number"], second["body"]) == (1, [1, None])


def test_format_knows_what_a_publication_has(shell: Shell) -> None:
    sub = subscribe(shell, "a", "-n", "2", "--format", r"{topic}\t{number} {body[0]} {headers}")
    assert shell.run("pub", "a", "--json", "[1]", "[2]").code == 0
    assert sub.finish().lines == ["a\t0 1 {}", "a\t1 2 {}"]


def test_count_repeats_arguments(shell: Shell) -> None:
    sub = subscribe(shell, "a", "-n", "5")
    assert shell.run("pub", "a", "x", "y", "-n", "5").code == 0
    assert sub.finish().lines == ["x", "y", "x", "y", "x"]


def test_a_sub_prints_no_more_than_it_was_asked_for(shell: Shell) -> None:
    sub = subscribe(shell, "a", "-n", "3")
    assert shell.run("pub", "a", "-n", "10", "x").code == 0
    assert sub.finish().lines == ["x", "x", "x"]


@pytest.mark.guarantee("G6")
def test_late_joiners_get_what_is_kept(shell: Shell) -> None:
    pub = keep(shell, "a", "1", "2", "3", "--retain", "--history", "2")
    assert shell.run("sub", "a", "--replay", "latest", "-n", "1").lines == ["3"]
    assert shell.run("sub", "a", "--replay", "history", "-n", "2").lines == ["2", "3"]
    nothing = shell.run("sub", "a", "--timeout", "0.5")
    assert (nothing.code, nothing.stdout) == (1, "")
    assert nothing.stderr == "meshmsg: no message of 'a' came within 0.5 s\n"
    assert interrupt(pub).code == 0


@pytest.mark.guarantee("G6")
def test_a_pipe_that_is_read_slowly_loses_nothing(shell: Shell) -> None:
    sub = shell.start("sub", "a")
    pub = shell.start("pub", "a", stdin=b"".join(b"%d\n" % number for number in range(5000)))
    assert [read_line(sub) for _ in range(3)] == ["0", "1", "2"]
    assert finish(pub).code == 0
    assert [read_line(sub) for _ in range(4997)] == [str(number) for number in range(3, 5000)]
    ended = interrupt(sub)
    assert (ended.code, ended.stderr) == (0, "")


def test_a_reader_that_leaves_ends_an_idle_sub(shell: Shell) -> None:
    for verb in ("sub", "tap"):
        process = shell.start(verb, "a")
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == b""


def test_pub_says_whom_it_waits_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pub_module, "NOTICE_AFTER_S", 0.1)
    ended = use("pub", "a", "x", "--timeout", "0.5", mesh=shell.mesh, code=1)
    assert ended.stdout == ""
    assert "meshmsg: waiting: for subscribers of 'a'; 0 nodes seen" in ended.stderr
    assert "found 0 of 1 subscribers of 'a' within 0.5 s, nothing was published" in ended.stderr


async def test_pub_tells_subscribers_of_one_name_apart(shell: Shell) -> None:
    """Workers that are started from one unit file all have one name."""
    nodes = [Node(name, mesh=shell.mesh, drain=0) for name in ("w", "w", "other")]
    async with nodes[0], nodes[1], nodes[2]:
        for node in nodes[:2]:
            node.sub("a", buffer=1)
        nodes[2].sub("a", group="g")
        ended = await asyncio.to_thread(
            shell.run, "pub", "a", "1", "2", "3", "--json", "--subscribers", "3", "--timeout", "5"
        )
    labels = sorted(f"w ({node.id[:12]})" for node in nodes[:2])
    told = json.loads(ended.stdout)
    assert told["subscribers"] == ["other", *labels]
    assert told["behind"] == dict.fromkeys(labels, 2)
    for label in labels:
        assert f"{label!r} has yet to receive 2" in ended.stderr


def test_pub_that_need_not_wait_does_not(shell: Shell) -> None:
    ended = shell.run("pub", "a", "x", "--subscribers", "0")
    assert (ended.code, ended.stdout) == (0, "")
    nobody = f"1 published, nobody subscribes (0 nodes seen in mesh {shell.mesh!r})"
    assert ended.stderr == f"meshmsg: pub 'a': {nobody}\n"


async def test_ctrl_c_ends_a_pub_that_waits(shell: Shell) -> None:
    async with Node("other", mesh=shell.mesh, drain=0) as node:
        node.sub("other")
        pub = shell.start("pub", "a", "x", "--timeout", "30")
        await node.wait_for(peer=f"pub-{pub.pid}", timeout=DEADLINE_S)
    ended = interrupt(pub)
    assert ended.code == 130 and "Traceback" not in ended.stderr


def test_a_line_that_is_no_json_stops_but_costs_none_before_it(shell: Shell) -> None:
    sub = subscribe(shell, "a", "-n", "2")
    ended = shell.run("pub", "a", "--json", stdin=b"1\n2\n{oops\n4\n")
    assert ended.code == 2
    assert "line 3 is not JSON" in ended.stderr
    assert json.loads(ended.stdout)["published"] == 2
    assert sub.finish().lines == ["1", "2"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{oops", "body 2 is not JSON: Expecting property name"),
        ("NaN", "body 2 is not JSON: NaN is a word of Python's"),
        ("1e400", "body 2 is not JSON: 1e400 is more than a number can be"),
        ("123456789012345678901234567890", "body 2: body cannot be sent: MessagePack carries integers of 64 bits"),
    ],
)
def test_of_bodies_with_a_bad_one_none_is_published(bad: str, why: str) -> None:
    ended = use("pub", "a", "1", bad, "--json", "--subscribers", "0", code=2)
    assert (ended.stdout, ended.stderr.startswith(f"meshmsg: {why}")) == ("", True), ended.stderr


@pytest.mark.guarantee("G6")
def test_a_subscriber_that_vanished_before_it_had_everything_is_named(shell: Shell) -> None:
    sub = shell.start("sub", "a")
    pub = shell.start("pub", "a", "1", "-n", "30", "--rate", "10", "--json")
    assert read_line(sub) == "1"
    sub.send_signal(signal.SIGSTOP)
    ended = finish(pub)
    name = f"sub-{sub.pid}"
    document = json.loads(ended.stdout)
    assert (ended.code, document["subscribers"], list(document["behind"])) == (1, [name], [name])
    missed = document["behind"][name]
    assert 0 < missed < 30
    assert ended.stderr == (
        f"meshmsg: pub 'a': 30 published, {name!r} is gone without a goodbye and had yet to receive {missed}\n"
    )


def test_a_subscriber_that_said_goodbye_is_not_behind(shell: Shell) -> None:
    sub = subscribe(shell, "a", "-n", "3")
    pub = shell.run("pub", "a", "1", "-n", "10", "--rate", "20", "--json")
    assert (pub.code, json.loads(pub.stdout)["behind"]) == (0, {})
    assert sub.finish().lines == ["1", "1", "1"]


@pytest.mark.guarantee("G7")
def test_members_of_a_group_share_and_taps_steal_nothing(shell: Shell) -> None:
    tap = shell.spool("tap", "**", "-n", "100", "--json")
    members = [subscribe(shell, "jobs.*", "--group", "g", "-n", "50") for _ in range(2)]
    bodies = b"".join(b"%d\n" % number for number in range(100))
    pub = shell.run("pub", "jobs.a", "--subscribers", "3", "--json", stdin=bodies)
    assert pub.code == 0, pub
    assert json.loads(pub.stdout)["pending"] == {}
    shares = [member.finish().lines for member in members]
    assert sorted(int(line) for lines in shares for line in lines) == list(range(100))
    seen = [json.loads(line) for line in tap.finish().lines]
    assert [(message["number"], message["body"]) for message in seen] == [(each, each) for each in range(100)]


def test_a_tap_shows_where_messages_come_from(shell: Shell) -> None:
    tap = shell.spool("tap", "a.**", "-n", "2")
    assert shell.run("pub", "a.b", "x", "--json", "[1]", "2").code == 2  # x is no JSON, so none is published
    pub = shell.start("pub", "a.b", "x", "y")
    assert finish(pub).code == 0
    assert tap.finish().lines == [f"a.b  pub-{pub.pid}  #0  x", f"a.b  pub-{pub.pid}  #1  y"]


def test_nobody_waits_for_a_tap_that_is_not_read(shell: Shell) -> None:
    """More lines than a subscription and a publisher that waits for it would hold."""
    tap = shell.start("tap", "a")
    pub = shell.run("pub", "a", "-n", "100000", "x", "--timeout", "30")
    assert (pub.code, pub.stderr) == (0, "")
    assert read_line(tap).endswith("#0  x")


def test_a_tap_without_messages_ends_with_1(shell: Shell) -> None:
    ended = shell.run("tap", "a", "--timeout", "0.2")
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr == "meshmsg: no message of 'a' came within 0.2 s\n"


def publication(number: int) -> Message:
    return make_message(number, queue="a")


def test_a_tape_that_nobody_reads_skips_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "MAX_WAITING", 3)
    tape = Tape(as_json=True, most=None)
    tape.add_gap(Gap("a", "p", 2, 3, 5))
    for number in range(4):
        tape.add_message(publication(number))
    first, *rest = (json.loads(line) for line in tape.read())
    assert first == {"skipped": 2}
    assert [each["body"] for each in rest] == [1, 2, 3]
    assert tape.read() == []


@pytest.mark.guarantee("G6")
def test_a_tape_shows_gaps() -> None:
    for as_json, expected in (
        (True, '{"topic":"a","sender":"p","gap":{"missed":2,"start":3,"stop":5}}'),
        (False, "a  p  gap: 2 are lost, #3 to #4"),
    ):
        tape = Tape(as_json=as_json, most=1)
        tape.add_gap(Gap("a", "p", 2, 3, 5))
        assert [line.decode() for line in tape.read()] == [expected]


def test_a_tape_takes_no_more_than_is_wanted() -> None:
    tape = Tape(as_json=False, most=1)
    tape.add_message(publication(1))
    tape.add_message(publication(2))
    assert (tape.left, tape.messages, len(tape.read())) == (0, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("pub", "a.*", "x"), "one topic, without wildcards"),
        (("sub", "a..b"), "it has an empty segment"),
        (("tap", "a.b*"), "stands for a whole segment"),
        (("sub", "a", "--format", "{queue}"), "--format has no {queue}; there are {body}"),
        (("sub", "a", "--group", "g", "--latest"), "neither --latest nor --replay"),
        (("sub", "a", "--group", "g h"), "group="),
        (("pub", "a", "x", "--header", "novalue"), "NAME=VALUE"),
        (("pub", "a", "x", "--mesh", ""), "--mesh takes a name"),
    ],
)
def test_what_cannot_work_is_wrong_use(arguments: tuple[str, ...], error: str) -> None:
    ended = use(*arguments, code=2)
    assert ended.stdout == "" and error in ended.stderr


@pytest.mark.guarantee("G6")
async def test_gaps_are_told_on_standard_error(shell: Shell) -> None:
    """A publisher that keeps little, and a subscriber that is frozen until more was published than any queue holds."""
    async with Node("pub", mesh=shell.mesh, drain=0) as node:
        pub = node.pub("a")
        sub = shell.start("sub", "a")
        assert sub.stdout is not None and sub.stderr is not None
        await node.wait_for(sub="a", timeout=30)
        sub.send_signal(signal.SIGSTOP)
        for _ in range(4000):
            await pub.send(b"x" * 20_000)
            await asyncio.sleep(0)  # each a message of its own for ZeroMQ, whose queue holds 1,000
        sub.send_signal(signal.SIGCONT)
        reader = threading.Thread(target=sub.stdout.read)
        reader.start()
        try:
            line = await asyncio.to_thread(sub.stderr.readline)
        finally:
            sub.kill()
            reader.join()
    assert b"messages of 'a' from 'pub' are lost (numbers " in line

"""`meshmsg push` and `meshmsg pull` as processes that find each other through mDNS."""

from __future__ import annotations

import json
import sys

import pytest

from meshmsg.blocking import Node
from meshmsg.cli import push
from tests.cli.shell import DEADLINE_S, Shell, finish, interrupt, read_line, use

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how full a pipe is")
GET_ALL = ("--timeout", "1")  # until nothing has come for a while


def test_bodies_from_arguments_arrive_in_order(shell: Shell) -> None:
    pull = shell.spool("pull", "jobs", "-n", "3")
    push = shell.run("push", "jobs", "a", "b", "ü")
    assert push.code == 0, push
    assert (push.stdout, push.stderr) == ("", "")
    pulled = pull.finish()
    assert (pulled.code, pulled.lines) == (0, ["a", "b", "ü"])


def test_lines_from_standard_input_arrive_as_they_are(shell: Shell) -> None:
    pull = shell.spool("pull", "jobs", "-n", "4")
    push = shell.run("push", "jobs", stdin=b"one\n\n\xff\xfe\nlast")
    assert push.code == 0, push
    assert pull.finish().raw == b"one\n\n\xff\xfe\nlast\n"


def test_count_repeats_arguments_and_limits_standard_input(shell: Shell) -> None:
    pull = shell.spool("pull", "jobs", "-n", "5")
    assert shell.run("push", "jobs", "a", "b", "-n", "3").code == 0
    assert shell.run("push", "jobs", "-n", "2", stdin=b"1\n2\n3\n").code == 0
    assert pull.finish().lines == ["a", "b", "a", "1", "2"]


def test_json_in_and_out(shell: Shell) -> None:
    options = ("--key", "k", "--priority", "7", "--header", "a=1=2", "--json")
    push = shell.start("push", "jobs", *options, stdin=b'{"path": "a.jpg"}\n\n[1, null]\n')
    pulled = shell.run("pull", "jobs", "-n", "2", "--json")
    first, second = (json.loads(line) for line in pulled.lines)
    assert first["id"].endswith("/jobs/0") and first["sender"].startswith("push-")
    del first["id"], first["sender"]
    assert first == {
        "queue": "jobs",
        "attempt": 1,
        "redelivered": False,
        "key": "k",
        "priority": 7,
        "headers": {"a": "1=2"},
        "body": {"path": "a.jpg"},
    }
    assert second["body"] == [1, None]
    pushed = finish(push)
    assert pushed.code == 0
    document = json.loads(pushed.stdout)
    assert document["queue"] == "jobs" and document["dead_letters"] == []
    assert document["ledger"]["accepted"] == document["ledger"]["processed"] == 2


def test_format(shell: Shell) -> None:
    push = shell.start("push", "jobs", "--json", '{"path": "a.jpg", "size": [1, 2]}')
    template = r"{attempt}\t{body[path]} {body[size]} {key} {queue:>6}"
    assert shell.run("pull", "jobs", "-n", "1", "--format", template).lines == ["1\ta.jpg [1,2] null   jobs"]
    assert finish(push).code == 0


@pytest.mark.parametrize("template", ["{bdy}", "{body", "{}"])
def test_a_format_that_fits_nothing_is_wrong_use(template: str) -> None:
    assert "--format" in use("pull", "jobs", "--format", template, code=2).stderr


def test_a_format_that_does_not_fit_a_message_leaves_it_to_others(shell: Shell) -> None:
    push = shell.start("push", "jobs", "text")
    ended = shell.run("pull", "jobs", "--format", "{body[path]}")
    assert ended.code == 2
    assert "does not fit message" in ended.stderr and "Traceback" not in ended.stderr
    assert shell.run("pull", "jobs", "-n", "1").lines == ["text"]
    assert finish(push).code == 0


@pytest.mark.guarantee("G4")
def test_what_a_pull_does_not_print_goes_back_unharmed(shell: Shell) -> None:
    push = shell.start("push", "jobs", stdin=b"".join(b"%d\n" % number for number in range(100)))
    assert shell.run("pull", "jobs", "-n", "1").lines == ["0"]
    rest = shell.run("pull", "jobs", "-n", "99", "--json")
    messages = [json.loads(line) for line in rest.lines]
    assert sorted(int(message["body"]) for message in messages) == list(range(1, 100))
    assert {message["attempt"] for message in messages} == {1}
    assert finish(push).code == 0


@needs_linux
@pytest.mark.guarantee("G1")
def test_a_reader_that_leaves_costs_no_message(shell: Shell) -> None:
    """`meshmsg pull jobs | head -1`, three times, then the rest."""
    push = shell.start("push", "jobs", stdin=b"".join(b"%d\n" % number for number in range(50)))
    seen = []
    for _ in range(3):
        pull = shell.start("pull", "jobs")
        seen.append(read_line(pull))
        assert pull.stdout is not None
        pull.stdout.close()
        assert pull.wait(timeout=30) == 0
    assert seen[0] == "0"
    seen += shell.run("pull", "jobs", "-n", "47").lines
    assert sorted(map(int, seen)) == list(range(50))
    assert finish(push).code == 0


def test_a_reader_that_leaves_ends_an_idle_pull(shell: Shell) -> None:
    pull = shell.start("pull", "jobs")
    assert pull.stdout is not None and pull.stderr is not None
    pull.stdout.close()
    assert pull.wait(timeout=30) == 0
    assert pull.stderr.read() == b""


@needs_linux
@pytest.mark.guarantee("G1")
def test_a_line_that_nobody_reads_is_not_acked(shell: Shell) -> None:
    pull = shell.start("pull", "jobs")
    with Node("watcher", mesh=shell.mesh, drain=0) as node:
        node.wait_for(pull="jobs", timeout=DEADLINE_S)
    pushed = shell.run("push", "jobs", "unread", "--timeout", "1")
    assert pushed.code == 1
    assert "1 accepted, 0 processed, 0 dead, 1 pending (0 ready, 1 in flight, 0 scheduled)" in pushed.stderr
    interrupt(pull)


def test_push_says_what_is_pending_when_time_runs_out(shell: Shell) -> None:
    ended = shell.run("push", "jobs", "a", "b", "--timeout", "0.2")
    assert ended.code == 1
    assert "push 'jobs': 2 accepted, 0 processed, 0 dead, 2 pending (2 ready" in ended.stderr


def test_push_says_whom_it_waits_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "NOTICE_AFTER_S", 0.1)
    ended = use("push", "jobs", "a", "--timeout", "0.5", mesh=shell.mesh, code=1)
    assert "meshmsg: waiting: 1 messages are pending after 0.1 s; " in ended.stderr
    assert "no node pulls 'jobs'" in ended.stderr


def test_dead_letters_have_an_exit_code(shell: Shell) -> None:
    pull = shell.spool("pull", "jobs", "-n", "1", "--verdict", "reject")
    ended = shell.run("push", "jobs", "3", "--json")
    assert ended.code == 3
    [letter] = json.loads(ended.stdout)["dead_letters"]
    assert letter["reason"] == "rejected" and letter["attempts"] == 1
    assert "dead letter" in ended.stderr and "rejected" in ended.stderr
    assert pull.finish().code == 0


def test_attempts_run_out(shell: Shell) -> None:
    pull = shell.spool("pull", "jobs", "-n", "2", "--verdict", "nack", "--format", "{attempt}")
    ended = shell.run("push", "jobs", "a", "--attempts", "2")
    assert ended.code == 3
    assert "(attempts)" in ended.stderr
    assert pull.finish().lines == ["1", "2"]


def test_a_line_that_is_no_json_stops_but_costs_none_before_it(shell: Shell) -> None:
    pull = shell.spool("pull", "jobs", "-n", "2")
    ended = shell.run("push", "jobs", "--json", stdin=b"1\n2\n{oops\n4\n")
    assert ended.code == 2
    assert "line 3 is not JSON" in ended.stderr
    assert json.loads(ended.stdout)["ledger"]["processed"] == 2
    assert pull.finish().lines == ["1", "2"]


def test_a_body_that_cannot_be_sent_is_wrong_use(shell: Shell) -> None:
    ended = shell.run("push", "jobs", "--json", str(2**70))
    assert ended.code == 2
    assert "message 1: body cannot be sent" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "options", [("--priority", "256"), ("--header", "novalue"), ("--rate", "0"), ("-n", "0"), ("--ttl", "-1")]
)
def test_options_that_cannot_work_are_wrong_use(options: tuple[str, str]) -> None:
    errors = use("push", "jobs", "a", *options, code=2).stderr
    assert options[0] in errors or "NAME=VALUE" in errors


def test_no_wait_leaves_when_consumers_have_everything(shell: Shell) -> None:
    pull = shell.spool("pull", "jobs", "-n", "3")
    ended = shell.run("push", "jobs", "a", "b", "c", "--no-wait")
    assert (ended.code, ended.stderr) == (0, "")
    assert pull.finish().lines == ["a", "b", "c"]


def test_no_wait_still_waits_for_a_consumer(shell: Shell) -> None:
    ended = shell.run("push", "jobs", "a", "--no-wait", "--timeout", "0.2")
    assert ended.code == 1
    assert "1 pending (1 ready" in ended.stderr


def test_pull_without_messages_ends_with_1(shell: Shell) -> None:
    ended = shell.run("pull", "jobs", "--timeout", "0.1")
    assert (ended.code, ended.stdout) == (1, "")


def test_pull_that_got_something_ends_with_0_unless_it_wanted_more(shell: Shell) -> None:
    with Node("pusher", mesh=shell.mesh) as node:
        push = node.push("jobs")
        push.send_many([b"a", b"b"])
        ended = shell.run("pull", "jobs", *GET_ALL)
        assert (ended.code, ended.lines) == (0, ["a", "b"])
        push.send(b"a")
        assert shell.run("pull", "jobs", "-n", "2", *GET_ALL).code == 1


def test_ctrl_c_ends_a_pull_cleanly(shell: Shell) -> None:
    pull = shell.start("pull", "jobs")
    assert shell.start("push", "jobs", "a") and read_line(pull) == "a"
    ended = interrupt(pull)
    assert (ended.code, ended.stderr) == (0, "")


def test_ctrl_c_ends_a_push_with_its_ledger(shell: Shell) -> None:
    push = shell.start("push", "jobs", "a")
    assert json.loads(shell.run("queues", "--json", "--timeout", "20").stdout)["queues"]
    ended = interrupt(push)
    assert ended.code == 130
    assert "1 pending" in ended.stderr and "Traceback" not in ended.stderr


def test_a_pull_that_got_nothing_says_so(shell: Shell) -> None:
    ended = shell.run("pull", "jobs", "--timeout", "0.2")
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr == "meshmsg: no message of 'jobs' came within 0.2 s\n"


@pytest.mark.parametrize("verb", [("pull", "jobs"), ("push", "jobs", "body"), ("nodes",), ("queues",), ("demo",)])
def test_an_empty_mesh_is_wrong_use(verb: tuple[str, ...]) -> None:
    ended = use(*verb, "--mesh", "", code=2)
    assert ended.stdout == "" and "--mesh takes a name" in ended.stderr

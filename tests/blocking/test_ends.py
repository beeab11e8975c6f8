"""Ctrl-C, signals, and processes that end without closing their node."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.blocking.program import Program, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent like this on Windows")

WAITS = {
    "iteration": 'next(iter(node.pull("work")))',
    "batches": 'next(node.pull("work").batches())',
    "get": 'node.pull("work").get()',
    "flush": "full.flush()",
    "send": 'full.send("no room")',
    "send_many": 'full.send_many(["no room"])',
    "deliver": 'full.deliver("no room")',
    "wait_for": 'node.wait_for(pull="nothing")',
    "events": "next(node.events())",
}


@pytest.mark.parametrize("what", sorted(WAITS))
def test_ctrl_c_interrupts_whatever_waits(what: str) -> None:
    program = Program(
        f"""
with make(drain=0) as node:
    full = node.push("full", max_pending=1)
    full.send("fills it")
    try:
        say("waiting")
        {WAITS[what]}
    except KeyboardInterrupt:
        say("interrupted")
    say(node.close()["full"].pending)
"""
    )
    assert program.line() == "waiting"
    program.signal(signal.SIGINT)
    code, output, errors = program.finish()
    assert (code, output) == (0, "interrupted\n1"), errors


@pytest.mark.guarantee("G10")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_a_signal_and_drains(number: signal.Signals) -> None:
    program = Program(
        """
node = make("service", drain=10)
jobs = node.push("work")
@node.pull("work", concurrency=2)
def handle(message):
    started.wait()
    go_on.wait()
started, go_on = threading.Barrier(3), threading.Event()
def feed():
    while True:
        try:
            jobs.send_many([1, 2])
            break
        except meshmsg.NodeClosed:
            pass  # not started yet
    started.wait()
    say("working")
threading.Thread(target=feed, daemon=True).start()
before = signal.getsignal(signal.SIGTERM)
class Releasing(threading.Thread):
    def run(self):
        while node._node._closing is None:
            time.sleep(0.001)
        go_on.set()
Releasing(daemon=True).start()
say(*node.run()["work"][:4])
say(signal.getsignal(signal.SIGTERM) == before)
"""
    )
    assert program.line() == "working"
    program.signal(number)
    code, output, errors = program.finish()
    # The close came while both handlers ran: they end and are acked.
    assert output == "2 2 0 0\nTrue", errors
    assert (code, errors) == (0, "")


@pytest.mark.guarantee("G4", "G10")
@pytest.mark.parametrize("moment", ["in hand", "idle"])
def test_a_program_that_iterates_can_leave_at_a_signal(moment: str) -> None:
    """What docs/quickstart.md tells such programs to do."""
    program = Program(
        f"""
with make("worker", drain=0) as node:
    jobs, pull = node.push("jobs"), node.pull("jobs", prefetch=2)
    closed = threading.Event()
    class Closing(threading.Thread):
        def run(self):
            pull.close()
            closed.set()
    signal.signal(signal.SIGTERM, lambda *_: Closing().start())
    if {moment == "in hand"}:
        jobs.send_many(range(3))
    else:
        say("idle")
    for message in pull:
        with message:
            say("in hand")
            while not closed.wait(0.01):
                pass  # a signal just before a wait without limit would be handled only after it, which never ends
    while jobs.ledger().in_flight:
        time.sleep(0.001)
    say(*node.ledger()["jobs"])
say("left")
"""
    )
    assert program.line() == moment
    program.signal(signal.SIGTERM)
    accepted, processed = (3, 1) if moment == "in hand" else (0, 0)
    left = accepted - processed  # given back unstarted: no attempt, no redelivery to a handler
    assert program.finish() == (0, f"{accepted} {processed} 0 {left} {left} 0 0 0\nleft", "")


def test_a_second_signal_ends_the_drain() -> None:
    program = Program(
        """
node = make("service", drain=1000)
jobs = node.push("nobody")
def feed():
    while True:
        try:
            jobs.send(1)
            break
        except meshmsg.NodeClosed:
            pass  # not started yet
    say("ready")
    while node._node._draining is None:
        time.sleep(0.001)
    say("draining")
threading.Thread(target=feed, daemon=True).start()
say(node.run()["nobody"].pending)
"""
    )
    assert program.line() == "ready"
    program.signal(signal.SIGINT)
    assert program.line() == "draining"
    program.signal(signal.SIGINT)
    code, output, errors = program.finish()
    assert (code, output) == (0, "1"), errors


def test_run_needs_the_main_thread() -> None:
    code, output, errors = run(
        """
def work():
    try:
        make().run()
    except meshmsg.ConfigurationError as error:
        say(error)
thread = threading.Thread(target=work); thread.start(); thread.join()
"""
    )
    said = "run() needs the main thread, which alone gets signals: use start() and close()"
    assert (code, output, errors) == (0, said, "")


@pytest.mark.guarantee("G10")
def test_a_process_may_end_without_a_close_but_hears_what_it_loses() -> None:
    code, output, errors = run(
        """
node = make("careless").start()
node.push("nobody").send_many([1, 2, 3])
"""
    )
    assert (code, output) == (0, "")
    assert "RuntimeWarning: node 'careless' was not closed" in errors
    assert "(3 of 'nobody')" in errors


def test_a_process_that_lost_nothing_ends_quietly() -> None:
    code, output, errors = run(
        """
node = make("careless").start()
node.pull("work")(lambda message: None)
node.push("work").deliver(1, timeout=10)
"""
    )
    assert (code, output, errors) == (0, "", "")


def test_threads_that_wait_do_not_keep_the_process() -> None:
    code, output, errors = run(
        """
node = make("careless").start()
jobs, pull = node.push("full", max_pending=1), node.pull("work")
jobs.send(1)
ready = threading.Barrier(7)
def wait(use):
    ready.wait()
    try:
        use()
    except meshmsg.NodeClosed:
        pass
for use in (lambda: next(iter(pull)), lambda: pull.get(), lambda: jobs.send(2), lambda: jobs.flush(),
            lambda: next(node.events())):
    threading.Thread(target=wait, args=(use,), daemon=True).start()
node.pull("busy")(lambda message: ready.wait() or time.sleep(1000))
node.push("busy").send(1)
ready.wait()
say("end")
"""
    )
    assert (code, output) == (0, "end"), errors


def test_the_death_of_the_loop_is_told_to_everybody() -> None:
    code, output, errors = run(
        """
node = make("unlucky").start()
jobs, pull, full = node.push("work"), node.pull("other"), node.push("full", max_pending=1)
full.send(1)
said = []
def wait(name, use):
    try:
        use()
        said.append((name, "went on"))
    except meshmsg.NodeClosed as error:
        said.append((name, "as if a bug" in str(error) or "is closed" in str(error) or str(error)))
def die(): raise SystemExit("as if a bug")
uses = {
    "iteration": lambda: next(iter(pull)), "get": lambda: pull.get(), "send": lambda: full.send(2),
    "flush": lambda: full.flush(), "events": lambda: node.events().get(), "wait_for": lambda: node.wait_for(pull="x"),
}
threads = [threading.Thread(target=wait, args=item) for item in uses.items()]
for thread in threads: thread.start()
node._loop.loop.call_soon_threadsafe(die)
for thread in threads: thread.join()
say(sorted(said))
try:
    jobs.send(1)
except meshmsg.NodeClosed as error:
    say("refused")
say(node.close()["full"].pending)
"""
    )
    assert code == 0, errors
    told = [(name, True) for name in ("events", "flush", "get", "iteration", "send", "wait_for")]
    assert output == f"{told}\nrefused\n1"
    assert "as if a bug" in errors

"""`meshmsg request`, `survey`, `reply` and `services`: in this process, and as processes that find each other."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from meshmsg import Context, Node, Overloaded, RemoteError
from meshmsg.cli import request, services
from meshmsg.cli.reply import Command, Replies
from meshmsg.cli.request import Question, ask
from meshmsg.cli.requesting import describe_error, explain, parse_arguments, parse_target
from meshmsg.cli.running import Stop
from meshmsg.cli.survey import find, print_answers
from meshmsg.cli.verbs import meshmsg
from meshmsg.message import Peer
from tests.cli.shell import Shell, finish, interrupt, read_line, runs, wait_until

PATIENT = ("--timeout", "20")
SUM = "import json, sys; print(sum(json.load(sys.stdin)['args']))"


class Math:
    """A service of all kinds of methods."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = asyncio.Event()
        self._ended = asyncio.Event()

    async def add(self, a: int, b: int = 1) -> int:
        """Adds two numbers.

        Nothing else.
        """
        return a + b

    async def count(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    async def text(self) -> str:
        return "a\nb"

    async def words(self) -> AsyncIterator[str]:
        yield "a\nb"
        yield "\x1b"

    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    async def same(self, value: Any) -> Any:
        return value

    async def whoami(self, context: Context) -> list[Any]:
        return [self._name, dict(context.headers)]

    async def fail(self, how: str) -> None:
        if how == "overloaded":
            raise Overloaded("no room", retry_after=2.5)
        if how == "mine":
            raise RemoteError("sold out", code="out_of_stock")
        raise ValueError(how)

    async def forever(self) -> None:
        self._started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self._ended.set()

    async def until_started(self) -> None:
        await self._started.wait()

    async def until_ended(self) -> None:
        await self._ended.wait()


@asynccontextmanager
async def serve(mesh: str, name: str = "server", **options: Any) -> AsyncIterator[Node]:
    """A node that serves `math`."""
    async with Node(name, mesh=mesh, drain=0, **options) as node:
        node.router("math").offer(Math(name))
        yield node


@asynccontextmanager
async def meet() -> AsyncIterator[Node]:
    """A node beside two others, a and b, that serve `math`."""
    async with serve("requests", "a", mdns=False) as first, serve("requests", "b", mdns=False) as second:
        seeds = [*first.endpoints, *second.endpoints]
        async with Node("client", mesh="requests", seeds=seeds, mdns=False, drain=0) as node:
            await node.wait_for(router="math", count=2, timeout=20)
            yield node


def question(method: str, *args: Any, service: str = "math", **changes: Any) -> Question:
    usual: dict[str, Any] = {"details": {}, "timeout_s": 20.0, "stream": False, "count": None, "json": False}
    return Question(service, method, list(args), **{**usual, "verbose": False, "kwargs": {}, **changes})


# -- request ---------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
async def test_results_are_lines(capfd: pytest.CaptureFixture[str]) -> None:
    async with meet() as client:
        details = {"headers": {"x": "1"}, "peer": "b", "key": "k"}
        for asked, line in (
            (question("add", 2, 3), "5"),
            (question("add", 2, json=True, kwargs={"b": 4}), '{"result":6}'),
            (question("whoami", details=details), '["b",{"x":"1"}]'),
            (question("count", 3, stream=True), "0\n1\n2"),
            (question("count", 2, stream=True, json=True), '{"item":0}\n{"item":1}'),
            (question("count", 10**9, stream=True, count=2), "0\n1"),
            (question("words", stream=True), "a\\nb\n\\u001b"),
            (question("text"), "a\nb"),
            (question("total", details={"items": iter([1, 2, 39])}), "42"),
        ):
            assert await ask(client, asked, Stop()) == 0
            assert capfd.readouterr() == (f"{line}\n", "")


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        (question("fail", "oops"), 3, "meshmsg: ValueError: oops\n"),
        (question("fail", "mine"), 3, "RemoteError: sold out"),
        (question("fail", "overloaded"), 1, "Overloaded: no room"),
        (question("add", "two"), 2, "BadRequest: math.add: argument 'a' takes int"),
        (question("count", "x", stream=True), 2, "BadRequest: math.count: argument 'n' takes int"),
        (question("add", b"x" * 70_000_000), 2, "BodyTooLarge: math.add: arguments of 70"),
        (question("nope"), 2, "NoSuchMethod: math.nope: no such method"),
        (question("forever", timeout_s=0.2), 1, "DeadlineExceeded"),
        (question("add", service="other", timeout_s=0.1), 1, "waited 0.1 s for somebody who serves 'other'; 2 nodes"),
        (question("add", 1, details={"peer": "c"}, timeout_s=0.1), 1, "for node 'c', to serve 'math'"),
    ],
)
async def test_each_outcome_has_its_code(
    capfd: pytest.CaptureFixture[str], asked: Question, code: int, told: str
) -> None:
    async with meet() as client:
        assert await ask(client, asked, Stop()) == code
        output, errors = capfd.readouterr()
        assert output == ""
        assert told in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (question("count", 3), "math.count streams items: request it with --stream"),
        (question("add", 3, stream=True), "math.add gives one result: request it without --stream"),
        (question("total"), "takes a stream: request it with --items, an item a line of standard input"),
        (question("text", details={"items": iter([1])}), "leave out --items; its arguments are () -> str"),
        (question("forever", timeout_s=0.3), "math.forever brought no answer within 0.3 s"),
        (question("add", service="other", timeout_s=0.1), "nobody offers 'other'"),
    ],
)
async def test_errors_speak_of_options(capfd: pytest.CaptureFixture[str], asked: Question, told: str) -> None:
    async with meet() as client:
        await ask(client, asked, Stop())
        assert capfd.readouterr().err.splitlines()[-1].endswith(told)


async def test_lines_are_items_as_arguments_are(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[bytes] = []

    async def read_lines() -> AsyncIterator[bytes]:
        for line in lines:
            yield line

    monkeypatch.setattr(request, "LinesIn", read_lines)
    async with meet() as client:
        lines[:] = [b"1", b"", b"41"]
        assert await ask(client, question("total", details={"items": request.read_items(as_json=True)}), Stop()) == 0
        lines[:] = [b"1", b"41"]
        assert await ask(client, question("total", details={"items": request.read_items(as_json=False)}), Stop()) == 0
        assert capfd.readouterr() == ("42\n42\n", "")
        lines[:] = [b"two", b"007", b'"1"', b"\xff", b""]
        assert [item async for item in request.read_items(as_json=False)] == ["two", "007", "1", b"\xff", ""]
        for as_json, wrong in ((False, b"[1"), (True, b"two")):
            lines[:] = [b"1", wrong]
            with pytest.raises(click.UsageError, match="line 2 is not JSON"):
                await ask(client, question("total", details={"items": request.read_items(as_json)}), Stop())


async def test_results_do_not_steer_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    async with meet() as client:
        for how, line in (
            ("\x1b[31m\ta\nb\r", "\\u001b[31m\ta\nb\\r"),
            (b"\x1b\n\xc3\xa4", "\\u001b\n\u00e4"),
            (["\x9b"], '["\\u009b"]'),
        ):
            assert await ask(client, question("same", how, screen=True), Stop()) == 0
            assert capfd.readouterr() == (f"{line}\n", "")
        await ask(client, question("same", "\x9b", screen=True, json=True), Stop())
        assert capfd.readouterr() == ('{"result":"\\u009b"}\n', "")
        await ask(client, question("same", "\x1b"), Stop())
        assert capfd.readouterr() == ("\x1b\n", "")
        await ask(client, question("fail", "a\x1b\nb", verbose=True), Stop())
        told = capfd.readouterr().err
        assert told.startswith("meshmsg: ValueError: a\\u001b\\nb\nTraceback") and "\x1b" not in told


async def test_errors_as_json_have_their_fields(capfd: pytest.CaptureFixture[str]) -> None:
    async with meet() as client:
        found = []
        for how in ("overloaded", "mine", "oops"):
            await ask(client, question("fail", how, json=True, details={"peer": "a"}), Stop())
            found.append(json.loads(capfd.readouterr().out)["error"])
        overloaded, mine, raised = found
        assert (overloaded["code"], overloaded["retry_after"], overloaded["peer"]) == ("overloaded", 2.5, "a")
        assert (mine["code"], mine["message"], mine["traceback"]) == ("out_of_stock", "sold out", None)
        assert (raised["code"], raised["type"]) == ("error", "ValueError") and "raise ValueError" in raised["traceback"]


async def test_a_traceback_is_for_who_asks_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    async with meet() as client:
        await ask(client, question("fail", "oops", verbose=True), Stop())
        assert "meshmsg: ValueError: oops\nTraceback" in capfd.readouterr().err


async def test_a_stop_gives_up() -> None:
    async with meet() as client:
        for asked in (question("forever"), question("nobody", service="other"), question("forever", stream=True)):
            stop = Stop()
            asking = asyncio.ensure_future(ask(client, asked, stop))
            await asyncio.sleep(0)
            stop.on_signal()
            assert await asking == 130


@pytest.mark.guarantee("G8")
async def test_processes_request_and_cancel(shell: Shell) -> None:
    waiting = shell.start("request", "math.add", "-2", "5", *PATIENT)
    assert waiting.stderr is not None
    line = await asyncio.to_thread(waiting.stderr.readline)
    assert line.startswith(b"meshmsg: waiting: for somebody who serves 'math'; 0 nodes seen")
    async with serve(shell.mesh) as node, asyncio.timeout(30):
        found = await asyncio.to_thread(finish, waiting)
        assert (found.code, found.stdout, found.stderr) == (0, "3\n", "")
        forever = shell.start("request", "math.forever", "--timeout", "60")
        total = shell.start("request", "math.total", "--items", "--json", stdin=b"1\n\n2\n39\n")
        endless = shell.start("request", "math.count", "1000000", "--stream")
        assert (await asyncio.to_thread(finish, total)).lines == ['{"result":42}']
        assert await asyncio.to_thread(read_line, endless) == "0"
        assert endless.stdout is not None and endless.stderr is not None
        endless.stdout.close()
        assert await asyncio.to_thread(endless.wait, 30) == 0
        assert endless.stderr.read() == b""
        dealer = node.dealer("math", timeout=20)
        await dealer.until_started()
        ended = await asyncio.to_thread(interrupt, forever)
        await dealer.until_ended()
    assert (ended.code, ended.stdout, ended.stderr) == (130, "", "")


# -- survey ----------------------------------------------------------------------------------------------------


async def test_a_survey_has_a_line_of_each(capfd: pytest.CaptureFixture[str]) -> None:
    async with meet() as client:
        dealer = client.dealer("math")

        async def survey(
            method: str, *args: Any, timeout_s: float = 20.0, as_json: bool = False
        ) -> tuple[int, list[str]]:
            code = await print_answers(dealer, (method, list(args), {}), timeout_s, as_json=as_json)
            return code, sorted(capfd.readouterr().out.splitlines())

        assert await survey("add", 2, 3) == (0, ["a  5", "b  5"])
        code, lines = await survey("add", 2, as_json=True)
        answers = [json.loads(line) for line in lines]
        assert [(each["peer"], each["result"], len(each["id"])) for each in answers] == [("a", 3, 32), ("b", 3, 32)]
        code, lines = await survey("nope")
        assert code == 2
        assert [line.partition(" it has")[0] for line in lines] == [
            f"{name}  error: NoSuchMethod: math.nope: no such method:" for name in "ab"
        ]
        for method, args, told in (("count", [2], "--stream --peer NODE`"), ("total", [], "--items --peer NODE`")):
            code, lines = await survey(method, *args)
            assert code == 2 and [f"`meshmsg request {told}" in line for line in lines] == [True] * 2
        code, lines = await survey("fail", "oops", as_json=True)
        assert code == 3 and [json.loads(line)["error"]["type"] for line in lines] == ["ValueError"] * 2
        code, lines = await survey("forever", timeout_s=0.1)
        assert code == 1 and "DeadlineExceeded" in lines[0] and len(lines) == 2


async def test_a_process_surveys_everybody(shell: Shell) -> None:
    async with serve(shell.mesh, "a"), serve(shell.mesh, "b"):
        process = shell.start("survey", "math.add", "2", "b=3", "-n", "2", *PATIENT)
        ended = await asyncio.to_thread(finish, process)
    assert (ended.code, sorted(ended.lines), ended.stderr) == (0, ["a  5", "b  5"], "")


async def test_nobody_to_ask_is_an_exit_code(shell: Shell) -> None:
    async with meet() as client:
        assert await find(client, "math", 2, 5.0) is None
        missing = await find(client, "math", 3, 0.1)
    assert missing == "waited 0.1 s for 3 nodes that serve 'math'; 2 nodes seen in mesh 'requests'"
    ended = await asyncio.to_thread(shell.run, "survey", "math.add", "--timeout", "0.2")
    assert (ended.code, ended.stdout) == (1, "") and "NoResponders" in ended.stderr


# -- reply -----------------------------------------------------------------------------------------------------


def offer(shell: Shell, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `meshmsg reply` and wait until it is there."""
    process = shell.start("reply", *arguments)
    assert process.stderr is not None
    assert b"is offered until Ctrl-C" in process.stderr.readline()
    return process


async def test_commands_and_constants_answer(shell: Shell) -> None:
    processes = [
        shell.start("reply", "math", "add", "--json", "-n", "2", "--", sys.executable, "-c", SUM),
        shell.start("reply", "sky", "color", "--value", "blue"),
        shell.start("reply", "host", "echo", "--", "cat"),
    ]
    async with Node("asking", mesh=shell.mesh) as node:
        for name in ("math", "sky", "host"):
            await node.wait_for(router=name, timeout=30)
        math, sky, host = (node.dealer(name, timeout=20) for name in ("math", "sky", "host"))
        assert [await math.add(2, 3), await math.add(20), await sky.color()] == [5, 20, "blue"]
        document = json.loads(await host.request("echo", "a", b=[1], headers={"x": 1}, timeout=15))
        assert 0 < document.pop("remaining") <= 15
        assert document == {"args": ["a"], "kwargs": {"b": [1]}, "headers": {"x": 1}, "caller": "asking"}
    assert (await asyncio.to_thread(finish, processes[0])).code == 0  # it answered twice
    assert (await asyncio.to_thread(interrupt, processes[1])).code == 0


@pytest.mark.guarantee("G8", "G10")
async def test_commands_are_killed_with_the_request_and_end_with_the_process(shell: Shell, tmp_path: Path) -> None:
    told, go = tmp_path / "pid", tmp_path / "go"
    begin = f"sleep 60 > /dev/null 2>&1 & echo $! > {told}.new; mv {told}.new {told}"
    line = f"{begin}; while ! test -e {go}; do sleep 0.01; done; kill $!; echo done"
    server = offer(shell, "job", "run", "--", line)
    async with Node("asking", mesh=shell.mesh) as node:
        await node.wait_for(router="job", timeout=30)
        job = node.dealer("job", timeout=30)
        asking = asyncio.ensure_future(job.run())
        await asyncio.to_thread(wait_until, told.exists, "the command has begun")
        child = int(told.read_text())
        assert runs(child)
        asking.cancel()
        await asyncio.to_thread(wait_until, lambda: not runs(child), "the command's own child is gone")
        told.unlink()
        asking = asyncio.ensure_future(job.run())
        await asyncio.to_thread(wait_until, told.exists, "the command has begun again")
        server.send_signal(signal.SIGINT)
        go.touch()
        assert await asking == "done"
    assert (await asyncio.to_thread(finish, server)).code == 0


@pytest.mark.parametrize(
    ("words", "error", "code"),
    [
        (["echo oops >&2; exit 7"], "exit code 7: oops", "exit_7"),
        (["exit 1"], "exit code 1", "exit_1"),
        (["kill -9 $$"], "signal 9", "exit_-9"),
        (["/nowhere/at/all", "x"], "/nowhere/at/all: No such file or directory", "no_command"),
        (["echo oops"], "the command's output is not JSON: Expecting value", "error"),
    ],
)
async def test_commands_that_cannot_answer_fail_the_request(words: list[str], error: str, code: str) -> None:
    command = Command(words, as_json=True, concurrency=1)
    with pytest.raises(RemoteError) as raised:
        await command.run(b"{}\n")
    command.close()
    assert str(raised.value).startswith(error) and raised.value.code == code


@pytest.mark.parametrize("words", [["echo $0 '*'; echo"], ["printf", "%s\n\n", "*"]])
async def test_one_word_is_a_line_for_the_shell(words: list[str]) -> None:
    command = Command(words, as_json=False, concurrency=1)
    assert (await command.run(b"")).rpartition(" ")[2] == "*\n"
    command.close()


def test_the_last_answer_that_is_wanted_ends_it() -> None:
    stop = Stop()
    replies = Replies(stop, 2)
    replies.begin()
    replies.begin()
    replies.end()
    with pytest.raises(ConnectionError, match="as often as it was to"):
        replies.begin()
    assert not stop.requested
    replies.end()
    assert stop.requested


# -- services --------------------------------------------------------------------------------------------------


async def test_services_say_what_they_have() -> None:
    async with meet() as client:
        assert list(services.tabulate(services.describe(client))) == [("math", "a, b")]
        await client.dealer("math").add(1, peer="a")
        document = await services.inquire(client, methods=True, stats=True)
        rows = services.tabulate_methods(document)
        assert ("math", "add(a: int, b: int = 1) -> int", "a, b", "Adds two numbers.") in rows
        names = [row[1].partition("(")[0] for row in rows]
        assert names == [
            "add",
            "count",
            "fail",
            "forever",
            "same",
            "text",
            "total",
            "until_ended",
            "until_started",
            "whoami",
            "words",
        ]
        assert any(row[1].endswith("[streams]") for row in rows) and any(
            row[1].endswith("[takes items]") for row in rows
        )
        counts = [[*row[:4], *row[5:]] for row in services.tabulate_stats(document)]
        assert counts == [["math", "a", "1", "0", "0", "0", "-"], ["math", "b", "0", "0", "0", "0", "-"]]
        by_method = [row[:5] for row in services.tabulate_both(document) if row[2].startswith("add")]
        assert by_method == [("math", name, "add(a: int, b: int = 1) -> int", made, "0") for name, made in ("a1", "b0")]


async def test_a_watch_shows_who_comes_and_who_serves(shell: Shell) -> None:
    watch = shell.start("services", "--watch", "--json", "--methods", "--timeout", "0.1")

    async def next_line() -> Any:
        return json.loads(await asyncio.to_thread(read_line, watch))["services"]

    assert await next_line() == []
    async with Node("server", mesh=shell.mesh) as node:
        router = node.router("math")
        router.method(len, name="length")
        while not (seen := await next_line()):
            pass
        assert [(each["service"], each["providers"][0]["serving"]) for each in seen] == [("math", True)]
        assert [each["name"] for each in seen[0]["providers"][0]["methods"]] == ["length"]
        router.serving = False
        [service] = await next_line()
        assert service["providers"][0]["serving"] is False
        found = await asyncio.to_thread(finish, shell.start("services", *PATIENT))
    assert await next_line() == []
    assert (await asyncio.to_thread(interrupt, watch)).code == 0
    assert [line.split() for line in found.lines] == [["service", "providers"], ["math", "server", "(not", "serving)"]]


def test_an_empty_mesh_has_no_services(shell: Shell) -> None:
    ended = shell.run("services", "--timeout", "0.1", "--json", "--stats")
    assert (ended.code, json.loads(ended.stdout)) == (1, {"mesh": shell.mesh, "services": []})


class Seen:
    """Stands for a node that sees these peers."""

    mesh = "m"

    def __init__(self, *peers: Peer) -> None:
        self._peers = peers

    def peers(self) -> tuple[Peer, ...]:
        return self._peers


def test_who_does_not_answer_is_listed_all_the_same() -> None:
    peers = [Peer(f"id-{name}", name, "suspect", (), {"router": {"s": {}}}, 0.0) for name in "ab"]
    node: Any = Seen(*peers)
    document = services.describe(node)
    first, second = document["services"][0]["providers"]
    first["error"] = "PeerLost: gone"
    second |= services.read_info({"methods": [{"name": "ping"}, {"name": "f", "signature": "()", "takes_items": True}]})
    assert list(services.tabulate(document)) == [("s", "a (suspect), b (suspect)")]
    assert list(services.tabulate_methods(document)) == [
        ("s", "-", "a (suspect)", "PeerLost: gone"),
        ("s", "f() [takes items]", "b (suspect)", ""),
    ]
    assert [row[-1] for row in services.tabulate_stats(document)] == ["PeerLost: gone", "-"]
    assert [row[2] for row in services.tabulate_both(document)] == ["-", "f() [takes items]"]


STRANGE: list[Any] = [
    {},
    {"methods": 7},
    {"methods": [{}]},
    None,
    {"methods": {"x": None}, "running": "x"},
    {"methods": ["x"]},
]


@pytest.mark.parametrize("told", STRANGE)
@pytest.mark.parametrize("wanted", ["info", "stats"])
async def test_strange_answers_do_no_harm(told: Any, wanted: str) -> None:
    class Answering:
        """Stands for a dealer whose answers are known."""

        async def request(self, *args: Any, **kwargs: Any) -> Any:
            return told

    class Knowing:
        """Stands for a node."""

        def dealer(self, service: str) -> Answering:
            return Answering()

    node: Any = Knowing()
    provider: dict[str, Any] = {"id": "x"}
    await services.ask(node, "s", provider, [wanted])
    assert "something else than expected" in provider["error"]


# -- words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        (["2", "-2.5", "null", "true"], [2, -2.5, None, True], {}),
        (["Ada", "a b", "", "007", "http://x/?a=b"], ["Ada", "a b", "", "007", "http://x/?a=b"], {}),
        (['"2"', '{"a": 1}', "[1]", '"a=b"'], ["2", {"a": 1}, [1], "a=b"], {}),
        (["1", "x=2", "y=Ada", "ü==", "_z="], [1], {"x": 2, "y": "Ada", "ü": "=", "_z": ""}),
    ],
)
def test_words_are_arguments(words: list[str], args: list[Any], kwargs: dict[str, Any]) -> None:
    assert parse_arguments(words) == (args, kwargs)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["1", "{oops"], "argument 2 is not JSON: Expecting property name"),
        (['"open'], "argument 1 is not JSON"),
        (["x=[1"], "argument 'x' is not JSON"),
        (["x=1", "2"], "argument 2 (2) comes after those with names"),
        (["x=1", "x=2"], "given twice"),
        (["key=5"], 'as JSON: "key=5"'),
        (["[" * 100_000], "argument 1 is not JSON"),
    ],
)
def test_words_that_cannot_be_meant(words: list[str], error: str) -> None:
    with pytest.raises(click.UsageError) as raised:
        parse_arguments(words)
    assert error in raised.value.message


@pytest.mark.parametrize("text", ["add", ".add", "math.", ""])
def test_a_target_has_a_service_and_a_method(text: str) -> None:
    with pytest.raises(click.UsageError, match=r"SERVICE\.METHOD"):
        parse_target(text)


def test_errors_for_people_stay_on_one_line() -> None:
    error = RemoteError("a\nb", type="KeyError", remote_traceback="Traceback …\n")
    assert explain(error) == r"KeyError: a\nb"
    assert explain(error, verbose=True) == "KeyError: a\\nb\nTraceback …"
    assert describe_error(error) == {
        "code": "error",
        "type": "KeyError",
        "message": "a\nb",
        "peer": None,
        "traceback": "Traceback …\n",
    }


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("request", "math"), "'math' is not SERVICE.METHOD"),
        (("request", "math.add", "--oops"), "No such option '--oops'"),
        (("request", "math.add", "-n", "2"), "--count is for --stream"),
        (("request", "a b.c"), "without white space"),
        (("reply", "math", "add"), "give either a command, after --, or --value"),
        (("reply", "math", "add", "--value", "1", "--", "date"), "give either a command, after --, or --value"),
        (("reply", "math", "ping", "--value", "1"), "has 'ping' already"),
        (("reply", "math", "add", "--value", "{"), "--value is not JSON"),
    ],
)
def test_what_cannot_work_is_wrong_use(arguments: tuple[str, ...], error: str) -> None:
    outcome = CliRunner().invoke(meshmsg, [*arguments], env={"MESHMSG_MESH": "wrong-use"})
    assert outcome.exit_code == 2
    assert error in outcome.output and "Traceback" not in outcome.output

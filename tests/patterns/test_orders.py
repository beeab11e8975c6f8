"""The order system: each order's effects once, whatever is killed; mails that failed are worked off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.patterns.programs import DEADLINE_S, ROOT

PROGRAM = ROOT / "examples" / "orders.py"
LOOK_AGAIN_S = 0.02


class Shop:
    """All processes of a shop, and a client of its front end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outbox = folder / "outbox"
        self.processes: list[subprocess.Popen[str]] = []
        self._mesh = f"orders-{os.getpid()}-{folder.name}"
        self.inventories = [self.start("inventory", folder / "stock.db") for _ in range(2)]
        self.start("payment", folder / "payments.db")
        self.start("mail", self.outbox)
        front = self.start("front", "--port", "0")
        assert front.stdout is not None
        self.client = httpx.Client(base_url=front.stdout.readline().strip(), timeout=DEADLINE_S, trust_env=False)
        self.until(lambda: len(self.get("/health")["inventory"]) == 2 and len(self.get("/health")["payment"]) == 1)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """One process of the shop."""
        command = [sys.executable, str(PROGRAM), "--mesh", self._mesh, *map(str, arguments)]
        self.processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return self.processes[-1]

    def get(self, path: str) -> Any:
        """What the front end shows."""
        return self.client.get(path).json()

    def order(self, article: str, *, card: str = "4242", id: str | None = None, count: int = 1) -> httpx.Response:
        """Orders something."""
        wanted = {"article": article, "count": count, "card": card, "email": "ada@example.org"}
        return self.client.post("/orders", json=wanted, headers={"Idempotency-Key": id} if id else {})

    def mails(self) -> set[str]:
        """Ids of the orders whose mails were sent."""
        return {path.stem for path in self.outbox.glob("*.txt")}

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something has happened in another process."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {DEADLINE_S} s in vain"
            time.sleep(LOOK_AGAIN_S)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.client.close()
    for process in shop.processes:
        process.terminate()
    for process in shop.processes:
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode in (0, -9, -15), (process.args, output)


@pytest.mark.guarantee("G1", "G7", "G8")
def test_every_order_has_its_effects_once(shop: Shop) -> None:
    placed = shop.order("lamp", id="first")
    assert (placed.status_code, placed.json()) == (201, {"id": "first", "cents": 4900})
    assert shop.order("lamp", id="first").status_code == 201  # a browser that repeats itself
    assert shop.order("lamp", id="first", card="none").status_code == 201  # paid is paid
    assert shop.get("/stock") == {"lamp": 4, "chair": 5, "poster": 5}
    shop.until(lambda: shop.mails() == {"first"})

    declined = shop.order("lamp", card="none")
    assert (declined.status_code, declined.json()["error"]) == (402, "declined")
    assert shop.order("lamp", count=50).json()["error"] == "out_of_stock"
    assert shop.order("piano").status_code == 404
    wrong = shop.order("lamp", count="many")  # type: ignore[arg-type]
    assert wrong.status_code == 400 and "an order has 'count', of type int" in wrong.json()["text"]
    negative = shop.order("lamp", count=-1)
    assert (negative.status_code, negative.json()["error"]) == (400, "bad_request")
    for body in (b"{", b"\xff", b"[" * 100_000, b"[]", b'{"article": "lamp", "count": 1, "card": "4242"}'):
        assert shop.client.post("/orders", content=body).status_code == 400
    assert shop.get("/stock")["lamp"] == 4  # what was reserved for the declined one is back

    (shop.outbox / "down").touch()
    assert shop.order("chair", id="late").status_code == 201
    shop.until(lambda: [letter["order"] for letter in shop.get("/dead-letters")] == ["late"])
    assert "the mail server does not answer" in shop.get("/dead-letters")[0]["error"]
    assert shop.mails() == {"first"}
    (shop.outbox / "down").unlink()
    assert len(shop.client.post("/dead-letters").json()["again"]) == 1
    shop.until(lambda: shop.mails() == {"first", "late"})
    assert shop.get("/dead-letters") == []

    def order(number: int) -> int:
        if number == 4:
            shop.inventories[0].kill()
        return shop.order(("lamp", "chair", "poster")[number % 3], id=f"order-{number}").status_code

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(order, range(12))) == {201}
    # Each took its goods once, although some of the requests were made twice.
    assert shop.get("/stock") == {"lamp": 0, "chair": 0, "poster": 1}
    shop.until(lambda: shop.mails() == {"first", "late", *(f"order-{number}" for number in range(12))})
    shop.inventories[1].kill()
    shop.until(lambda: shop.client.get("/health").status_code == 503)
    nobody = shop.order("lamp")
    assert (nobody.status_code, nobody.json()["error"]) == (503, "no_responders")

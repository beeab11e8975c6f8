"""Multicast DNS on the network, through zeroconf. The only file that imports zeroconf.

Nodes announce ``<node id>._meshmsg._tcp.local.``; any DNS-SD browser shows them. What is heard goes through
``announcement`` (is it for us, may we dial it) and ``known`` (is it new), and is not trusted beyond that.

How fast: an announcement carries all its records, so those who listen know the node from that one packet,
without asking back. The other way round, a newcomer asks at once and, by RFC 6762, gets its answers after 20
to 120 ms, or a second later from those who announced themselves within the last second. On loopback, where
the wait spares nobody, a node that sees a newcomer announces itself again at once (``_greet``).
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket

from zeroconf import DNSQuestionType, ServiceInfo, ServiceStateChange, Zeroconf
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from meshmsg.discovery.announcement import (
    SERVICE_TYPE,
    Ignored,
    encode_text,
    node_id_of,
    read_announcement,
)
from meshmsg.discovery.interfaces import (
    describe_interfaces,
    follow_addresses,
    interface_of,
    present_addresses,
)
from meshmsg.discovery.known import KnownNodes
from meshmsg.discovery.presence import Presence
from meshmsg.errors import DiscoveryUnavailable

logger = logging.getLogger("meshmsg.discovery")

ANNOUNCED_FOR_S = 1125  # after a crash; the least that zeroconf's cache takes for a PTR record
CLOSE_TIMEOUT_S = 1.0
RECEIVE_BUFFER_BYTES = 1 << 20
GOODBYES_ON_NETWORK = 3  # packets get lost there; RFC 6762, 10.1 asks for one, which does on loopback
GOODBYE_SPACING_S = 0.1
LOOK_UP_TIMEOUT_S = 3.0
MAX_LOOK_UPS = 64  # at a time; an announcement without its other records could otherwise start any number
SETTLE_S = 1.2  # replaced records live one more second in caches (RFC 6762, 10.2)
GREETING_JITTER_S = 0.02
GREETING_SPACING_S = 0.1
DEAF_AFTER_S = 2.0


class Responder:
    """Announces one presence and reports to ``known`` whom it hears. Silent once ``known`` is closed."""

    def __init__(self, presence: Presence, known: KnownNodes) -> None:
        self._presence = presence
        self._known = known
        self._is_local = presence.is_local
        self._reach = presence.reach
        self._service = ServiceInfo(
            SERVICE_TYPE,
            f"{presence.node_id}.{SERVICE_TYPE}",
            port=presence.port,
            properties=encode_text(
                mesh=presence.mesh, node_id=presence.node_id, name=presence.name, run=secrets.token_hex(4)
            ),
            parsed_addresses=list(presence.addresses),
            other_ttl=ANNOUNCED_FOR_S,
        )
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._look_ups: dict[str, asyncio.Task[None]] = {}
        self._settling: dict[str, asyncio.TimerHandle] = {}
        self._greeting: asyncio.TimerHandle | None = None
        self._next_greeting_at = 0.0
        self._deaf_timer: asyncio.TimerHandle | None = None

    # Opening and closing

    async def open(self) -> None:
        """Listen, ask and announce. Raises ``DiscoveryUnavailable``; ``close`` is due in any case."""
        try:
            zeroconf = await self._open_sockets()
            if not self._known.is_closed:
                await self._announce(zeroconf)
        except (OSError, RuntimeError, ZeroconfError) as error:
            raise _unavailable(self._presence, error) from error

    async def close(self) -> None:
        """Say goodbye and stop. No more is reported and no more look-ups start once ``known`` is closed."""
        for timer in (self._greeting, self._deaf_timer, *self._settling.values()):
            if timer is not None:
                timer.cancel()
        self._settling.clear()
        pending = [*self._tasks, *self._look_ups.values()]
        for task in pending:
            task.cancel()
        if self._zeroconf is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if self._browser is not None:
                    await self._browser.async_cancel()
                await self._say_goodbye(self._zeroconf.zeroconf)
                await asyncio.gather(*pending, return_exceptions=True)
                await self._zeroconf.async_close()
        except TimeoutError:
            logger.warning("mDNS did not close within %g s; its sockets close with the process", CLOSE_TIMEOUT_S)

    async def _open_sockets(self) -> Zeroconf:
        present = present_addresses(self._presence.interfaces)
        if not present:
            raise OSError(f"none of these addresses is here now; there are {describe_interfaces()}")
        self._zeroconf = AsyncZeroconf(interfaces=present)
        zeroconf = self._zeroconf.zeroconf
        await zeroconf.async_wait_for_start()
        if not zeroconf.engine.senders:
            raise OSError("no interface took part in multicast")
        _widen_receive_buffers(zeroconf)
        if self._is_local:
            _confine_to_loopback(zeroconf)
        return zeroconf

    async def _announce(self, zeroconf: Zeroconf) -> None:
        presence = self._presence
        self._deaf_timer = asyncio.get_running_loop().call_later(DEAF_AFTER_S, self._report_deafness)
        # Multicast questions (QM): an answer to a QU question goes to port 5353 of one address, which all
        # processes of a machine share, so that the kernel hands it to any one of them.
        self._browser = AsyncServiceBrowser(
            zeroconf, SERVICE_TYPE, handlers=[self._on_change], question_type=DNSQuestionType.QM
        )
        # The id is unique, so the 1.2 s of probing for other owners of the name are not needed. The first
        # packet leaves within this call, two repetitions follow in the returned task.
        repetitions = await zeroconf.async_register_service(self._service, cooperating_responders=True)
        self._keep(asyncio.ensure_future(repetitions))
        if not self._is_local:
            self._keep(asyncio.ensure_future(follow_addresses(presence.interfaces, self._move_to)))
        logger.debug("announcing %s of mesh %r on %s", presence.node_id, presence.mesh, ", ".join(presence.interfaces))

    async def _say_goodbye(self, zeroconf: Zeroconf) -> None:
        # zeroconf's own way takes 0.25 s, which every command line tool would wait at its end.
        goodbye = zeroconf.generate_unregister_all_services()
        if goodbye is None:
            return
        zeroconf.async_send(goodbye)
        for _ in range(0 if self._is_local else GOODBYES_ON_NETWORK - 1):
            await asyncio.sleep(GOODBYE_SPACING_S)
            zeroconf.async_send(goodbye)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _move_to(self, present: list[str]) -> None:
        assert self._zeroconf is not None
        logger.info("the interfaces for mDNS changed: %s", ", ".join(present) or "none is left")
        try:
            await self._zeroconf.async_update_interfaces(present)
        except (OSError, RuntimeError, ZeroconfError):
            logger.exception("mDNS could not follow the change of interfaces")

    def _report_deafness(self) -> None:
        logger.warning(
            "mDNS on %s does not even hear this node's own announcement, so it will find no peers: multicast "
            "seems to be blocked (a firewall, a container, a cloud network). Give seeds=[...] instead",
            ", ".join(self._presence.interfaces),
        )

    # What was heard

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Called by zeroconf's browser, inside the reading of a packet: must neither wait nor raise."""
        node_id = node_id_of(name)
        if node_id is None or self._known.is_closed:
            return
        if node_id == self._presence.node_id:
            if self._deaf_timer is not None:
                self._deaf_timer.cancel()
            return
        if state_change is ServiceStateChange.Removed:
            self._forget(node_id)
        elif node_id not in self._known:
            self._look_up(node_id)
        elif node_id not in self._settling:
            # One look now and one when replaced records have run out: a changed address is seen at once, the
            # end of the old one a little later, and a stream of changes costs two looks a second.
            self._look_up(node_id)
            loop = asyncio.get_running_loop()
            self._settling[node_id] = loop.call_later(SETTLE_S, self._settle, node_id)

    def _settle(self, node_id: str) -> None:
        self._settling.pop(node_id, None)
        self._look_up(node_id)

    def _forget(self, node_id: str) -> None:
        settling = self._settling.pop(node_id, None)
        if settling is not None:
            settling.cancel()
        look_up = self._look_ups.pop(node_id, None)
        if look_up is not None:
            look_up.cancel()
        self._known.withdraw(node_id)

    def _look_up(self, node_id: str) -> None:
        assert self._zeroconf is not None
        if not self._known.has_room_for(node_id):
            return
        service = AsyncServiceInfo(SERVICE_TYPE, f"{node_id}.{SERVICE_TYPE}")
        if service.load_from_cache(self._zeroconf.zeroconf):
            self._judge(node_id, service)
        elif node_id not in self._look_ups and len(self._look_ups) < MAX_LOOK_UPS:
            # Never inside the handler (python-zeroconf#783). What arrives later by itself calls the handler
            # again, so nothing is missed when there are too many.
            self._look_ups[node_id] = asyncio.ensure_future(self._ask(node_id, service))

    async def _ask(self, node_id: str, service: AsyncServiceInfo) -> None:
        assert self._zeroconf is not None
        try:
            complete = await service.async_request(
                self._zeroconf.zeroconf, LOOK_UP_TIMEOUT_S * 1000, DNSQuestionType.QM
            )
        except ZeroconfError as error:
            logger.debug("the look-up of %s failed: %s", node_id, error)
            complete = False
        finally:
            if self._look_ups.get(node_id) is asyncio.current_task():
                del self._look_ups[node_id]
        if complete:
            self._judge(node_id, service)

    def _judge(self, node_id: str, service: ServiceInfo) -> None:
        try:
            candidate = read_announcement(
                node_id=node_id,
                text=service.text,
                port=service.port,
                addresses=service.parsed_scoped_addresses(),
                mesh=self._presence.mesh,
                reach=self._reach,
            )
        except Ignored as reason:
            logger.debug("the announcement of %s is ignored: %s", node_id, reason)
            self._forget(node_id)
            return
        if self._known.report(candidate):
            self._greet()

    def _greet(self) -> None:
        """Announce ourselves again, once for all newcomers of the last moment."""
        if not self._is_local or self._greeting is not None:
            return
        loop = asyncio.get_running_loop()
        # The jitter keeps the answers of a large mesh from filling the newcomer's socket buffer in one go.
        jitter_s = random.uniform(0, GREETING_JITTER_S)
        at = max(loop.time(), self._next_greeting_at) + jitter_s
        self._next_greeting_at = at + GREETING_SPACING_S
        self._greeting = loop.call_at(at, self._send_greeting)

    def _send_greeting(self) -> None:
        assert self._zeroconf is not None
        self._greeting = None
        zeroconf = self._zeroconf.zeroconf
        zeroconf.async_send(zeroconf.generate_service_broadcast(self._service, None))


def _unavailable(presence: Presence, error: Exception) -> DiscoveryUnavailable:
    reason = str(error) or type(error).__name__
    return DiscoveryUnavailable(
        f"mDNS cannot run on {', '.join(presence.interfaces)}: {reason}. It needs multicast and UDP port "
        "5353, which another program may hold for itself (avahi: disallow-other-stacks). "
        "Nodes given in seeds=[...] are found without it"
    )


def _widen_receive_buffers(zeroconf: Zeroconf) -> None:
    """Room for the answers of some hundred nodes that arrive while this process is busy.

    What does not fit is lost, also on loopback; the default buffer holds about 250 announcements.
    """
    for reader in zeroconf.engine.readers:
        try:
            reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        except OSError as error:  # Linux takes what its limit allows, others refuse
            logger.debug("mDNS sockets keep their receive buffer: %s", error)


def _confine_to_loopback(zeroconf: Zeroconf) -> None:
    """Tie zeroconf's sockets to the loopback interface.

    Its listening socket is bound to every address, so although it joins the group on loopback only, it would
    hear (and answer) what other machines send to this one's port 5353, and groups that other programs joined.
    Linux can bind a socket to an interface, without privileges since 5.7; elsewhere what is heard is still
    filtered.
    """
    device = interface_of("127.0.0.1")
    bind_to_device = getattr(socket, "SO_BINDTODEVICE", None)
    if device is None or bind_to_device is None:
        return
    for reader in zeroconf.engine.readers:
        try:
            reader.sock.setsockopt(socket.SOL_SOCKET, bind_to_device, device.encode() + b"\0")
        except OSError as error:
            logger.debug("mDNS sockets are not tied to %s: %s", device, error)

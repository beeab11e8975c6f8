"""The same interface without ``async`` and ``await``: for scripts, threads, and WSGI services.

>>> from meshmsg.blocking import Node
>>> with Node("camera") as node:
...     print(node.name, node.peers())
camera []
"""

from meshmsg.blocking.dealer import Dealer, Incoming
from meshmsg.blocking.node import Events, Node
from meshmsg.blocking.pub_sub import GroupMember, Pub, Sub
from meshmsg.blocking.pull import Pull
from meshmsg.blocking.push import Push
from meshmsg.blocking.router import Router

__all__ = ["Dealer", "Events", "GroupMember", "Incoming", "Node", "Pub", "Pull", "Push", "Router", "Sub"]

"""The same interface without ``async`` and ``await``: for scripts, threads, and WSGI services.

>>> from meshmsg.blocking import Node
>>> with Node("camera") as node:
...     print(node.name, node.peers())
camera []
"""

from meshmsg.blocking.node import Events, Node
from meshmsg.blocking.pub_sub import GroupMember, Pub, Sub
from meshmsg.blocking.pull import Pull
from meshmsg.blocking.push import Push

__all__ = ["Events", "GroupMember", "Node", "Pub", "Pull", "Push", "Sub"]

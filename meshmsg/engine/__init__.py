"""The protocol as pure state machines: no socket, no loop, no thread, no clock (design: sections 4 and 6)."""

"""Where a node may be used: in its own thread and process."""

from __future__ import annotations

from meshmsg.driver import Driver


def require_here(driver: Driver) -> None:
    """Raises ``WrongThread`` or ``ForkedProcess``; before the start and after the close any thread may look."""
    if driver.usable:
        driver.require_usable()
    else:
        driver.require_process()


def require_loop_here(driver: Driver) -> None:
    """The same, and of two event loops of a thread only the node's own one: who waits in the other waits in vain."""
    require_here(driver)
    if driver.usable:
        driver.require_loop()

"""What operators see: events, ledgers, metrics."""

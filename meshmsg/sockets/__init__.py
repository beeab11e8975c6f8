"""What applications hold: one socket type a ZeroMQ pair, named after it."""

"""``meshmsg demo``: producers and workers as real processes, one of which is killed half way."""

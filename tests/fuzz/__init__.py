"""Feeds broken bytes to every parser of bytes from outside: `scripts/fuzz`."""

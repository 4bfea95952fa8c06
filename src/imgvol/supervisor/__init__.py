"""The process that outlives the daemon's crashes: docs/design/supervision.md.

It imports the standard library and `limits`, and of the former as little as it can: what is not
there cannot fail, and takes no memory while nothing happens.
"""

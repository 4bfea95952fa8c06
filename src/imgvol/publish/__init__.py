"""Makes what other nodes read: indexes, converted images, traces; and pushes it to registries.

What it makes is written by the pure writers of `layers.lazy` and `view`, from what the store has
or a source delivers; where it goes is a registry, by `registry.push`, or an OCI layout. Nothing
here is needed to mount an image or to read it: `images`, `volumes` and `fs` do not know this room.
"""

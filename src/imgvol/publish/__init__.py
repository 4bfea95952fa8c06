"""Makes what other nodes read: indexes, converted images and traces, and pushes them to registries.

Images are taken as `images` has them; what is made belongs to whoever pushes it. Heavy work runs in
helper processes (`worker`), never in the daemon.
"""

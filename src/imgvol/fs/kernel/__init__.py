"""The kernel's FUSE protocol, spoken by ourselves over /dev/fuse."""

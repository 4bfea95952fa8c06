"""The image service: resolve, pull, list, remove, look inside."""

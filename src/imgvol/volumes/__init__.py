"""Volumes: views bound at paths, and the mount syscalls that do it."""

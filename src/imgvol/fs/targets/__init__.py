"""Filesystems of their own for the targets of a user's volumes, all in the user's daemon."""

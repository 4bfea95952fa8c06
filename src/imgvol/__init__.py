"""imgvol presents container images as read-only directories."""

__version__ = "0.1.0"

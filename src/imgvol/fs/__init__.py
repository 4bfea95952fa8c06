"""The FUSE filesystem: thin handlers over open views, and what carries requests to them."""

"""The FUSE filesystem: thin pyfuse3 handlers over open views."""

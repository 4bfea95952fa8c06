"""The imgvol command. It reaches the daemon through the API only."""

"""Where image bytes come from: registry, OCI layout, docker-archive, behind one interface."""

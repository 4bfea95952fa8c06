"""The Kubernetes Container Runtime Interface, v1: the image service, over gRPC on a unix socket."""

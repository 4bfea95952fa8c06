"""Local state: blobs, layer stores and sqlite records. The durable truth."""

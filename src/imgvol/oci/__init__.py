"""The OCI image model: pure values and documents, no I/O."""

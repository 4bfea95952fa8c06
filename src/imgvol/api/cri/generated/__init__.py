"""What scripts/generate-proto makes of the files in ../proto."""

"""Layer formats, pure: compressed bytes in, tar entries and a LayerIndex out."""

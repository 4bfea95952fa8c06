"""The merge, pure: LayerIndexes become one ChainView, as an overlay would show them."""

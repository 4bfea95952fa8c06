"""Layers known from a table of contents, before any of their content has arrived.

Pure, as all of `imgvol.layers`: bytes in; a LayerIndex and a SpanTable out (`spans`).
"""

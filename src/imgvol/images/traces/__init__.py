"""Traces: what a start reads is recorded, kept, and brought in that order the next time.

**Recording**: notes of opens and reads while somebody traces a view. **Trace**: the document
(`view.trace`). **Run**: bringing what a trace names, for one view, from the mount on.

A trace decides what is fetched first and nothing else: each span is verified as ever, and readers
come first. A wrong trace wastes bandwidth, and one from a registry only so much of it.
"""

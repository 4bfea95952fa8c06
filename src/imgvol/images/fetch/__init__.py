"""Brings the missing spans of lazy layers: each once, whoever waits for it, and the rest behind.

Theory of operation. A reader names the spans that it misses (`layer.LayerFetcher.ensure`). Those
that are under way already are waited for; the others are put together into ranges, one *flight*
each: neighbours in one, and a flight that would be small takes the spans behind it along, as far as
asking costs more than receiving and as long as what was taken along so far has been of use. A
flight belongs to the engine, not to the reader who caused it: it ends early only when the last of
its readers has gone. Bytes are shown to readers after their span's digest has been checked.

Flights have a rank: what a reader waits for comes before what a sequential reader will want, that
before what the image's maker marked, that before the rest. A flight of low rank gives way where it
would cost a reader more time than asking for the rest again: what it has brought is kept, and the
next flight goes on at that byte.

A flight that failed because the registry did fails for all that wait; for a moment others then fail
at once, so that an outage does not become a storm of retries. Readers of layers whose volumes want
it so wait and try again instead, up to a deadline.
"""

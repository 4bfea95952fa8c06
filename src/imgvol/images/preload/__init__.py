"""Images that are put into a directory, as archives or as lists of names, are in the store.

What the directory has is read by `scan`, `lists` and `cache_file`; when it changes, `watch` tells,
and `settling` waits until files have been written; `retag` makes names under other registries;
`loading` brings one file into the store, and `preloader` all of them.
"""

"""Writers of lazy layers: the tar of a layer in, an eStargz or zstd:chunked blob out."""

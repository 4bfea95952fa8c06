"""Every bound on what comes from outside, each with where its value comes from.

Sizes are bytes, durations seconds, unless a name says otherwise. Nothing here may depend on input.
"""

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# --- documents -------------------------------------------------------------------------------
# containerd and containers/image cap manifests at 4 MiB; registries refuse larger ones.
MANIFEST_SIZE: Final = 4 * MIB
# Configs carry history and labels; containers/image reads at most 4 MiB, we leave room.
CONFIG_SIZE: Final = 8 * MIB
# Deeper nesting has no use in any image document, and recursion costs stack.
JSON_DEPTH: Final = 32
# Values in one document: an index of 1,000 platforms is far below.
JSON_VALUES: Final = 200_000
# image-spec gives no bound; containerd's own suites mount 128 layers. Inode numbers hold 8 bits (view.inodes).
LAYERS: Final = 256
# An index inside an index inside an index is already beyond what any tool writes.
INDEX_DEPTH: Final = 4
# Descriptors of one index.
INDEX_MANIFESTS: Final = 1_000
# distribution/reference: the path part of a name.
REPOSITORY_NAME_LENGTH: Final = 255
REFERENCE_LENGTH: Final = 4096

# --- tar (Go archive/tar: maxSpecialFileSize, sparse map cap of CVE-2025-58183) -----------------
TAR_SPECIAL_SIZE: Final = 1 * MIB
TAR_SPARSE_PIECES: Final = 100_000
TAR_ENTRIES: Final = 4_000_000
# The largest layers in the wild hold a few hundred GiB (model weights).
TAR_SIZE: Final = 1024 * GIB
# Linux: PATH_MAX, NAME_MAX, and what FUSE accepts for a symbolic link.
PATH_LENGTH: Final = 4096
NAME_LENGTH: Final = 255
SYMLINK_LENGTH: Final = 4095
# Directories deeper than PATH_MAX/2 cannot be named.
PATH_DEPTH: Final = 2048
SYMLINKS_FOLLOWED: Final = 40  # Linux MAXSYMLINKS
# Linux: XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX.
XATTR_NAME_LENGTH: Final = 255
XATTR_VALUE_SIZE: Final = 64 * KIB
XATTR_LIST_SIZE: Final = 64 * KIB
# Names of all entries, in all: 4 million entries at 64 bytes.
INDEX_STRINGS_SIZE: Final = 256 * MIB

# --- decompression --------------------------------------------------------------------------
# What one step of a decoder may give: bounds memory however the input is made.
DECODED_PIECE: Final = 512 * KIB
# Real layers reach about 100 (logs, zero-filled images); deflate's ceiling is 1032.
DECOMPRESSION_RATIO: Final = 1100
# zstd can compress zeros by 30,000: below this size the ratio is not looked at.
DECOMPRESSION_FREE: Final = 64 * MIB
ZSTD_RATIO: Final = 4000
# zstd --long=27, the most that a decoder accepts unasked: 128 MiB of memory.
ZSTD_WINDOW: Final = 128 * MIB

# --- layer stores -----------------------------------------------------------------------------
# Entries of this size and more get a file of their own in the store.
LARGE_FILE: Final = 1 * MIB

# --- registry -----------------------------------------------------------------------------------
REDIRECTS: Final = 10
RETRIES: Final = 5
RETRY_FIRST_DELAY: Final = 0.25
RETRY_DELAY: Final = 15.0
# A registry that asks for more is treated as unavailable.
RETRY_AFTER: Final = 60.0
CONNECT_TIMEOUT: Final = 10.0
# No byte for so long: stalled.
READ_TIMEOUT: Final = 30.0
# A manifest, a token, an error body: the whole exchange.
DOCUMENT_DEADLINE: Final = 60.0
# Over a window of RATE_WINDOW seconds a body must bring this many bytes a second.
MINIMUM_RATE: Final = 1 * KIB
RATE_WINDOW: Final = 60.0
TOKEN_SIZE: Final = 1 * MIB
ERROR_BODY_SIZE: Final = 64 * KIB
HEADER_SIZE: Final = 64 * KIB
# Received at once, by the pulling thread.
BODY_PIECE: Final = 128 * KIB
CREDENTIAL_HELPER_DEADLINE: Final = 30.0
CREDENTIAL_HELPER_OUTPUT: Final = 1 * MIB
CREDENTIAL_FILE_SIZE: Final = 4 * MIB

# --- local sources -----------------------------------------------------------------------------
# Entries of an archive of images (blobs, links, documents).
ARCHIVE_ENTRIES: Final = 100_000

# --- filesystem -----------------------------------------------------------------------------------
# A read's answer, whatever happens behind it.
HANDLER_DEADLINE: Final = 30.0
# pyfuse3 worker tasks: about 9 KiB resident each; slow reads must not starve lookups.
FUSE_TASKS: Final = 4096
READAHEAD_KIB: Final = 1024

# --- control API ------------------------------------------------------------------------------------
API_BODY_SIZE: Final = 1 * MIB
API_CONNECTIONS: Final = 256
API_REQUEST_DEADLINE: Final = 30.0

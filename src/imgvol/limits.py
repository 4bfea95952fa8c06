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
# image-spec gives no bound; containerd's own suites mount 128 layers. Inode numbers hold 8 bits
# (view.inodes).
LAYERS: Final = 256
# Files of one artifact: models come in a few hundred pieces, and a manifest of MANIFEST_SIZE could
# not describe many times more.
ARTIFACT_BLOBS: Final = 4_096
# An index inside an index inside an index is already beyond what any tool writes.
INDEX_DEPTH: Final = 4
# Descriptors of one index.
INDEX_MANIFESTS: Final = 1_000
# distribution/reference: the path part of a name.
REPOSITORY_NAME_LENGTH: Final = 255
REFERENCE_LENGTH: Final = 4096

# --- tar (Go archive/tar: maxSpecialFileSize, sparse map cap of CVE-2025-58183) -----------------
TAR_SPECIAL_SIZE: Final = 1 * MIB
# All headers of one member, for who repeats them: at most one special header of each kind counts.
TAR_HEADERS_SIZE: Final = 8 * MIB
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
ID_MAPPINGS: Final = 340  # Linux UID_GID_MAP_MAX_EXTENTS
# Linux: XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX.
XATTR_NAME_LENGTH: Final = 255
XATTR_VALUE_SIZE: Final = 64 * KIB
XATTR_LIST_SIZE: Final = 64 * KIB
# Names of all entries, in all: 4 million entries at 64 bytes.
INDEX_STRINGS_SIZE: Final = 256 * MIB
# Path components looked at to find the parents of all entries, symbolic links followed: more than
# what 4 million entries ten levels deep need if nothing is remembered; some ten seconds of work.
INDEX_WALK: Final = 100_000_000

# --- decompression --------------------------------------------------------------------------
# What one step of a decoder may give: bounds memory however the input is made.
DECODED_PIECE: Final = 512 * KIB
# Real layers reach about 100. Deflate ends at 1,032 and zstd near 30,000, with nothing but zeros.
DECOMPRESSION_RATIO: Final = 400
# Below this output the ratio is not looked at: a file of zeros, say for swap, is honest.
DECOMPRESSION_FREE: Final = 1 * GIB
# RFC 1952 bounds the extra field by 64 KiB, name and comment by nothing; tools write a file name.
GZIP_HEADER_SIZE: Final = 128 * KIB
# zstd --long=27, the most that a decoder accepts unasked: 128 MiB of memory.
ZSTD_WINDOW: Final = 128 * MIB

# --- lazy layers ------------------------------------------------------------------------------
# The table of contents of one layer, compressed or not: what containers/storage takes.
TOC_SIZE: Final = 150 * MIB
# One entry of it: extended attributes are the most of it, and XATTR_LIST_SIZE and XATTR_VALUE_SIZE
# bound them, base64 and escapes included.
TOC_ENTRY_SIZE: Final = 1 * MIB
# What one span decodes to, which is verified as a whole in memory. Tools make chunks of 64 KiB to
# 4 MiB unless asked for others.
SPAN_SIZE: Final = 64 * MIB
# Chunks of content that are written: below, tables of contents outgrow the content; above, one
# read costs too much.
WRITTEN_CHUNK_MIN: Final = 16 * KIB
WRITTEN_CHUNK_MAX: Final = 32 * MIB
# The zTOC of a SOCI layer is mostly checkpoints, 32 KiB for each span of usually 4 MiB: enough for
# 30 GiB. It is held in memory as long as the layer is incomplete.
ZTOC_SIZE: Final = 256 * MIB
# Checkpoints that we put into one: as many as leave room for the table of contents.
ZTOC_SPANS: Final = 6_000
# Spans that we make: with smaller ones a zTOC is as large as its layer, and what is read at once is
# decompressed in memory by readers that may take no more than twice the largest.
INDEX_SMALLEST_SPAN: Final = 64 * KIB
INDEX_LARGEST_SPAN: Final = 32 * MIB
# The prefetch artifact of one layer: some 60 bytes for each range of spans.
PREFETCH_SIZE: Final = 1 * MIB
# Fetched from the end of an eStargz blob: its footer, and most often its table of contents.
TOC_TAIL_SIZE: Final = 64 * KIB

# --- traces -----------------------------------------------------------------------------------
# A trace of all that the other limits allow, with paths of some 60 bytes, takes 3 MiB.
TRACE_SIZE: Final = 4 * MIB
# Files that were opened, and ranges that were read. A desktop application opens some 3,000 files as
# it starts; together they stay below JSON_VALUES.
TRACE_FILES: Final = 10_000
TRACE_RANGES: Final = 30_000
# Seconds that are traced: whoever wants more wants to know something else than the start.
TRACE_SECONDS: Final = 86_400.0
TRACE_MILLISECONDS: Final = 86_400_000
# Files up to this size are brought whole: readahead would bring them with the first page.
TRACE_WHOLE: Final = 128 * KIB
# How much of a trace is put in the blob's order: at least, and in seconds of the line. More means
# fewer requests, less means that what is wanted first comes first.
TRACE_HORIZON: Final = 2 * MIB
TRACE_HORIZON_SECONDS: Final = 0.25
# One window: so long may it hold up a reader who wants something else.
TRACE_WINDOW_SECONDS: Final = 0.05
TRACE_WINDOW_SMALLEST: Final = 256 * KIB
# Windows in the air, so that a line with a long round trip is never idle.
TRACE_DEPTH: Final = 4
# What is planned, and named, before other tasks get their turn: a few milliseconds of work.
TRACE_STEP: Final = 64
# How often a recording says how far it is.
TRACE_PROGRESS: Final = 0.2
# Seconds for the kernel to forget what it has of a view when a recording begins.
TRACE_FORGETTING: Final = 10.0
# Seconds that a run waits for room in the store before it ends.
TRACE_ROOM: Final = 5.0
# Windows that failed, after which readers are left to themselves.
TRACE_FAILURES: Final = 3
# What is fetched on the word of a trace that somebody else has made: the start of most programs.
TRACE_FOREIGN_BYTES: Final = 256 * MIB
# What is asked of a registry about traces is given up after so long: then it is too late for them.
TRACE_SEARCH: Final = 20.0
# Referring traces that are looked at: the first that is one counts.
TRACE_REFERRERS: Final = 3

# --- layer stores -----------------------------------------------------------------------------
# Entries of this size and more get a file of their own in the store.
LARGE_FILE: Final = 1 * MIB

# Seconds between collections that nobody has asked for: what users remove is collected at once, and
# leases that end are not in a hurry.
COLLECTION_INTERVAL: Final = 3600.0

# Seconds until what an image leaves is collected that lost its name while it was in use, once it is
# not: whoever ends one of many volumes mostly ends others, too.
COLLECTION_DELAY: Final = 1.0

# A writer that finds the store at its quota waits so long for eviction: less than a reader does.
SPACE_WAIT: Final = 5.0
# Between looks at whether the background may go on.
SPACE_CHECK: Final = 0.5
# When nothing could be evicted: so long nobody waits for it, and nothing is looked for.
SPACE_HOPELESS: Final = 0.3
# Spans are given back in runs of neighbours that begin within so many bytes of the blob: small
# ones would leave too much of the blocks at their ends; and at most so many clocks for a layer.
SPAN_WINDOW: Final = 128 * KIB
SPAN_WINDOWS: Final = 65_536
# Verified spans for which the disk has no room, in memory while somebody waits: one of the largest.
SPARE_SPANS: Final = 64 * MIB
# When images were used is written down so often.
USES_NOTE: Final = 60.0
# When there was nothing to evict but spans, other things are looked for no sooner than after this.
EVICTION_PAUSE: Final = 10.0

# Seconds between measurements of what the store takes, as long as they are quick, and how much the
# latest one counts when the pause is adapted: as containerd's stats collector has them.
USAGE_PERIOD: Final = 10.0
USAGE_SMOOTHING: Final = 0.2

# Digits of an image ID that are enough, as many as tools print: with fewer, somebody could make an
# image whose ID begins like a name that others use.
SHORT_ID: Final = 12

# Seconds between copies of the database, if it has changed: the most that a damaged one loses. A
# copy of the records of 1000 images takes some 10 ms.
DATABASE_COPY_INTERVAL: Final = 60.0

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
# Received at once, by the pulling thread: 13 % quicker pulls than with 128 KiB, the same as 512.
BODY_PIECE: Final = 256 * KIB
CREDENTIAL_HELPER_DEADLINE: Final = 30.0
CREDENTIAL_HELPER_OUTPUT: Final = 1 * MIB
CREDENTIAL_FILE_SIZE: Final = 4 * MIB
# A registry that cannot be reached at all is most often a wrong name or a stopped server: whoever
# waits for the answer should have it soon.
CONNECT_RETRIES: Final = 2
# Each costs another READ_TIMEOUT.
STALL_RETRIES: Final = 1
# Retries of all requests to one registry, refunded one for every ten answers: a registry that is
# down is not asked five times as often as one that is up (the retry throttling of gRPC).
RETRY_BUDGET: Final = 20
# Images pulled at once, each with its own connections: kubelets ask for 1 to 10 unless told
# otherwise. The layers of all of them share a smaller number (images.pull.LAYERS_AT_ONCE).
PULLS_AT_ONCE: Final = 16
# The most of them that can be asked for: two threads and a connection each.
MAX_DOWNLOADS: Final = 64
# A pull that waits for bytes and gets none for so long has stalled (containerd's
# image_pull_progress_timeout), and how often that is looked at.
PULL_PROGRESS_TIMEOUT: Final = 300.0
PULL_PROGRESS_CHECK: Final = 10.0
# Logins that came with pulls, one per repository with lazy layers: nodes have some hundred images.
KEPT_LOGINS: Final = 1024
# token specification: the lifetime of a token that does not name one.
TOKEN_LIFETIME: Final = 60.0
# Nothing that a registry hands out should be trusted to be good for longer.
TOKEN_LONGEST_LIFETIME: Final = 86_400.0
# All WWW-Authenticate headers of an answer; real ones have a few hundred bytes.
CHALLENGE_SIZE: Final = 8 * KIB
# Other places of one blob that are tried: those who name any name one or two.
FOREIGN_URLS: Final = 8
# Blobs of one registry whose place at an object store is remembered.
LOCATIONS: Final = 1024
# Signed URLs of object stores reach about 2 KiB.
LOCATION_LENGTH: Final = 16 * KIB
# What an error message repeats of a registry's own words.
REMOTE_TEXT_LENGTH: Final = 200
# Pages of one list of referrers. Images have tens of referrers, signatures and SBOMs included, and
# one page may have INDEX_MANIFESTS.
REFERRER_PAGES: Final = 16
# An idle connection is closed after this; servers commonly give up after 60 to 120 seconds.
IDLE_CONNECTION: Final = 30.0
# Documents fetched from one registry at once.
DOCUMENT_THREADS: Final = 8

# --- pushing --------------------------------------------------------------------------------------
# Blobs sent to one registry at once: docker sends 5, and two fill most lines.
PUSH_AT_ONCE: Final = 4
# What is sent with one request. A larger blob goes in pieces of this size, so that a connection
# that breaks costs one of them; proxies in the cloud take some 100 MB in a request.
PUSH_CHUNK: Final = 64 * MIB
# The smallest piece that a registry which finds larger ones too large is offered: nginx takes 1 MiB
# unless told otherwise.
PUSH_CHUNK_SMALLEST: Final = 1 * MIB
# What a registry may ask pieces to be at least (`OCI-Chunk-Min-Length`); object stores want 5 MiB.
PUSH_CHUNK_LARGEST: Final = 1 * GIB
# Seconds from the last byte to the answer: a registry may hash and move all of a blob in between,
# some 30 GB at 100 MB/s.
PUSH_ANSWER: Final = 300.0
# How often a list of referrers is read, changed and written when others do the same meanwhile.
REFERRER_UPDATES: Final = 5
# Seconds between writing it and looking whether it has stayed: at least, and at most.
REFERRER_SETTLE: Final = 0.05
REFERRER_LONGEST_SETTLE: Final = 2.0
# Blobs and manifests of one push: an image of LAYERS on every platform that there is, twice over.
PUSH_BLOBS: Final = 20_000

# --- where images come from ----------------------------------------------------------------------
# A hosts.toml and a registries.yaml. k3s' own example has 1 KiB; a cluster with a hundred
# registries, some tens.
HOSTS_FILE_SIZE: Final = 256 * KIB
REGISTRIES_FILE_SIZE: Final = 256 * KIB
REGISTRIES_FILE_DEPTH: Final = 32
# Files that are kept as read.
CONFIGURATION_FILES: Final = 256
# Mirrors of one registry; certificates in one directory; headers and rules of one mirror.
ENDPOINTS: Final = 32
HOST_CERTIFICATES: Final = 64
HOST_HEADERS: Final = 64
HOST_HEADER_LENGTH: Final = 8 * KIB
REWRITE_RULES: Final = 256
REWRITE_LENGTH: Final = 1 * KIB
DIAL_TIMEOUT: Final = 300.0
# An endpoint that failed is asked last for so long, twice as long each time that it fails again.
ENDPOINT_REST: Final = 30.0
ENDPOINT_LONGEST_REST: Final = 600.0
# Endpoints whose failures are remembered.
ENDPOINTS_KNOWN: Final = 1024
# Where there is somebody else to ask: a failure that passes is tried again so often, and a server
# that wants to be left alone for longer is left alone.
ALTERNATIVE_RETRIES: Final = 1
ALTERNATIVE_RETRY_AFTER: Final = 1.0

# --- lazy layers -------------------------------------------------------------------------------
# What a small range is amplified to while nothing is known of its line.
FETCH_SMALLEST: Final = 32 * KIB
# One range for a reader at most: what is on its way for one delays the next.
FETCH_LARGEST: Final = 4 * MIB
# One range for the background: it can be ended at any byte, and what has come is kept.
FETCH_WINDOW: Final = 8 * MIB
# Bytes that nobody needs and that are fetched all the same rather than ask twice.
FETCH_GAP: Final = 64 * KIB
# What may have been taken along in vain: so much of a layer in any case, and this share of what its
# readers wanted.
FETCH_ALONG_FREE: Final = 1 * MIB
FETCH_ALONG_SHARE: Final = 0.25
# Ranges received at once, of all layers, and at one registry: as many as a browser has.
FETCH_AT_ONCE: Final = 12
FETCH_PER_HOST: Final = 6
# The latest flights tell what a line is like; those that brought more than this, how wide it is.
LINE_SAMPLES: Final = 8
# A flight that has been in the air for less time says nothing about its speed.
LINE_JUDGED_AFTER: Final = 0.1
# A program's start asks for about so much that is not here, one after the other.
STREAM_ROUND_TRIPS: Final = 100
# Until then: a home's line to a registry on the same continent.
LINE_ROUND_TRIP: Final = 0.05
LINE_BANDWIDTH: Final = 10 * MIB
LINE_MEASURABLE: Final = 64 * KIB
# Ahead of a sequential reader: at first, and at most; flights at once; files that are followed.
READAHEAD_FIRST: Final = 512 * KIB
READAHEAD_LARGEST: Final = 8 * MIB
READAHEAD_FLIGHTS: Final = 2
READAHEAD_FILES: Final = 64
# After a registry failed, readers fail at once for so long.
FETCH_FAILURE_REST: Final = 1.0
# What a mount may ask of its readers, and what it asks by default when it asks for patience.
PATIENCE: Final = 86_400.0
PATIENCE_DEFAULT: Final = 300.0
# Readers who wait for a registry to come back try again at least so often.
FETCH_BLOCKED_PAUSE: Final = 8.0
# A line that brings nothing for so long has stalled: soon enough for another try within a read's
# deadline.
FETCH_STALL: Final = 8.0
# Background work waits until readers have been quiet for so long.
FETCH_QUIET: Final = 1.0
# And looks so often whether that is still worth it.
FETCH_QUIET_CHECK: Final = 0.1
# A source that nobody uses is closed after so long.
FETCH_IDLE: Final = 60.0
# Between tries of background work after a failure of the registry.
FETCH_RETRY: Final = 30.0
# Present spans are made durable so often.
FETCH_FLUSH: Final = 2.0

# A layer that has spans copied from others forgoes its proof: not for less than this share of it.
COPY_LEAST_SHARE: Final = 0.05
# Layers that are searched for one, the newest first: opening one takes milliseconds.
COPY_SOURCES: Final = 256
# The search ends after so long: it is Python's work, beside readers, and finds most at once.
COPY_SEARCH_TIME: Final = 10.0
# Files of this size and more begin at a whole block of a lazy layer's data file, so that it can
# share them with other layers. The gap before one takes half a block on average, 3 % of the
# smallest of them; of these, 15 blocks out of 16 are shared then.
ALIGNED_FILE: Final = 64 * KIB
# Blocks are shared with another file if they are so many bytes, else the bytes are written. One
# request, with the reading that verifies it, takes 100 us of a processor here, and writing as much
# 40; with half of that it is four times as much, for half of the space.
CLONE_LEAST: Final = 32 * KIB
# What was shared is read in such pieces to be verified.
CLONE_READ: Final = 1 * MIB
# Chunks, or guessed spans and their bytes, that tell whether there is more where they are.
COPY_SAMPLE: Final = 256
COPY_SAMPLE_SIZE: Final = 32 * MIB
# Files that are looked for by their names alone: a table of them takes 200 bytes for each.
COPY_NAMES: Final = 100_000
# Readers wait for the search, so long after the layer was opened: for some round trips.
COPY_SEARCH_WAIT: Final = 0.5
# Copied at once in the background, as content: what ends early loses no more than that.
COPY_BATCH: Final = 8 * MIB
# Spans of it: small files take longer than their bytes.
COPY_BATCH_SPANS: Final = 256

# --- local sources -----------------------------------------------------------------------------
# Entries of an archive of images (blobs, links, documents).
ARCHIVE_ENTRIES: Final = 100_000
# A compressed archive of images is decompressed once into a temporary file: larger ones than this
# should be decompressed by the user, who knows where there is room.
ARCHIVE_SPOOL_SIZE: Final = 64 * GIB
# Memory that a zstd archive may need for its window: as much as k3s allows. Unlike a layer, an
# archive can be compressed again by whoever has it; only --ultra and --long need more.
ARCHIVE_ZSTD_WINDOW: Final = 32 * MIB
# Memory to decompress xz: its highest level, -9, needs 65 MiB.
ARCHIVE_XZ_MEMORY: Final = 96 * MIB
# Images of one archive, every platform counted; clusters are preloaded with some tens.
ARCHIVE_IMAGES: Final = 1_000
# Documents read to find them: indexes, manifests and configs.
ARCHIVE_DOCUMENTS: Final = 10_000
# And their bytes, all of which are in memory until the import has been recorded.
ARCHIVE_DOCUMENTS_SIZE: Final = 256 * MIB
# What they are called, all names counted.
ARCHIVE_NAMES: Final = 10_000
# The file oci-layout holds one version number.
LAYOUT_FILE_SIZE: Final = 4 * KIB

# --- filesystem -----------------------------------------------------------------------------------
# A read's answer, whatever happens behind it.
HANDLER_DEADLINE: Final = 30.0
# What waits for a layer that streams: the pull ends by itself when nothing comes any more.
STREAM_DEADLINE: Final = 86_400.0
# Seconds between two looks of all who wait for it: pieces come by the hundred each second.
STREAM_PULSE: Final = 0.02
# Reads that wait at once: about 9 KiB resident each; slow reads must not starve lookups.
FUSE_TASKS: Final = 4096
# Requests of the kernel's own readahead at once. Its default, 12, is used up by a few files of one
# registry that hangs; each may hold FUSE_PAGES of memory.
FUSE_BACKGROUND: Final = 512
# Pages in one read: as far as the kernel reads ahead (READAHEAD_KIB, with pages of 4 KiB).
FUSE_PAGES: Final = 256
# Files of the store that the kernel holds open for inodes that are passed through, about 1 KiB
# each: they count against nobody's limit of open files but the machine's (fs.file-max).
FUSE_BACKING_FILES: Final = 4096
# Large inodes that are open, and written down for the next process: 16 bytes each, of which most
# are never touched. Beyond, that one passes nothing through of which it does not know.
FUSE_OPEN_FILES: Final = 16_384
# Between looks at a caller who waits and was sent a signal: there may be another one by now.
FUSE_CALLER_CHECK: Final = 0.25
# The kernel asks first of all what it can have, in the same moment as it mounts.
FUSE_INIT_DEADLINE: Final = 10.0
# Mounting is one system call, and nothing of ours is asked on the way.
FUSERMOUNT_DEADLINE: Final = 30.0
# Until a successor has opened what the kernel may ask for: callers wait, and cannot be killed. It
# takes tenths of a second for a thousand volumes; beyond this, errors are better.
TAKE_OVER_DEADLINE: Final = 20.0
READAHEAD_KIB: Final = 1024
# While files come over a line of less than this many bytes a second: what the kernel starts with.
READAHEAD_SLOW_KIB: Final = 128
FAST_LINE: Final = 30 * MIB
# Seconds between looks at whether that has changed.
READAHEAD_CHECK: Final = 1.0

# --- leases and volumes ---------------------------------------------------------------------------
# CRI runtimes use 64 hex digits, containerd allows 76 of [A-Za-z0-9._-]: names of directories, too.
LEASE_ID_LENGTH: Final = 128
# As many as anybody gives a pod; a request's size bounds their length.
LABELS: Final = 64
# A lease that ends by itself does so within a year.
LEASE_DURATION: Final = 366 * 86_400.0
# What a pull has brought is kept for so long when the network ends it (containerd's default).
PULL_LEASE: Final = 86_400.0
# What is left of leases is written down so often: so much longer may they last after a crash.
LEASE_NOTE: Final = 60.0
# A lease that has run out while its volumes are in use: between tries to end it.
LEASE_RETRY: Final = 10.0
# Mounts of one sandbox in one request; a pod has at most some tens of volumes.
SANDBOX_MOUNTS: Final = 256
MOUNT_OPTIONS: Final = 32
# A view that the kernel is just forgetting is looked up again: once for each earlier withdrawal.
BIND_ATTEMPTS: Final = 5
# Volumes that a recovery mounts before it looks up again: 0.1 s, mostly in one thread.
RECOVERED_AT_ONCE: Final = 256
# Directories of views that a recovery keeps open. Most volumes of a machine are of few images.
KEPT_VIEWS: Final = 64
# Users of a sandbox's volumes have so long to leave before they count as busy; at most, and unless
# the caller says otherwise. The kubelet waits for two minutes.
DRAIN: Final = 60.0
DRAIN_DEFAULT: Final = 2.0
DRAIN_PAUSE: Final = 0.1

# --- control API
# ------------------------------------------------------------------------------------
API_BODY_SIZE: Final = 1 * MIB
# One member of a login: identity tokens of cloud registries reach some 5 KiB.
LOGIN_LENGTH: Final = 64 * KIB
API_CONNECTIONS: Final = 256
API_REQUEST_DEADLINE: Final = 30.0
# h11's own bound for a request head; a reference and a path fit many times.
API_HEADER_SIZE: Final = 16 * KIB
# A client that keeps a connection open without asking anything.
API_IDLE_DEADLINE: Final = 60.0
# A client that does not take 64 KiB.
API_WRITE_DEADLINE: Final = 30.0

# --- named volumes
# ------------------------------------------------------------------------------------
# Engines ask for all of them at once.
NAMED_VOLUMES: Final = 10_000
# The ID of a volume's sandbox is made of it, and such IDs end at 128.
NAMED_VOLUME_NAME: Final = 120
# Containers of one machine that use one volume.
NAMED_VOLUME_USERS: Final = 10_000

# --- OCI runtime hook
# ------------------------------------------------------------------------------------
# The state that a runtime tells, which is mostly annotations, and the bundle's configuration.
HOOK_STATE_SIZE: Final = 1 * MIB
HOOK_CONFIG_SIZE: Final = 16 * MIB
# A container that starts waits for the hook; pulling an image should not be left to it.
HOOK_DEADLINE: Final = 60.0
HOOK_MOUNTS: Final = 256

# --- Container Runtime Interface ------------------------------------------------------------------
# A pull's request has a pod's configuration in it, whose annotations may have 256 KiB.
CRI_REQUEST_SIZE: Final = 1 * MIB
# Calls in progress, of all clients: a kubelet pulls at most some tens of images at once. A call
# that waits takes some 20 KiB and no thread.
CRI_CALLS: Final = 1024
# Connections: a kubelet has two, each of crictl's commands one or two. Each takes two descriptors,
# and what is read at once of a request or an answer.
CRI_CONNECTIONS: Final = 256
CRI_PIECE: Final = 64 * KIB
# Images in one message of a stream: kubelets take 16 MiB, an image has some hundred bytes.
CRI_STREAM_BATCH: Final = 256
# An error's text: clients take 8 KiB of headers, where three bytes may stand for one of these.
CRI_MESSAGE_SIZE: Final = 2 * KIB
# Calls in progress when the daemon ends have so long; a pull that is cut short is tried again.
CRI_GRACE: Final = 2.0

# --- helper processes -----------------------------------------------------------------------------
# One line of what the daemon and a helper say to each other: a result names some files.
WORKER_LINE_SIZE: Final = 1 * MIB
# Seconds from its last word until it has to be gone.
WORKER_END: Final = 10.0

# --- the daemon -----------------------------------------------------------------------------------
# Seconds that a component may take to stop: most take milliseconds, a copy of a large database and
# the handlers of the filesystem longer.
STOP_COMPONENT: Final = 5.0
# Unmounting a thousand volumes takes some 5 s.
STOP_VOLUMES: Final = 15.0
# A component that was cancelled because it took longer.
STOP_CANCELLED: Final = 1.0
# All of them: `imgvol stop` waits for 30 s, the systemd unit for 60.
STOP_DEADLINE: Final = 25.0
# systemd gives a start 90 s unless it is told more; recovery of a thousand volumes takes 2.
START_STAGE: Final = 90.0
# How often the event loop shows that it turns, and who watches it looks.
LOOP_BEAT: Final = 0.5
# The event loop is blocked: nothing is to keep it for a hundredth of that, and a reader waits for
# 30 s at most.
LOOP_BLOCKED: Final = 5.0
# What a report of a blocked loop shows: of each thread and task, the innermost calls.
REPORT_THREADS: Final = 100
REPORT_TASKS: Final = 200
REPORT_CALLS: Final = 20
# Who follows events, and what waits for one of them who is slow.
EVENT_SUBSCRIBERS: Final = 32
EVENT_QUEUE: Final = 1024
# Seconds between events that tell how far pulls are.
PULL_EVENTS: Final = 1.0
# --- supervision --------------------------------------------------------------------------------
# A word of a worker: NOTIFY_BUFFER_MAX of systemd, which would not take more either.
NOTIFY_SIZE: Final = 4 * KIB
# Seconds that what has to arrive may wait for room in the manager's queue.
NOTIFY_PATIENCE: Final = 1.0
# Datagrams that are read before other things have their turn.
NOTIFY_BATCH: Final = 64
# Refused ones of one worker that the log tells of: a worker that talks nonsense talks much.
NOTIFY_COMPLAINTS: Final = 20
# sd_pid_notify_with_fds(3): names of descriptors; SCM_MAX_FD of the kernel: those of one datagram.
DESCRIPTOR_NAME_LENGTH: Final = 255
DESCRIPTORS_SENT: Final = 253
# What is kept from worker to worker: some listeners, a few descriptors for each FUSE connection.
DESCRIPTORS_KEPT: Final = 128
# Seconds between a worker and the next one. After one crash there is no pause, as callers wait; the
# first one is short; the longest is what systemd's own users choose (RestartMaxDelaySec). After
# workers that became ready no caller shall wait for longer than half a second in all; what keeps
# those from dying one after the other is that the next has to be loaded, which takes longer.
WORKER_PAUSE_FIRST: Final = 0.1
WORKER_PAUSE_FACTOR: Final = 2.0
WORKER_PAUSE_BRIEF: Final = 0.1
WORKER_PAUSE_MOST: Final = 30.0
# A worker that was ready for so long has been of use: to start it costs about as much time.
WORKER_HEALTHY: Final = 1.0
# Workers in a row that did not become ready: clients are told at the first number, some seconds
# after the first crash; at the second, a minute later, the supervisor gives up.
WORKER_FAILING: Final = 3
WORKER_TRIES: Final = 10
# A client waits for a worker that is due within so many seconds.
WORKER_PATIENCE: Final = 2.0
# As WatchdogSec= of the unit: several times what blocks the event loop in the worst case.
WORKER_WATCHDOG: Final = 30.0
# A start that asks for no time, and the most that one may ask for at once.
WORKER_START: Final = START_STAGE
WORKER_START_MOST: Final = 600.0
# Its own deadline, and what an interpreter needs to end.
WORKER_STOP: Final = STOP_DEADLINE + 2.0
# What the kernel needs to end a worker whose supervisor was killed: its memory, its mounts.
WORKER_LEFT: Final = 2.0
# Between SIGABRT and SIGKILL: the stacks of hundreds of threads are written in that time.
WORKER_ABORT: Final = 2.0
# A supervisor that was late by so much was itself not running: deadlines move along.
SUPERVISOR_LATE: Final = 1.0
# What is said to a worker that stands by, and by it: names of all descriptors; a line.
TURN_SIZE: Final = DESCRIPTORS_KEPT * (DESCRIPTOR_NAME_LENGTH + 1) + KIB
TURN_LINE: Final = KIB
# One that ended without having had its turn is started again after so many seconds.
STANDBY_AGAIN: Final = 60.0
# `supervisor.json`: a dozen short fields.
SUPERVISOR_STATUS_SIZE: Final = 4 * KIB
# A client that has no answer looks there so often.
SUPERVISOR_LOOK: Final = 0.5

# --- log file -----------------------------------------------------------------------------------
# As k3s keeps containerd's: the size of a full one, how many full ones, and for how long.
LOG_FILE_SIZE: Final = 50 * MIB
LOG_FILES: Final = 3
LOG_AGE: Final = 28 * 86_400.0

# --- scrubbing ----------------------------------------------------------------------------------
# What is told of one damaged layer: its first damaged places, and the first files of each. All of
# it gives errors all the same.
SCRUB_PLACES_TOLD: Final = 50
SCRUB_FILES_TOLD: Final = 20

# --- preload directory --------------------------------------------------------------------------
# A list of images: 10,000 names of 100 letters. A line: a reference, and white space around it.
PRELOAD_LIST_SIZE: Final = 1 * MIB
PRELOAD_LINE_SIZE: Final = REFERENCE_LENGTH + 1 * KIB
# `.cache.json`: PRELOAD_FILES with some 300 bytes each, and the names of what is in them.
PRELOAD_CACHE_SIZE: Final = 16 * MIB
# Files, and directories, that are looked at: nodes have tens. Each directory takes one of the
# kernel's watches, of which a user has 8,192 or more.
PRELOAD_FILES: Final = 10_000
PRELOAD_DIRECTORIES: Final = 1_000
# A file that nobody has said to be finished is taken for it when it has not changed for so long;
# k3s waits as long. One that was closed after writing gets its times and its mode from many tools
# just after that.
PRELOAD_SETTLE: Final = 2.0
PRELOAD_GRACE: Final = 0.2
# What is told of one file: the first of its problems, and how many there are.
PRELOAD_PROBLEMS: Final = 20
# Images of one list that are pulled at once.
PRELOAD_PULLS_AT_ONCE: Final = 3
# A directory that cannot be watched is looked at again after so long.
PRELOAD_RETRY: Final = 30.0
# Names under other registries: each one multiplies the names of all images.
PRELOAD_REGISTRIES: Final = 64

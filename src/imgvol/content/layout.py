"""Where everything lies below the root: one method per kind of path, and nothing else builds paths.

    <root>/                  0700, one owner at a time (flock on the directory itself)
      imgvol.db              sqlite records
      imgvol.db.copy         what they were a minute ago, for the day they are damaged
      blobs/<alg>/<hex>      manifests, indexes, configs
      layers/<hex>/          one complete, verified layer
        index                its LayerIndex
        layer.json           what it is, and how its bytes are proven again (card.py)
        pieces               our own digests of its tar, one for each MiB (pieces.py)
        damaged              which parts a scrub found not to be what they were (damage.py)
        data                 its uncompressed tar, sparse: the payloads of large files are holes
        files/<n>            large files, each a file of its own
        chunks               where digests of its table of contents are (chunk_catalogue.py)
      lazy/<hex>/            a layer that is partly here (lazy_layer.py)
      places/<hex>/          a layer that is read where it lies, elsewhere (in_place_layer.py)
      files/sha256/<hex>     hard links to complete large files, by content
      ingest/                work in progress; emptied at start

Names come from `Digest` values only, which hold nothing but lower-case hex digits: no path can be
made to leave the root (CVE-2024-3727).
"""

from dataclasses import dataclass
from pathlib import Path

from imgvol.oci.digest import Digest

INDEX_NAME = "index"
DATA_NAME = "data"
FILES_NAME = "files"
CHUNKS_NAME = "chunks"


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """The paths of one store."""

    root: Path

    @property
    def database(self) -> Path:
        """The sqlite file."""
        return self.root / "imgvol.db"

    @property
    def database_copy(self) -> Path:
        """A copy of it, as of some time ago."""
        return self.root / "imgvol.db.copy"

    @property
    def blobs(self) -> Path:
        """Documents, by algorithm and digest."""
        return self.root / "blobs"

    @property
    def layers(self) -> Path:
        """Complete layers."""
        return self.root / "layers"

    @property
    def lazy_layers(self) -> Path:
        """Layers that are partly here."""
        return self.root / "lazy"

    @property
    def places(self) -> Path:
        """Indexes of layers that are read where they lie."""
        return self.root / "places"

    @property
    def shared_files(self) -> Path:
        """Large files by the SHA-256 of their content."""
        return self.root / "files" / "sha256"

    @property
    def ingest(self) -> Path:
        """Work in progress."""
        return self.root / "ingest"

    def blob(self, digest: Digest) -> Path:
        """One document."""
        return self.blobs / digest.algorithm / digest.encoded

    def layer(self, digest: Digest) -> Path:
        """One layer's directory. Digests of different algorithms differ in length."""
        return self.layers / digest.encoded

    def lazy_layer(self, digest: Digest) -> Path:
        """One lazy layer's directory."""
        return self.lazy_layers / digest.encoded

    def place(self, digest: Digest) -> Path:
        """The directory of one layer that is read where it lies."""
        return self.places / digest.encoded

    def shared_file(self, content_hex: str) -> Path:
        """The one copy of a large file that layers link to."""
        return self.shared_files / content_hex

    def directories(self) -> tuple[Path, ...]:
        """All that must exist, parents first."""
        return (
            self.root,
            self.blobs,
            self.layers,
            self.lazy_layers,
            self.places,
            self.root / "files",
            self.shared_files,
            self.ingest,
        )

    def make(self) -> None:
        """Makes what is missing of them."""
        for directory in self.directories():
            directory.mkdir(mode=0o700, exist_ok=True)

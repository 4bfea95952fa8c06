"""The IndexBuilder: members of one layer's tar in, the file of its LayerIndex out.

The builder does what unpacking into an empty directory would do, with names instead of files, one
member after another. It never sees lower layers: what a layer says about them (whiteouts, opaque
marks, attributes that it leaves open, hard links to what it does not hold) is written down for the
merge.

Rule 1: A name is cleaned lexically and then belongs to the root; ".." cannot leave. Its parents are
followed through symbolic links of this layer, inside the root; its last component never is. What is
missing on the way, or in the way and not a directory, becomes an *implicit* directory.

Rule 2: The last entry of a name wins. A directory over a directory keeps the children; anything
else drops what was there. Only a directory may replace the root: it sets the root's attributes.

Rule 3: A hard link is a second name of what its target is at that moment. A target that this layer
does not have makes a *foreign link*, which the merge looks for in the lower layers.

Rule 4: Whiteouts and opaque marks speak about lower layers, wherever in the layer they stand. So
they are kept apart from the entries and meet them only at the end: a whiteout beside a directory of
the same name makes that opaque; beside anything else it says nothing new.

Rule 5: What eStargz keeps in the root for itself is left out, and the times of a layer that has
such a file are rounded to seconds (see `reserved`).

The tree that grows here is small: dictionaries of names for directories, and for everything else a
number, the place of its record (`records`). How the tree becomes tables is told in `flatten`.
"""

from typing import Final

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.flatten import AUFS_PREFIX, Flattened, TreeDirectory, flatten
from imgvol.layers.paths import clean_path, join_path, split_path
from imgvol.layers.records import IMPLICIT_DIRECTORY, Records, exceeded, rounded
from imgvol.layers.reserved import RESERVED_NAMES
from imgvol.layers.tar import MemberType, TarMember

WHITEOUT_PREFIX: Final = b".wh."
_OPAQUE_MARK: Final = b".wh..wh..opq"
# Looked up once: of a class they take longer.
_FILE: Final = MemberType.FILE
_DIRECTORY: Final = MemberType.DIRECTORY
_HARDLINK: Final = MemberType.HARDLINK
# Parents remembered by the text of their path, which may be long.
_REMEMBERED_PARENTS: Final = 1024

# A path without links: each name, and its directory or None where there is none (yet).
_Trail = list[tuple[bytes, TreeDirectory | None]]


class IndexBuilder:
    """Makes one layer's index from the members of its tar.

        builder = IndexBuilder()
        for member in parser.feed(piece):
            number = builder.add(member)
            ...  # None, or: the payload goes to the own file of that number
        data = builder.finish()
        builder.referenced_files  # the own files that are still needed

    The same members give the same bytes. After an error the builder is of no use.

    Args:
        own_files: Whether large files get files of their own. Without, all content is in the data
            file, at the positions that the members give.
    """

    def __init__(self, *, own_files: bool = True) -> None:
        self._large_file = limits.LARGE_FILE if own_files else limits.TAR_SIZE + 1
        self._root = TreeDirectory(IMPLICIT_DIRECTORY, path_length=0)
        self._records = Records()
        self._own_files: dict[int, int] = {}  # by leaf
        self._own_file_count = 0
        self._flattened: Flattened | None = None
        # Directories by the text of an entry's path without its last component.
        self._parents: dict[bytes, TreeDirectory] = {}
        self._names = 0
        self._steps = 0

    def add(self, member: TarMember) -> int | None:
        """Take the next member.

        Returns:
            The number of the own file that the payload belongs into, counted from 0; None when the
            payload stays in the layer's data file or is not needed.

        Raises:
            InvalidLayer: The member makes no sense. Fields `path` and `offset` (of its payload).
            LimitExceeded: A name, a size or a sum is too large.
        """
        try:
            return self._add(member)
        except (InvalidLayer, LimitExceeded) as error:
            fields = {**error.fields, "path": member.name, "offset": member.payload_offset}
            kind = InvalidLayer if isinstance(error, InvalidLayer) else LimitExceeded
            raise kind(error.message, hint="", **fields) from None

    def finish(self) -> bytes:
        """The index of all members, for LayerIndex. The builder is of no use afterwards."""
        self._leave_out_reserved()
        self._flattened = flatten(self._root, self._records)
        return self._flattened.data

    @property
    def root(self) -> TreeDirectory:
        """The tree as it is now."""
        return self._root

    @property
    def records(self) -> Records:
        """Of the tree's nodes."""
        return self._records

    @property
    def flattened(self) -> Flattened:
        """The tree as it has become. Known once finished."""
        assert self._flattened is not None, "finish first"
        return self._flattened

    @property
    def referenced_files(self) -> frozenset[int]:
        """The own files whose entries no later entry replaced. Known once finished."""
        leaves = self.flattened.leaves
        return frozenset(number for leaf, number in self._own_files.items() if leaf in leaves)

    @property
    def dropped_xattrs(self) -> int:
        """Extended attributes left out because no image may bring them."""
        return self._records.dropped_xattrs

    def _leave_out_reserved(self) -> None:
        """Rule 5."""
        children = self._root.children
        reserved = [name for name in RESERVED_NAMES if self._is_file(children.get(name))]
        if not reserved:
            return
        self._records.round_times()
        directories = [self._root]
        for directory in directories:
            directory.record = rounded(directory.record)
            below = directory.children.values()
            directories += [child for child in below if isinstance(child, TreeDirectory)]
        # Last: whoever asks a GrowingIndex meanwhile sees by them that times are rounded.
        for name in reserved:
            del children[name]

    def _is_file(self, child: TreeDirectory | int | None) -> bool:
        return isinstance(child, int) and self._records.is_file(child)

    # --- entries ----------------------------------------------------------------------------

    def _add(self, member: TarMember) -> int | None:
        located = self._locate(member.name)
        kind = member.type
        if located is None:
            if kind is _DIRECTORY:
                self._root.record = self._records.describe_directory(member)
            return None  # nothing else may take the root's place (CVE-2021-29136)
        parent, name = located
        if name.startswith(WHITEOUT_PREFIX) and self._mark(parent, name):
            return None
        number = None
        if kind is _DIRECTORY:
            self._add_directory(parent, name, self._records.describe_directory(member))
        elif kind is _HARDLINK:
            self._add_link(parent, name, member.linkname)
        elif kind is _FILE and member.size >= self._large_file:
            number = self._own_file_count
            self._own_file_count += 1
            leaf = self._records.add_leaf(member, number)
            self._own_files[leaf] = number
            self._put(parent, name, leaf)
        else:
            self._put(parent, name, self._records.add_leaf(member, None))
        return number

    def _mark(self, parent: TreeDirectory, name: bytes) -> bool:
        """Whether a name that looks like a whiteout is one, or an opaque mark."""
        if name == _OPAQUE_MARK:
            parent.is_opaque = True
            return True
        if name.startswith(AUFS_PREFIX):
            # An entry like others, so that hard links into it find their target; `flatten` leaves
            # it out.
            return False
        hidden = name.removeprefix(WHITEOUT_PREFIX)
        if hidden in (b"", b".", b".."):
            raise InvalidLayer("a whiteout of no name")
        if hidden not in parent.whiteouts:
            self._check_name(parent, hidden)
            parent.whiteouts.add(hidden)
        return True

    def _add_directory(self, parent: TreeDirectory, name: bytes, record: bytes) -> TreeDirectory:
        directory = parent.children.get(name)
        if isinstance(directory, TreeDirectory):
            directory.record = record
        else:
            directory = TreeDirectory(record, path_length=parent.path_length + 1 + len(name))
            self._put(parent, name, directory)
        return directory

    def _add_link(self, parent: TreeDirectory, name: bytes, target: bytes) -> None:
        names = clean_path(target)
        trail = self._walk(names[:-1])
        holder = trail[-1][1] if trail else self._root
        found = holder.children.get(names[-1]) if names and holder is not None else None
        if not names or isinstance(found, TreeDirectory):
            raise InvalidLayer("a hard link to a directory", target=target)
        if holder is parent and names[-1] == name:
            return  # to itself, which says nothing
        if found is None:
            path = join_path([step for step, _ in trail] + names[-1:])
            if len(path) > limits.PATH_LENGTH:
                raise exceeded("PATH_LENGTH", limits.PATH_LENGTH, size=len(path))
            found = self._records.add_foreign_link(path)
        self._put(parent, name, found)

    def _put(self, parent: TreeDirectory, name: bytes, child: TreeDirectory | int) -> None:
        old = parent.children.get(name)
        if old is None:
            self._check_name(parent, name)
        elif isinstance(old, TreeDirectory) or self._records.link_target(old) is not None:
            # Remembered parents may lie below the one or beyond the other.
            self._parents.clear()
        parent.children[name] = child

    def _check_name(self, parent: TreeDirectory, name: bytes) -> None:
        length = len(name)
        path_length = parent.path_length + 1 + length
        if length > limits.NAME_LENGTH:
            raise exceeded("NAME_LENGTH", limits.NAME_LENGTH, size=length)
        # Which bounds the depth too: PATH_LENGTH is twice PATH_DEPTH.
        if path_length > limits.PATH_LENGTH:
            raise exceeded("PATH_LENGTH", limits.PATH_LENGTH, size=path_length)
        if b"\0" in name:
            raise InvalidLayer("a name with a NUL byte")
        self._records.spend(length)
        self._names += 1
        if self._names > limits.TAR_ENTRIES:
            raise exceeded("TAR_ENTRIES", limits.TAR_ENTRIES)

    # --- paths ------------------------------------------------------------------------------

    def _locate(self, path: bytes) -> tuple[TreeDirectory, bytes] | None:
        """The directory and the name that a member's path means; None for the root."""
        head, _, name = path.rpartition(b"/")
        if name in (b"", b".", b".."):
            names = clean_path(path)
            if not names:
                return None
            head, name = join_path(names[:-1]), names[-1]
        parent = self._parents.get(head)
        if parent is None:
            parent = self._ensure(self._walk(clean_path(head)))
            if len(self._parents) >= _REMEMBERED_PARENTS:
                self._parents.clear()
            self._parents[head] = parent
        return parent, name

    def _walk(self, names: list[bytes]) -> _Trail:
        """Follow a path from the root through the symbolic links of this layer."""
        trail: _Trail = []
        pending = names[::-1]
        followed = 0
        self._spend_steps(len(pending))
        while pending:
            name = pending.pop()
            if name == b"..":
                del trail[-1:]
                continue
            here = trail[-1][1] if trail else self._root
            child = here.children.get(name) if here is not None else None
            target = self._records.link_target(child) if isinstance(child, int) else None
            if target is None:
                trail.append((name, child if isinstance(child, TreeDirectory) else None))
                continue
            followed += 1
            if followed > limits.SYMLINKS_FOLLOWED:
                raise InvalidLayer("too many symbolic links on the way to an entry")
            if target.startswith(b"/"):
                trail.clear()
            steps = split_path(target)
            self._spend_steps(len(steps))
            pending += reversed(steps)
        return trail

    def _ensure(self, trail: _Trail) -> TreeDirectory:
        """The last directory of a trail, which becomes one where it is none."""
        directory = self._root
        for name, known in trail:
            directory = known or self._add_directory(directory, name, IMPLICIT_DIRECTORY)
        return directory

    def _spend_steps(self, count: int) -> None:
        self._steps += count
        if self._steps > limits.INDEX_WALK:
            raise exceeded("INDEX_WALK", limits.INDEX_WALK)

"""What is settled of an image while its layers come: one rule each."""

import pytest

from imgvol.errors import InvalidLayer
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.growing import GrowingIndex
from imgvol.layers.index import LayerIndex
from imgvol.view.settling import SettlingView, Unsettled
from support.members import build, directory, file, hardlink


class Growing:
    """The frontier of a view: `position` grows, all above it is there."""

    def __init__(self, *above, position=0):
        self.view = SettlingView(position + 1 + len(above), chain_slot=3)
        self.position = position
        self.builder = IndexBuilder()
        self.index = GrowingIndex(self.builder)
        for number, members in enumerate(above):
            self.view.end(position + 1 + number, build(*members))
        self.view.begin(position, self.index)

    def add(self, *members):
        for member in members:
            self.builder.add(member)

    def end(self):
        index = LayerIndex(self.builder.finish())
        self.view.end(self.position, index, self.index.final_nodes())

    def look(self, path):
        """The node of a path, None, or "?" where it is not settled."""
        node = self.view.root
        for name in path.split(b"/"):
            if not self.view.is_settled(node, name):
                with pytest.raises(Unsettled):
                    self.view.lookup(node, name)
                return "?"
            node = self.view.lookup(node, name)
            if node is None:
                return None
        return node


def test_a_name_is_there_as_soon_as_it_has_come():
    growing = Growing()
    assert growing.look(b"a") == "?"
    growing.add(directory(b"a", 0o700), file(b"a/b", 7))
    node = growing.look(b"a/b")
    assert growing.view.attributes(node).size == 7
    growing.end()
    assert growing.look(b"a/b") == node
    assert growing.look(b"c") is None


def test_a_directory_waits_for_its_attributes():
    growing = Growing()
    growing.add(file(b"a/b"))
    assert growing.look(b"a") == "?"
    growing.add(directory(b"a", 0o700))
    assert growing.view.attributes(growing.look(b"a")).mode & 0o777 == 0o700


def test_a_hard_link_to_a_lower_layer_waits():
    growing = Growing()
    growing.view = SettlingView(2, chain_slot=1)
    growing.position = 1
    growing.view.begin(1, growing.index)
    growing.add(hardlink(b"a", b"below"))
    assert growing.look(b"a") == "?"
    growing.end()
    assert growing.look(b"a") == "?"
    growing.view.end(0, build(file(b"below", 9)))
    assert growing.view.attributes(growing.look(b"a")).size == 9


@pytest.mark.parametrize(
    "above",
    [
        [directory(b"a"), file(b".wh.a")],
        [directory(b"a"), file(b"a/.wh..wh..opq")],
        [directory(b"a"), file(b"a/.wh.b")],
        [directory(b"a"), file(b".wh..wh..opq")],
    ],
    ids=["replaced", "opaque", "hidden", "opaque root"],
)
def test_what_an_upper_layer_hides_is_absent_at_once(above):
    growing = Growing(above)
    growing.add(directory(b"a"), file(b"a/b"))
    assert growing.look(b"a/b") is None


def test_a_whiteout_of_the_layer_itself_settles_nothing():
    growing = Growing(position=1)
    growing.add(file(b".wh.a"))
    assert growing.look(b"a") == "?"
    growing.add(file(b"a", 3))
    assert growing.view.attributes(growing.look(b"a")).size == 3


def test_a_listing_waits_for_all_layers_that_can_add_to_it():
    growing = Growing([directory(b"a"), file(b"a/b")])
    directory_node = growing.look(b"a")
    assert not growing.view.is_settled(directory_node, None)
    with pytest.raises(Unsettled):
        growing.view.list(directory_node)
    growing.add(file(b"a/c"))
    growing.end()
    assert [name for name, _ in growing.view.list(directory_node)] == [b"b", b"c"]


def test_a_listing_of_what_an_ended_layer_makes_opaque_waits_for_nobody():
    growing = Growing([directory(b"a"), file(b"a/.wh..wh..opq"), file(b"a/b"), file(b"c/d")])
    opaque, other = growing.look(b"a"), growing.view.root
    assert growing.view.is_settled(opaque, None)
    assert [name for name, _ in growing.view.list(opaque)] == [b"b"]
    assert not growing.view.is_settled(other, None)
    growing.add(file(b"a/hidden"))
    growing.end()
    assert [name for name, _ in growing.view.list(opaque)] == [b"b"]


def test_a_listing_waits_for_what_its_hard_links_lead_to():
    growing = Growing([directory(b"a"), file(b"a/.wh..wh..opq"), hardlink(b"a/b", b"below")])
    opaque = growing.look(b"a")
    assert not growing.view.is_settled(opaque, None)
    growing.add(file(b"below", 9))
    growing.end()
    ((name, node),) = growing.view.list(opaque)
    assert (name, growing.view.attributes(node).size) == (b"b", 9)


@pytest.mark.parametrize(
    "again",
    [
        file(b"a/b", 8),
        file(b"a/b", 7, uid=1),
        file(b"a", 1),
        directory(b"a", 0o711),
        directory(b"a", 0o700, xattrs=((b"user.x", b"1"),)),
    ],
)
def test_an_archive_that_says_something_else_later_fails_the_view(again):
    growing = Growing()
    growing.add(directory(b"a", 0o700), file(b"a/b", 7))
    node = growing.look(b"a/b")
    growing.add(again)
    with pytest.raises(InvalidLayer):
        growing.end()
    root = growing.view.root
    assert [name for name, _ in growing.view.known_names(root)] == [b"a"]
    assert growing.view.attributes(root).ino == growing.view.inode(root)
    assert node in set(growing.view.given())
    with pytest.raises(InvalidLayer):
        growing.view.lookup(growing.view.root, b"x")
    assert growing.view.is_settled(growing.view.root, b"x"), "nobody waits any more"


def test_what_was_replaced_is_an_error_of_the_view():
    growing = Growing()
    growing.add(file(b"a", 7))
    node = growing.look(b"a")
    growing.add(file(b"a", 8))
    with pytest.raises(InvalidLayer):
        growing.end()
    with pytest.raises(InvalidLayer):
        growing.view.attributes(node)
    assert not growing.view.is_directory(node)


def test_a_hard_link_to_nowhere_fails_the_view():
    growing = Growing([hardlink(b"b", b"below")])
    growing.add(file(b"a", 7))
    node = growing.look(b"a")
    with pytest.raises(InvalidLayer):
        growing.end()
    assert growing.view.attributes(node).size == 7
    with pytest.raises(InvalidLayer):
        growing.view.lookup(growing.view.root, b"a")


def test_what_nobody_has_seen_may_be_said_again():
    growing = Growing()
    growing.add(directory(b"a", 0o700), file(b"a/b", 7), file(b"a/b", 8))
    growing.end()
    assert growing.view.attributes(growing.look(b"a/b")).size == 8


def test_names_of_a_file_are_counted_in_the_end():
    growing = Growing()
    growing.add(file(b"a"))
    node = growing.look(b"a")
    assert growing.view.attributes(node).nlink == 1
    growing.add(hardlink(b"b", b"a"))
    assert growing.look(b"b") == node
    growing.end()
    assert growing.view.attributes(node).nlink == 2


def test_times_are_rounded_where_they_will_be():
    growing = Growing()
    growing.add(file(b".no.prefetch.landmark"), file(b"a", mtime_ns=1_600_000_000))
    assert growing.view.attributes(growing.look(b"a")).mtime_ns == 2_000_000_000
    assert growing.look(b".no.prefetch.landmark") == "?"
    growing.end()
    assert growing.look(b".no.prefetch.landmark") is None

"""What goes first when there is no room: the choice, held to what it promises."""

from hypothesis import given
from hypothesis import strategies as st

from imgvol.content.eviction import (
    LayerPicture,
    SpanWindow,
    StoredImage,
    choose_layers,
    choose_windows,
)
from imgvol.oci.digest import Digest

LAYERS = [Digest.of(b"layer %d" % number) for number in range(8)]


@st.composite
def pictures(draw) -> LayerPicture:
    images = [
        StoredImage(
            manifest=Digest.of(b"image %d" % number),
            used_at=float(draw(st.integers(0, 4))),
            layers=frozenset(draw(st.sets(st.sampled_from(LAYERS), max_size=4))),
        )
        for number in range(draw(st.integers(0, 6)))
    ]
    return LayerPicture(
        images=images,
        sizes=draw(st.dictionaries(st.sampled_from(LAYERS), st.integers(0, 50))),
        keepers=draw(st.dictionaries(st.sampled_from(LAYERS), st.just("pinned"), max_size=4)),
    )


wanted_sizes = st.integers(-5, 300)


@given(pictures(), wanted_sizes)
def test_it_is_enough_or_all_that_can_go(picture, wanted):
    chosen = choose_layers(picture, wanted)
    size = sum(eviction.size for eviction in chosen)
    assert size == sum(picture.sizes[layer] for each in chosen for layer in each.layers)
    assert size >= wanted or size == picture.evictable
    # Without the last image it would not have been enough.
    assert not chosen or size - chosen[-1].size < wanted


@given(pictures(), wanted_sizes)
def test_nothing_goes_that_is_kept_or_twice_or_for_nothing(picture, wanted):
    layers = [layer for each in choose_layers(picture, wanted) for layer in each.layers]
    assert len(layers) == len(set(layers))
    for layer in layers:
        assert layer not in picture.keepers
        assert picture.sizes[layer] > 0


@given(pictures(), wanted_sizes)
def test_a_layer_goes_only_when_all_of_its_images_are_older_than_any_that_stays_whole(
    picture, wanted
):
    chosen = choose_layers(picture, wanted)
    gone = {layer for each in chosen for layer in each.layers}
    by_manifest = {image.manifest: image for image in picture.images}
    latest = max((by_manifest[each.manifest].used_at for each in chosen), default=0.0)
    for image in picture.images:
        if image.layers & gone:
            assert image.used_at <= latest
    for image in picture.images:
        # Whoever was used after the last one that had to go has lost nothing.
        if image.used_at > latest:
            assert not image.layers & gone


@given(pictures(), wanted_sizes, wanted_sizes)
def test_who_wants_more_takes_the_same_first(picture, one, other):
    less, more = sorted((one, other))
    first = choose_layers(picture, less)
    assert choose_layers(picture, more)[: len(first)] == first


@given(pictures())
def test_what_cannot_go_is_summed_up_by_reason(picture):
    kept = sum(picture.kept.values())
    assert kept == sum(picture.sizes.get(layer, 0) for layer in picture.keepers)
    assert kept + picture.evictable <= sum(picture.sizes.values())


windows = st.lists(
    st.builds(
        SpanWindow,
        slot=st.integers(1, 3),
        window=st.integers(0, 50),
        used_at=st.floats(0, 9),
        size=st.integers(0, 50),
    ),
    unique_by=lambda each: (each.slot, each.window),
)


@given(windows, wanted_sizes)
def test_windows_go_the_oldest_first_and_no_more_than_needed(found, wanted):
    chosen = choose_windows(found, wanted)
    size = sum(each.size for each in chosen)
    assert size >= wanted or size == sum(each.size for each in found)
    assert not chosen or size - chosen[-1].size < wanted
    assert all(each.size > 0 for each in chosen)
    latest = max((each.used_at for each in chosen), default=-1.0)
    left = [each for each in found if each not in chosen and each.size]
    assert all(each.used_at >= latest for each in left)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.oci.chain import EMPTY_CHAIN, _stack, chain_id, chain_ids
from imgvol.oci.digest import DiffID, Digest

A, B, C = (DiffID(Digest.of(letter)) for letter in (b"a", b"b", b"c"))
EMPTY_TAR = DiffID(Digest.of(bytes(1024)))

AB = "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676"
ABC = "sha256:2fce7f8ce91bcf0a1428b36e1024639fdbd9469eea762dba98aa749631885106"
AA = "sha256:d76fa7fcc3c98373e78d03a76c1447a1bec04bf49a44cb1f098bd84523f8450f"
TWO_EMPTY_TARS = "sha256:170b376f64fb30995c140276be3d71dfb256b308d86183ca3b22aa93a79ad548"


def test_known_diff_ids():
    assert str(A) == "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert str(B) == "sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"
    assert str(C) == "sha256:2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6"
    assert str(EMPTY_TAR) == (
        "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
    )
    assert str(Digest.of(bytes(10240))) == (
        "sha256:84ff92691f909a05b224e1c56abb4864f01b4f8e3c854e4bb4c7baf1d3f6d652"
    )


@pytest.mark.parametrize(
    ("diff_ids", "expected"),
    [
        ([A], str(A)),
        ([A, B], AB),
        ([A, B, C], ABC),
        ([A, A], AA),
        ([EMPTY_TAR, EMPTY_TAR], TWO_EMPTY_TARS),
    ],
)
def test_chain_ids(diff_ids, expected):
    assert str(chain_id(diff_ids)) == expected


def test_the_specification_s_own_vectors():
    # They use texts that are no digests, so they are computed on text.
    two = _stack("sha256:a", "sha256:b")
    three = _stack(str(two), "sha256:c")
    assert str(two) == "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8"
    assert str(three) == "sha256:dee159b33409cefa3f6eda71539f006014283e9d9130c18a1dea7bd8a33c9b1b"


def test_each_layer_has_the_chain_id_of_those_up_to_it():
    assert [str(chain) for chain in chain_ids([A, B, C])] == [str(A), AB, ABC]


def test_no_layers():
    assert chain_ids([]) == ()
    assert chain_id([]) == EMPTY_CHAIN


@given(st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=6))
def test_chain_ids_are_those_of_the_prefixes(diff_ids):
    before = list(diff_ids)
    chains = chain_ids(diff_ids)
    assert diff_ids == before
    assert list(chains) == [chain_id(diff_ids[: n + 1]) for n in range(len(diff_ids))]
    assert len(set(chains)) == len(chains)

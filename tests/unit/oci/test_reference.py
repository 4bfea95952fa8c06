import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgvol.errors import InvalidReference
from imgvol.oci.digest import Digest
from imgvol.oci.reference import (
    Reference,
    parse_any_reference,
    parse_docker_reference,
    parse_raw,
    sort_references,
)

F64 = "f" * 64
SHA = f"sha256:{F64}"
LONG_PATH = "a/" * 127 + "a"
BUSYBOX = "sha256:e6693c20186f837fc393390135d8a598a96a833917917789d63766cab6c59582"
REDIS_HEX = "dbcc1c35ac38df41fd2f5e4130b32ffdb93ebae8b3dbe638c23575912276fc9c"
HEX64 = "1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a"

# --- the grammar alone --------------------------------------------------------------------------

GRAMMAR = [
    # reference, domain, name, tag, digest
    ("test_com", "", "test_com", None, None),
    ("test.com:tag", "", "test.com", "tag", None),
    ("test.com:5000", "", "test.com", "5000", None),
    ("test.com/repo:tag", "test.com", "test.com/repo", "tag", None),
    ("test:5000/repo", "test:5000", "test:5000/repo", None, None),
    ("test:5000/repo:tag", "test:5000", "test:5000/repo", "tag", None),
    (f"test:5000/repo@{SHA}", "test:5000", "test:5000/repo", None, SHA),
    (f"test:5000/repo:tag@{SHA}", "test:5000", "test:5000/repo", "tag", SHA),
    ("Uppercase/lowercase:tag", "Uppercase", "Uppercase/lowercase", "tag", None),
    ("lowercase:Uppercase", "", "lowercase", "Uppercase", None),
    (f"example.com/{'a' * 255}:tag", "example.com", f"example.com/{'a' * 255}", "tag", None),
    (f"{LONG_PATH}:tag-puts-this-over-max", "a", LONG_PATH, "tag-puts-this-over-max", None),
    (
        "sub-dom1.foo.com/bar/baz/quux",
        "sub-dom1.foo.com",
        "sub-dom1.foo.com/bar/baz/quux",
        None,
        None,
    ),
    (
        "sub-dom1.foo.com/bar/baz/quux:some-long-tag",
        "sub-dom1.foo.com",
        "sub-dom1.foo.com/bar/baz/quux",
        "some-long-tag",
        None,
    ),
    (
        "b.gcr.io/test.example.com/my-app:test.example.com",
        "b.gcr.io",
        "b.gcr.io/test.example.com/my-app",
        "test.example.com",
        None,
    ),
    ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com", "xn--n3h.com/myimage", "xn--n3h.com", None),
    (
        f"xn--7o8h.com/myimage:xn--7o8h.com@{SHA}",
        "xn--7o8h.com",
        "xn--7o8h.com/myimage",
        "xn--7o8h.com",
        SHA,
    ),
    ("foo_bar.com:8080", "", "foo_bar.com", "8080", None),
    ("foo/foo_bar.com:8080", "foo", "foo/foo_bar.com", "8080", None),
    ("192.168.1.1", "", "192.168.1.1", None, None),
    ("192.168.1.1:tag", "", "192.168.1.1", "tag", None),
    ("192.168.1.1:5000", "", "192.168.1.1", "5000", None),
    ("192.168.1.1/repo", "192.168.1.1", "192.168.1.1/repo", None, None),
    ("192.168.1.1:5000/repo", "192.168.1.1:5000", "192.168.1.1:5000/repo", None, None),
    ("192.168.1.1:5000/repo:5050", "192.168.1.1:5000", "192.168.1.1:5000/repo", "5050", None),
    ("[2001:db8::1]/repo", "[2001:db8::1]", "[2001:db8::1]/repo", None, None),
    (
        "[2001:db8:1:2:3:4:5:6]/repo:tag",
        "[2001:db8:1:2:3:4:5:6]",
        "[2001:db8:1:2:3:4:5:6]/repo",
        "tag",
        None,
    ),
    (
        f"[2001:db8::1]:5000/repo:tag@{SHA}",
        "[2001:db8::1]:5000",
        "[2001:db8::1]:5000/repo",
        "tag",
        SHA,
    ),
    ("[2001:db8::]:5000/repo", "[2001:db8::]:5000", "[2001:db8::]:5000/repo", None, None),
    ("[::1]:5000/repo", "[::1]:5000", "[::1]:5000/repo", None, None),
    (f"validname@sha512:{'f' * 128}", "", "validname", None, f"sha512:{'f' * 128}"),
]

EMPTY = "at least one component"
FORMAT = "invalid reference format"
LOWERCASE = "must be lowercase"
NOT_GRAMMAR = [
    ("", EMPTY),
    (":justtag", FORMAT),
    (f"@{SHA}", FORMAT),
    (f"repo@sha256:{'f' * 34}", "invalid digest length"),
    (f"validname@invaliddigest:{F64}", "unsupported digest algorithm"),
    (f"validname@sha256:{F64.upper()}", "not lower-case hexadecimal"),
    ("Uppercase:tag", LOWERCASE),
    ("test:5000/Uppercase/lowercase:tag", LOWERCASE),
    (f"domain/{'a' * 256}:tag", "must not be more than 255 characters"),
    ("aa/asdf$$^/aa", FORMAT),
    ("[2001:db8::1]", FORMAT),
    ("[2001:db8::1]:5000", FORMAT),
    ("[2001:db8::1]:tag", FORMAT),
    ("[fe80::1%eth0]:5000/repo", FORMAT),
    ("[fe80::1%@invalidzone]:5000/repo", FORMAT),
    # Where Python's regular expressions differ from Go's.
    ("repo\n", FORMAT),
    ("repo:tag\n", FORMAT),
    ("repo:t\u00e4g", FORMAT),
    ("repo:\u0663", FORMAT),
    ("r\u00e4po", FORMAT),
    (f"repo:{'t' * 129}", FORMAT),
]


@pytest.mark.parametrize(("text", "domain", "name", "tag", "digest"), GRAMMAR)
def test_the_grammar_splits(text, domain, name, tag, digest):
    raw = parse_raw(text)
    assert raw.domain == domain
    assert raw.name == name
    assert raw.tag == tag
    assert raw.digest == (digest and Digest.parse(digest))


@pytest.mark.parametrize(("text", "message"), NOT_GRAMMAR)
def test_the_grammar_refuses(text, message):
    with pytest.raises(InvalidReference, match=message):
        parse_raw(text)


@pytest.mark.parametrize(
    "domain",
    [
        "test.com",
        "test.com:10304",
        "localhost",
        "localhost:8080",
        "a",
        "a.b",
        "ab.cd.com",
        "a-b.com",
        "ab.c-om",
        "0101.com",
        "001a.com",
        "b.gbc.io:443",
        "xn--n3h.com",
        "Asdf.com",
        "192.168.1.1:75050",
        "192.168.1.1:750050",
        "[fd00:1:2::3]:75050",
        "[fd00123123123]:75050",
    ],
)
def test_domains(domain):
    assert Reference(domain, "x").domain == domain


@pytest.mark.parametrize(
    "domain",
    [
        "test.com:http",
        "-ab.com",
        "ab-.com",
        "ab.-com",
        "ab.com-",
        "[fd00:1:2::3]75050",
        "[fd00:1:2::3]::75050",
        "[fd00:1:2::3%eth0]:75050",
        "fd00:1:2::3:75050",
        "",
        "a.b\n",
    ],
)
def test_not_domains(domain):
    with pytest.raises(InvalidReference, match="registry name"):
        Reference(domain, "x")


# --- normalisation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "docker/docker",
        "library/debian",
        "debian",
        "localhost/library/debian",
        "localhost/debian",
        "LOCALDOMAIN/library/debian",
        "LOCALDOMAIN/debian",
        "docker.io/docker/docker",
        "docker.io/library/debian",
        "docker.io/debian",
        "index.docker.io/docker/docker",
        "index.docker.io/debian",
        "127.0.0.1:5000/docker/docker",
        "127.0.0.1:5000/debian",
        "192.168.0.1",
        "192.168.0.1:80",
        "192.168.0.1:8/debian",
        "192.168.0.2:25000/debian",
        "thisisthesongthatneverendsitgoesonandonandonthisisthesongthatnev",
        "[fc00::1]:5000/docker",
        "[fc00:1:2:3:4:5:6:7]:5000/library/debian",
        f"docker.io/{HEX64}",
        "Docker/docker",
        "DOCKER/docker",
        "docker-rules/docker",
        "docker---rules/docker",
        "doc/docker",
        "d/docker",
        "jess/t",
        "dock__er/docker",
    ],
)
def test_normalised(text):
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar()) == reference


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/docker/docker",
        "docker/Docker",
        "-docker",
        "-docker/docker",
        "-docker.io/docker/docker",
        "docker///docker",
        "docker.io/docker/Docker",
        "docker.io/docker///docker",
        "[fc00::1]",
        "[fc00::1]:5000",
        "fc00::1:5000/debian",
        "[fe80::1%eth0]:5000/debian",
        "[2001:db8:3:4::192.0.2.33]:5000/debian",
        HEX64,
        "docker-/docker",
        "-docker-/docker",
        "____/____",
        "_docker/_docker",
        "dock..er/docker",
        "dock_.er/docker",
        "dock-.er/docker",
        "docker/",
        f"{'a' * 271}/docker",
        "-foo",
        "",
        "/",
        ":tag",
    ],
    ids=lambda t: t[:40],
)
def test_not_normalised(text):
    with pytest.raises(InvalidReference):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("domain", "path", "familiar", "spellings"),
    [
        ("localhost", "fooo", "localhost/fooo", ["localhost/fooo"]),
        ("LOCALDOMAIN", "fooo/bar", "LOCALDOMAIN/fooo/bar", ["LOCALDOMAIN/fooo/bar"]),
        ("docker.io", "fooo/bar", "fooo/bar", ["fooo/bar", "index.docker.io/fooo/bar"]),
        ("docker.io", "library/ubuntu", "ubuntu", ["ubuntu", "library/ubuntu"]),
        ("docker.io", "nonlibrary/ubuntu", "nonlibrary/ubuntu", ["nonlibrary/ubuntu"]),
        ("docker.io", "other/library", "other/library", ["other/library"]),
        ("127.0.0.1:8000", "private/moonbase", "127.0.0.1:8000/private/moonbase", []),
        ("127.0.0.1:8000", "privatebase", "127.0.0.1:8000/privatebase", []),
        ("example.com", "private/moonbase", "example.com/private/moonbase", []),
        ("example.com", "privatebase", "example.com/privatebase", []),
        ("example.com:8000", "private/moonbase", "example.com:8000/private/moonbase", []),
        ("example.com:8000", "privatebasee", "example.com:8000/privatebasee", []),
        (
            "docker.io",
            "library/ubuntu-12.04-base",
            "ubuntu-12.04-base",
            ["ubuntu-12.04-base", "index.docker.io/library/ubuntu-12.04-base"],
        ),
        ("docker.io", "library/foo", "foo", ["foo", "docker.io/foo"]),
        ("docker.io", "library/foo/bar", "library/foo/bar", ["library/foo/bar"]),
        ("docker.io", "store/foo/bar", "store/foo/bar", ["store/foo/bar"]),
        ("Foo", "bar", "Foo/bar", ["Foo/bar"]),
        ("FOO", "bar", "FOO/bar", ["FOO/bar"]),
    ],
)
def test_repository_of_every_spelling(domain, path, familiar, spellings):
    for text in [f"{domain}/{path}", familiar, *spellings]:
        reference = Reference.parse(text)
        assert (reference.domain, reference.path) == (domain, path)
        assert reference.repository == str(reference) == f"{domain}/{path}"
        assert reference.familiar() == familiar


@pytest.mark.parametrize(
    ("text", "domain", "path"),
    [
        ("test.com/foo", "test.com", "foo"),
        ("test_com/foo", "docker.io", "test_com/foo"),
        ("docker/migrator", "docker.io", "docker/migrator"),
        ("test.com:8080/foo", "test.com:8080", "foo"),
        ("test-com:8080/foo", "test-com:8080", "foo"),
        ("foo", "docker.io", "library/foo"),
        ("xn--n3h.com/foo", "xn--n3h.com", "foo"),
        ("xn--n3h.com:18080/foo", "xn--n3h.com:18080", "foo"),
        ("docker.io/foo", "docker.io", "library/foo"),
        ("docker.io/library/foo/bar", "docker.io", "library/foo/bar"),
    ],
)
def test_domain_is_told_from_path(text, domain, path):
    reference = Reference.parse(text)
    assert (reference.domain, reference.path) == (domain, path)


def test_normalising_keeps_both_tag_and_digest():
    digest = "sha256:86e0e091d0da6bde2456dbb48306f3956bbeb2eae1b5b9a43045843f69fe4aaa"
    reference = Reference.parse(f"busybox:latest@{digest}")
    assert (reference.tag, str(reference.digest)) == ("latest", digest)
    assert str(reference) == f"docker.io/library/busybox:latest@{digest}"
    assert reference.object == digest


@pytest.mark.parametrize(
    "text", [f"docker.io/library/{HEX64}", "docker.io/example.com/x", "docker.io/localhost/x"]
)
def test_familiar_form_never_changes_the_meaning(text):
    reference = Reference.parse(text)
    assert Reference.parse(reference.familiar()) == reference


# --- the other ways to read a reference ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:latest", "docker.io/library/busybox:latest"),
        (f"busybox@{BUSYBOX}", f"docker.io/library/busybox@{BUSYBOX}"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/busybox:latest", "docker.io/library/busybox:latest"),
        ("library/busybox:latest", "docker.io/library/busybox:latest"),
        ("gcr.io/library/busybox", "gcr.io/library/busybox:latest"),
        (f"gcr.io/library/busybox:latest@{BUSYBOX}", f"gcr.io/library/busybox@{BUSYBOX}"),
    ],
)
def test_docker_reference_has_one_of_tag_and_digest(text, normalised):
    assert str(parse_docker_reference(text)) == normalised


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("redis", "docker.io/library/redis"),
        ("redis:latest", "docker.io/library/redis:latest"),
        ("docker.io/library/redis:latest", "docker.io/library/redis:latest"),
        (f"redis@sha256:{REDIS_HEX}", f"docker.io/library/redis@sha256:{REDIS_HEX}"),
        ("dmcgowan/myapp", "docker.io/dmcgowan/myapp"),
        ("dmcgowan/myapp:latest", "docker.io/dmcgowan/myapp:latest"),
        (REDIS_HEX, f"sha256:{REDIS_HEX}"),
        (f"sha256:{REDIS_HEX}", f"sha256:{REDIS_HEX}"),
        (REDIS_HEX[:63], f"docker.io/library/{REDIS_HEX[:63]}"),
        ("dbcc1", "docker.io/library/dbcc1"),
    ],
)
def test_any_reference(text, parsed):
    assert str(parse_any_reference(text)) == parsed


def test_names_sort_the_most_telling_first():
    names = [
        "repo",
        "zzz/!!",
        f"repo@{SHA}",
        "repo:b",
        f"repo:b@{SHA}",
        "repo:a",
        F64,
        f"repo:a@{SHA}",
        "aaa/!!",
    ]
    name = "docker.io/library/repo"
    assert sort_references(names) == [
        f"{name}:a@{SHA}",
        f"{name}:b@{SHA}",
        f"{name}:a",
        f"{name}:b",
        f"{name}@{SHA}",
        name,
        SHA,
        "aaa/!!",
        "zzz/!!",
    ]


def test_parts_can_be_exchanged_but_not_by_nonsense():
    reference = Reference.parse("repo:a")
    assert str(reference.with_tag("b")) == "docker.io/library/repo:b"
    assert reference.with_tag(None).object is None
    assert reference.with_digest(Digest.parse(SHA)).object == SHA
    with pytest.raises(InvalidReference, match="tag"):
        reference.with_tag("no tag")
    with pytest.raises(InvalidReference, match="repository"):
        Reference("example.com", "UPPER")
    with pytest.raises(InvalidReference, match="255"):
        Reference("example.com", "a" * 256)


def test_image_id_is_refused_with_advice():
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(HEX64)
    assert "sha256:" in caught.value.hint


# --- any input ----------------------------------------------------------------------------------

REFERENCE_LIKE = st.from_regex(
    r"(([a-zA-Z0-9.-]{1,9}|localhost|docker\.io)(:[0-9]{1,4})?/)?"
    r"[a-z0-9._-]{1,9}(/[a-z0-9._-]{1,9})?(:[\w.-]{1,9})?",
    fullmatch=True,
)


@given(REFERENCE_LIKE | st.text(max_size=60))
@example("docker.io/library/library/x")
@example("index.docker.io/library/x")
def test_parsed_references_survive_both_forms(text):
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar()) == reference
    raw = parse_raw(str(reference))
    assert (raw.domain, raw.path) == (reference.domain, reference.path)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 4000 + "!",
        "a-" * 2000,
        "a." * 2000,
        "a_" * 2000,
        "a__" * 1300 + "/",
        "a/" * 2000 + "!",
        "[" + ":" * 4000,
        "x:" + "t" * 4000,
        "x@" + "a+" * 2000,
        "A" * (1 << 20),
    ],
    ids=lambda t: t[:4],
)
def test_hostile_text_costs_little(text):
    begin = time.perf_counter()
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert time.perf_counter() - begin < 1
    assert len(str(caught.value)) < 500

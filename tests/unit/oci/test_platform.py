import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import InvalidPlatform
from imgvol.oci.platform import Matcher, Platform, host_platform, only, only_strict

HOST = Platform("linux", "amd64")


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("arm", Platform("linux", "arm", "v7")),
        ("armel", Platform("linux", "arm", "v6")),
        ("armhf", Platform("linux", "arm", "v7")),
        ("Aarch64", Platform("linux", "arm64")),
        ("x86_64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("i386", Platform("linux", "386")),
        ("linux", Platform("linux", "amd64")),
        ("s390x", Platform("linux", "s390x")),
        ("macOS", Platform("darwin", "amd64")),
        ("macOS/arm64", Platform("darwin", "arm64")),
        ("linux/arm64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
        ("linux/arm/6", Platform("linux", "arm", "v6")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3")),
        ("linux/&arm".replace("&", ""), Platform("linux", "arm", "v7")),
        ("windows(10.0.17763)", Platform("windows", "amd64", os_version="10.0.17763")),
        (
            "windows(10.0.17763+win32k)",
            Platform("windows", "amd64", os_version="10.0.17763", os_features=("win32k",)),
        ),
        ("linux(+gpu+simd)", Platform("linux", "amd64", os_features=("gpu", "simd"))),
        ("linux(+simd+gpu)", Platform("linux", "amd64", os_features=("gpu", "simd"))),
        ("linux(1%2B2+a%2Bb)/arm64", Platform("linux", "arm64", "", "1+2", ("a+b",))),
        ("plan9/unheardof", Platform("plan9", "unheardof")),
    ],
)
def test_platforms_parse(text, platform):
    parsed = Platform.parse(text, host=HOST)
    assert parsed == platform
    assert Platform.parse(str(parsed), host=HOST) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/linux/arm",
        "linux/arm/",
        "linux /arm",
        "linux/&arm",
        "linux/arm/foo/bar",
        "unheardof",
        "linux/",
        "linux/*",
        "linux/arm\n",
        "linux(10",
        "linux()x/arm",
        "l\u00ednux/arm",
        "x" * 100_000,
    ],
    ids=lambda t: repr(t[:20]),
)
def test_not_platforms(text):
    with pytest.raises(InvalidPlatform) as caught:
        Platform.parse(text, host=HOST)
    assert len(str(caught.value)) < 500


def test_operating_system_alone_needs_a_host():
    with pytest.raises(InvalidPlatform, match="architecture"):
        Platform.parse("linux")
    assert Platform.parse("linux", host=Platform("linux", "arm", "v6")).variant == "v6"
    assert Platform.parse("arm64").os == "linux"


@pytest.mark.parametrize(
    ("platform", "normalised"),
    [
        (Platform("", ""), Platform("linux", "")),
        (Platform("MacOS", "X86-64"), Platform("darwin", "amd64")),
        (Platform("linux", "aarch64", "8"), Platform("linux", "arm64")),
        (Platform("linux", "arm64", "v8.0"), Platform("linux", "arm64")),
        (Platform("linux", "arm64", "9"), Platform("linux", "arm64", "v9")),
        (Platform("linux", "arm64", "9.0"), Platform("linux", "arm64", "v9")),
        (Platform("linux", "arm64", "v9.0"), Platform("linux", "arm64", "v9")),
        (Platform("linux", "arm64", "v9.6"), Platform("linux", "arm64", "v9.6")),
        (Platform("linux", "armhf", "v6"), Platform("linux", "arm", "v7")),
        (Platform("linux", "armel", "v7"), Platform("linux", "arm", "v6")),
        (Platform("linux", "arm"), Platform("linux", "arm", "v7")),
        (Platform("linux", "arm", "5"), Platform("linux", "arm", "v5")),
        (Platform("linux", "arm", "8"), Platform("linux", "arm", "v8")),
        (Platform("linux", "i386"), Platform("linux", "386")),
    ],
)
def test_one_spelling_for_each_thing(platform, normalised):
    assert platform.normalized() == normalised
    assert normalised.normalized() == normalised


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
        ("riscv64", "linux/riscv64"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_platform_of_this_machine(machine, text):
    assert str(host_platform("Linux", machine)) == text


ARM = ["linux/arm", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"]
WINDOWS = ["windows/amd64", "windows(10.0.17763)/amd64"]


def arm64(version: int, last: int) -> list[str]:
    minors = [f"linux/arm64/v{version}.{minor}" for minor in range(last + 1)]
    return [f"linux/arm64/v{version}", *minors]


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        (
            "linux/amd64",
            ["linux/amd64", "linux/386"],
            ["linux/amd64/v2", "linux/arm/v7", "linux/arm64", *WINDOWS],
        ),
        (
            "linux/amd64/v2",
            ["linux/amd64", "linux/amd64/v1", "linux/amd64/v2", "linux/386"],
            ["linux/amd64/v3", "linux/amd64/v4", *WINDOWS],
        ),
        ("linux/386", ["linux/386"], ["linux/amd64"]),
        ("windows/amd64", WINDOWS, ["linux/amd64", "linux/386"]),
        ("linux/arm/v8", ARM, ["linux/arm/v4", "linux/arm64", "linux/amd64"]),
        ("linux/arm/v7", ARM[:-1], ["linux/arm/v4", "linux/arm/v8", "linux/arm64"]),
        (
            "linux/arm/v6",
            ["linux/arm/v5", "linux/arm/v6"],
            ["linux/arm", "linux/arm/v4", "linux/arm/v7", "linux/arm/v8"],
        ),
        (
            "linux/arm/v5",
            ["linux/arm/v5"],
            ["linux/arm", "linux/arm/v4", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"],
        ),
        ("linux/arm/v4", ["linux/arm/v4"], ARM),
        (
            "linux/arm64",
            [*ARM, "linux/arm64", "linux/arm64/v8"],
            ["linux/arm/v4", "linux/arm/v9", "linux/arm64/v8.1", "linux/arm64/v9"],
        ),
        (
            "linux/arm64/v8.1",
            [*ARM, "linux/arm64", "linux/arm64/v8", "linux/arm64/v8.1"],
            ["linux/arm64/v8.2", "linux/arm64/v9"],
        ),
        (
            "linux/arm64/v9",
            [*ARM, *arm64(8, 5), *arm64(9, 0)],
            ["linux/arm64/v8.6", "linux/arm64/v9.1"],
        ),
        (
            "linux/arm64/v9.6",
            [*ARM, "linux/arm64", *arm64(8, 9), *arm64(9, 6)],
            ["linux/arm64/v8.10", "linux/arm64/v9.7", "linux/arm/v4"],
        ),
        ("linux/s390x", ["linux/s390x"], ["linux/s390", "linux/amd64"]),
    ],
)
def test_only_accepts_what_the_machine_runs(wanted, good, bad):
    matcher = only(Platform.parse(wanted))
    assert [text for text in good if not matcher.match(Platform.parse(text))] == []
    assert [text for text in bad if matcher.match(Platform.parse(text))] == []


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        ("linux/amd64", ["linux/amd64", "linux/amd64/v1"], ["linux/386", "linux/amd64/v2"]),
        ("linux/arm/v7", ["linux/arm", "linux/arm/v7"], ["linux/arm/v6", "linux/arm/v8"]),
        ("linux/arm/v8", ["linux/arm/v8"], ["linux/arm", "linux/arm/v7"]),
    ],
)
def test_only_strict_accepts_one(wanted, good, bad):
    matcher = only_strict(Platform.parse(wanted))
    assert all(matcher.match(Platform.parse(text)) for text in good)
    assert not any(matcher.match(Platform.parse(text)) for text in bad)


@pytest.mark.parametrize(
    ("wanted", "ordered"),
    [
        ("linux/amd64/v3", ["amd64/v3", "amd64/v2", "amd64", "386"]),
        ("linux/arm64", ["arm64", "arm/v8", "arm", "arm/v6", "arm/v5"]),
        ("linux/arm64/v9.1", ["arm64/v9.1", "arm64/v9", "arm64/v8.6", "arm64/v8", "arm/v8"]),
        ("linux/arm/v7", ["arm/v7", "arm/v6", "arm/v5"]),
    ],
)
def test_best_first(wanted, ordered):
    matcher = only(Platform.parse(wanted))
    platforms = [Platform.parse(f"linux/{text}") for text in ordered]
    unfit = Platform.parse("linux/s390x")
    assert sorted(set(platforms), key=matcher.rank) == platforms
    assert matcher.less(platforms[0], platforms[1])
    assert not matcher.less(platforms[1], platforms[0])
    assert matcher.less(platforms[-1], unfit)
    assert not matcher.less(unfit, unfit)


def test_windows_versions_match_up_to_the_build():
    matcher = only(Platform.parse("windows(10.0.17763.1)/amd64"))
    assert matcher.match(Platform.parse("windows(10.0.17763.2)/amd64"))
    assert not matcher.match(Platform.parse("windows(10.0.20348)/amd64"))


def test_features_of_an_image_must_be_wanted():
    plain, gpu = Platform.parse("linux/amd64"), Platform.parse("linux(+gpu)/amd64")
    assert only(gpu).match(plain)
    assert not only(plain).match(gpu)


def test_attestations_match_nothing():
    assert not only(HOST).match(Platform("unknown", "unknown"))


@pytest.mark.parametrize("variant", ["v999999999", "v1e9", "v" + "9" * 5000, "vv", "v8.999999999"])
@pytest.mark.parametrize("architecture", ["amd64", "arm", "arm64"])
def test_absurd_variants_do_not_make_long_lists(architecture, variant):
    assert len(only(Platform("linux", architecture, variant)).accepted) < 120


@given(st.text(max_size=30) | st.text(alphabet="linux/armv78()+%.", max_size=30))
def test_no_other_exception_on_any_text(text):
    try:
        platform = Platform.parse(text, host=HOST)
    except InvalidPlatform:
        return
    assert platform.normalized() == platform
    assert only(platform).match(platform)


@given(st.tuples(*[st.text(max_size=6)] * 4))
def test_any_platform_of_a_document_can_be_judged_and_shown(parts):
    platform = Platform(*parts)
    assert isinstance(only(HOST), Matcher)
    only(HOST).match(platform)
    assert isinstance(str(platform), str)
    assert platform.normalized().normalized() == platform.normalized()

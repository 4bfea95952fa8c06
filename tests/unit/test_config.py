"""What a daemon takes from its environment."""

from pathlib import Path

import pytest

from imgvol.config import (
    Config,
    LazyTrust,
    PreloadConfig,
    SpaceLimits,
    TransportChoice,
    parse_rate,
    pulls_environment,
)
from imgvol.errors import InvalidArgument


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, LazyTrust()),
        ({"IMGVOL_SOCI_REFERRERS": "", "IMGVOL_MISSING_DIGESTS": ""}, LazyTrust()),
        ({"IMGVOL_SOCI_REFERRERS": "0", "IMGVOL_MISSING_DIGESTS": "0"}, LazyTrust()),
        ({"IMGVOL_SOCI_REFERRERS": "1"}, LazyTrust(soci_referrers=True)),
        ({"IMGVOL_MISSING_DIGESTS": "1"}, LazyTrust(missing_digests=True)),
    ],
)
def test_only_what_is_pinned_is_trusted_unless_more_is_asked_for(environ, expected):
    assert Config.from_environment(environ, 0).trust == expected


@pytest.mark.parametrize("value", ["yes", "true", " 1", "2"])
def test_switch_that_is_neither_on_nor_off_is_refused(value):
    with pytest.raises(InvalidArgument, match="IMGVOL_SOCI_REFERRERS"):
        Config.from_environment({"IMGVOL_SOCI_REFERRERS": value}, 0)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("500", 500.0), ("500k", 5e5), ("2M", 2e6), ("1.5m", 1.5e6), ("3G", 3e9)],
)
def test_rates_are_bytes_per_second(text, rate):
    assert parse_rate(text) == rate
    assert Config.from_environment({"IMGVOL_BACKGROUND_RATE": text}, 0).background_rate == rate


@pytest.mark.parametrize("text", ["0", "0k", "-1", "fast", "1 M", "1MiB", "1e6", "", "\u0661"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(InvalidArgument, match="not a rate"):
        parse_rate(text)


def test_without_a_rate_the_background_has_no_limit():
    assert Config.from_environment({}, 0).background_rate is None


# --- where the configuration of registries is -----------------------------------------------------


def test_root_reads_the_systems_configuration_of_registries():
    paths = Config.from_environment({"HOME": "/root"}, 0).registries
    assert [str(each) for each in paths.hosts_dirs] == [
        "/etc/imgvol/certs.d",
        "/etc/containerd/certs.d",
        "/etc/docker/certs.d",
    ]
    assert [str(each) for each in paths.registries_files] == [
        "/etc/imgvol/registries.yaml",
        "/etc/rancher/k3s/registries.yaml",
    ]
    assert not paths.are_dirs_chosen
    assert not paths.is_file_chosen


@pytest.mark.parametrize(
    ("environ", "own"),
    [
        ({"HOME": "/home/jane"}, "/home/jane/.config/imgvol"),
        ({"HOME": "/home/jane", "XDG_CONFIG_HOME": "/c"}, "/c/imgvol"),
    ],
)
def test_a_user_reads_her_own_before(environ, own):
    paths = Config.from_environment(environ, 1000).registries
    assert str(paths.hosts_dirs[0]) == f"{own}/certs.d"
    assert str(paths.registries_files[0]) == f"{own}/registries.yaml"
    assert len(paths.hosts_dirs) == 4


def test_the_environment_and_options_choose_the_configuration_of_registries():
    environ = {
        "HOME": "/home/jane",
        "IMGVOL_HOSTS_DIRS": "/a:/b",
        "IMGVOL_REGISTRIES_FILE": "/r.yaml",
    }
    paths = Config.from_environment(environ, 1000).registries
    assert [str(each) for each in paths.hosts_dirs] == ["/a", "/b"]
    assert [str(each) for each in paths.registries_files] == ["/r.yaml"]
    assert paths.are_dirs_chosen
    assert paths.is_file_chosen
    assert paths.with_chosen([], None) == paths
    assert paths.with_chosen(["/c"], None).hosts_dirs == (Path("/c"),)
    assert paths.with_chosen([], "/s.yaml").registries_files == (Path("/s.yaml"),)


def test_the_preload_directory_comes_from_the_environment():
    environ = {
        "IMGVOL_PRELOAD": "/images",
        "IMGVOL_PRELOAD_LINK": "1",
        "IMGVOL_RETAG_REGISTRIES": "one.example, two.example/x",
        "IMGVOL_KEEP_PINS": "1",
        "IMGVOL_PRELOAD_WAIT": "1",
    }
    assert Config.from_environment(environ, 0).preload == PreloadConfig(
        directory=Path("/images"),
        links=True,
        registries=("one.example", "two.example/x"),
        keeps_pins=True,
        waits=True,
    )
    assert Config.from_environment({}, 0).preload == PreloadConfig()


def test_pulls_see_what_is_meant_for_them_and_the_rest():
    environ = {
        "PATH": "/bin",
        "https_proxy": "http://all:1",
        "HTTP_PROXY": "http://all:2",
        "IMGVOL_ROOT": "/r",
        "IMGVOL_ENV_HTTPS_PROXY": "http://pulls:1",
        "IMGVOL_ENV_no_proxy": "",
        "IMGVOL_ENV_": "nothing",
    }
    assert pulls_environment(environ) == {
        "PATH": "/bin",
        "HTTP_PROXY": "http://all:2",
        "IMGVOL_ROOT": "/r",
        "HTTPS_PROXY": "http://pulls:1",
        "no_proxy": "",
    }


def test_the_prefix_of_what_is_meant_for_pulls_can_be_another():
    environ = {"IMGVOL_https_proxy": "http://pulls:1", "HTTPS_PROXY": "http://all:1", "A": "b"}
    assert pulls_environment(environ, "IMGVOL_") == {"https_proxy": "http://pulls:1", "A": "b"}


def test_only_proxies_are_the_same_in_other_letters():
    environ = {"Path": "1", "IMGVOL_ENV_PATH": "2"}
    assert pulls_environment(environ) == {"Path": "1", "PATH": "2"}


def test_the_size_of_the_store_comes_from_the_environment_or_from_options():
    environ = {
        "HOME": "/home/ann",
        "IMGVOL_QUOTA": "20G",
        "IMGVOL_HIGH_WATERMARK": "70",
        "IMGVOL_LOW_WATERMARK": "50",
        "IMGVOL_MIN_FREE": "1.5G",
    }
    space = Config.from_environment(environ, 1000).space
    assert space == SpaceLimits(quota=20 * 10**9, high=70, low=50, min_free=1_500_000_000)
    chosen = space.with_chosen(quota="1M", high=None, low="60", min_free=None)
    assert (chosen.quota, chosen.high, chosen.low) == (10**6, 70, 60)
    assert not Config.from_environment({"HOME": "/home/ann"}, 1000).space.is_any
    for name, value in [("QUOTA", "much"), ("HIGH_WATERMARK", "40"), ("LOW_WATERMARK", "0")]:
        with pytest.raises(InvalidArgument):
            Config.from_environment({**environ, f"IMGVOL_{name}": value}, 1000)


def test_the_transport_comes_from_the_environment():
    environ = {"HOME": "/home/ann"}
    assert Config.from_environment(environ, 1000).transport is TransportChoice.AUTO
    for each in TransportChoice:
        chosen = Config.from_environment({**environ, "IMGVOL_TRANSPORT": each.value}, 1000)
        assert chosen.transport is each
    with pytest.raises(InvalidArgument, match="IMGVOL_TRANSPORT"):
        Config.from_environment({**environ, "IMGVOL_TRANSPORT": "pigeon"}, 1000)


@pytest.mark.parametrize(("value", "is_on"), [(None, True), ("", True), ("1", True), ("0", False)])
def test_passthrough_is_on_unless_somebody_says_otherwise(value, is_on):
    environ = {"HOME": "/home/ann"} | ({} if value is None else {"IMGVOL_PASSTHROUGH": value})
    config = Config.from_environment(environ, 1000)
    assert config.passthrough is is_on
    assert config.with_transport(None, None) == config
    chosen = config.with_transport("kernel", not is_on)
    assert (chosen.transport, chosen.passthrough) == (TransportChoice.KERNEL, not is_on)

"""Where imgvol keeps its things, decided once from the environment and passed down.

Nothing else in the package reads `os.environ` for paths.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

from imgvol import limits
from imgvol.errors import InvalidArgument

_RATE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kKmMgG]?)")
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([kKmMgGtT]?)[bB]?")
_POWERS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
# No variable of imgvol itself begins so.
ENVIRONMENT_PREFIX: Final = "IMGVOL_ENV_"
SYSTEM_ROOT = Path("/var/lib/imgvol")
SYSTEM_RUN = Path("/run/imgvol")
# In the root: an administrator may have made it before there is a store.
PRELOAD_NAME: Final = "images"
# Where Docker looks for plugins that are not its own (docs.docker.com, "Docker Plugin API").
DOCKER_SPEC = Path("/etc/docker/plugins/imgvol.spec")


# A registries.yaml counts alone, the first one that is there.
_SYSTEM_HOSTS: Final = ("/etc/imgvol/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d")
_SYSTEM_REGISTRIES: Final = ("/etc/imgvol/registries.yaml", "/etc/rancher/k3s/registries.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryPaths:
    """Where the configuration of registries is.

    Attributes:
        hosts_dirs: Directories with a directory for each registry, as containerd has them.
        registries_files: Places of a `registries.yaml`; the first one that is there counts.
        are_dirs_chosen: Whether somebody named the directories; else those that are not for this
            user are passed over.
        is_file_chosen: Whether somebody named the file: then it has to be there.
    """

    hosts_dirs: tuple[Path, ...] = ()
    registries_files: tuple[Path, ...] = ()
    are_dirs_chosen: bool = False
    is_file_chosen: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], uid: int) -> Self:
        """The usual places, or those that the environment names."""
        home = environ.get("HOME", "")
        personal = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
        own = (Path(personal) / "imgvol",) if personal and uid else ()
        paths = cls(
            hosts_dirs=(*(each / "certs.d" for each in own), *map(Path, _SYSTEM_HOSTS)),
            registries_files=(
                *(each / "registries.yaml" for each in own),
                *map(Path, _SYSTEM_REGISTRIES),
            ),
        )
        directories = environ.get("IMGVOL_HOSTS_DIRS", "")
        return paths.with_chosen(
            [each for each in directories.split(":") if each],
            environ.get("IMGVOL_REGISTRIES_FILE"),
        )

    def with_chosen(self, directories: Sequence[str], file: str | None) -> Self:
        """The same with other places, made absolute; none keep what is there."""
        chosen = self
        if directories:
            paths = tuple(Path(os.path.abspath(each)) for each in directories)
            chosen = replace(chosen, hosts_dirs=paths, are_dirs_chosen=True)
        if file:
            path = Path(os.path.abspath(file))
            chosen = replace(chosen, registries_files=(path,), is_file_chosen=True)
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyTrust:
    """What the operator of the machine allows beside what is pinned.

    Attributes:
        soci_referrers: SOCI indexes that only refer to an image: whoever may push to its repository
            can add one.
        missing_digests: Content that its table of contents gives no digest. It is shown as it comes
            from the registry, and checked when the layer is proven as a whole.
    """

    soci_referrers: bool = False
    missing_digests: bool = False


PINNED_ONLY: Final = LazyTrust()


class SpaceLines(NamedTuple):
    """How full the store may be, in bytes; None for all: as full as it likes.

    Attributes:
        low: Where eviction ends.
        high: Where it begins, and the background stops.
        hard: Beyond this nothing is written.
    """

    low: int | None
    high: int | None
    hard: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceLimits:
    """How much disk the store may take.

    Attributes:
        quota: Bytes that it may take; None: any.
        high: Percent of the quota where eviction begins.
        low: Percent of the quota where it ends.
        min_free: Bytes that it leaves free on its filesystem, as far as it can; None: none.
    """

    quota: int | None = None
    high: int = 90
    low: int = 80
    min_free: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 100:
            raise InvalidArgument(
                "watermarks that make no sense",
                hint="0 < low < high <= 100, in percent of the quota.",
                low=self.low,
                high=self.high,
            )

    def with_chosen(
        self, *, quota: str | None, high: str | None, low: str | None, min_free: str | None
    ) -> Self:
        """The same with what somebody has said; None and nothing keep what is there.

        Raises:
            InvalidArgument: It is no size or no percentage, or makes no sense together.
        """
        return replace(
            self,
            quota=parse_size(quota) if quota else self.quota,
            high=parse_percent(high) if high else self.high,
            low=parse_percent(low) if low else self.low,
            min_free=parse_size(min_free) if min_free else self.min_free,
        )

    @property
    def is_any(self) -> bool:
        """Whether there is a limit at all."""
        return self.quota is not None or self.min_free is not None

    def lines(self, used: int, free: int) -> SpaceLines:
        """Where the lines are.

        Args:
            used: What the store takes.
            free: What is free on its filesystem.
        """
        lines = []
        if self.quota is not None:
            lines.append((self.quota * self.low // 100, self.quota * self.high // 100, self.quota))
        if self.min_free is not None:
            # Eviction goes on until there is somewhat more than what has to be free.
            line = max(0, used + free - self.min_free)
            wide = self.min_free * (self.high - self.low) // self.high
            lines.append((max(0, line - wide), line, line))
        if not lines:
            return SpaceLines(None, None, None)
        return SpaceLines(*(min(each) for each in zip(*lines, strict=True)))


UNLIMITED: Final = SpaceLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceConfig:
    """What is done with traces.

    Attributes:
        follows: Whether mounts bring first what a trace names.
        referrers: Whether registries are asked for traces of images that have none here.
    """

    follows: bool = True
    referrers: bool = False


LOCAL_TRACES: Final = TraceConfig()


class TransportChoice(StrEnum):
    """What carries the kernel's requests: see `fs.choice`."""

    AUTO = "auto"
    PYFUSE3 = "pyfuse3"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreloadConfig:
    """The directory whose images are always here.

    Attributes:
        directory: It need not be there; None: there is none.
        links: Whether layers stay in archives that can be read where they lie.
        registries: Under which all of its images get names, too: `HOST[:PORT][/PREFIX]`.
        keeps_pins: Whether images of files that are removed stay pinned until the next start.
        waits: Whether the daemon is ready only when all has been loaded that is there at its start.
    """

    directory: Path | None = None
    links: bool = False
    registries: tuple[str, ...] = ()
    keeps_pins: bool = False
    waits: bool = False


NO_PRELOAD: Final = PreloadConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The directories and habits of one daemon.

    Attributes:
        root: The durable store; 0700, owned by one daemon at a time.
        run: Socket and mounts; gone after a reboot.
        is_system: Whether the daemon may make mounts itself (it runs as root).
        idle_exit: Seconds without volumes, pulls or requests after which the daemon leaves;
            None: never.
        trust: What may be shown of images that nothing pins; only what is pinned, by default.
        traces: What is done with traces of images.
        background_rate: Bytes per second that may be fetched of mounted images while nobody waits
            for them, of all together; None: as much as there is.
        pinned_images: Names of images that stay when they have come, whatever else happens.
        registries: Where the configuration of registries is.
        docker_spec: The file that tells Docker of our volume plugin; None: there is no plugin.
        exec_env_prefix: How variables begin that are for pulls, and the programs they run.
        max_downloads: Layers of all images that are pulled at once; None: as many as suits the
            machine.
        pull_progress_timeout: Seconds without a byte after which a pull has stalled; None: never.
        cri: The unix socket of the Container Runtime Interface; None: it is not served.
        runtime_handlers: What handlers of runtimes mean, each as `NAME=PLATFORM`.
        preload: The directory whose images are always here.
        space: How much disk the store may take.
        transport: What carries the kernel's requests.
        passthrough: Whether the kernel may read large files in the store itself, where it can.
    """

    root: Path
    run: Path
    is_system: bool
    idle_exit: float | None = None
    trust: LazyTrust = PINNED_ONLY
    traces: TraceConfig = LOCAL_TRACES
    background_rate: float | None = None
    pinned_images: tuple[str, ...] = ()
    registries: RegistryPaths = RegistryPaths()
    docker_spec: Path | None = None
    exec_env_prefix: str = ENVIRONMENT_PREFIX
    max_downloads: int | None = None
    pull_progress_timeout: float | None = limits.PULL_PROGRESS_TIMEOUT
    cri: Path | None = None
    runtime_handlers: tuple[str, ...] = ()
    preload: PreloadConfig = NO_PRELOAD
    space: SpaceLimits = UNLIMITED
    transport: TransportChoice = TransportChoice.AUTO
    passthrough: bool = True

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], uid: int) -> Self:
        """The defaults for a user: the system's for root, XDG's for anybody else.

        Raises:
            InvalidArgument: No home directory is known, so there is no place for the store; or a
                variable has a value that it cannot have.
        """
        if uid == 0:
            config = cls(root=SYSTEM_ROOT, run=SYSTEM_RUN, is_system=True)
        else:
            home = environ.get("HOME", "")
            data = environ.get("XDG_DATA_HOME") or (f"{home}/.local/share" if home else "")
            if not data:
                raise InvalidArgument(
                    "no place for the store",
                    hint="Set HOME or XDG_DATA_HOME, or pass --root and --run.",
                )
            runtime = environ.get("XDG_RUNTIME_DIR") or f"{data}/imgvol/run"
            config = cls(root=Path(data) / "imgvol", run=Path(runtime) / "imgvol", is_system=False)
        rate = environ.get("IMGVOL_BACKGROUND_RATE")
        config = replace(
            config,
            trust=LazyTrust(
                soci_referrers=_switch(environ, "IMGVOL_SOCI_REFERRERS"),
                missing_digests=_switch(environ, "IMGVOL_MISSING_DIGESTS"),
            ),
            traces=TraceConfig(
                follows=not _switch(environ, "IMGVOL_NO_TRACES"),
                referrers=_switch(environ, "IMGVOL_TRACE_REFERRERS"),
            ),
            background_rate=parse_rate(rate) if rate else None,
            registries=RegistryPaths.from_environment(environ, uid),
            preload=_preload(environ),
            space=_space(environ),
            transport=_transport(environ),
            passthrough=_switch(environ, "IMGVOL_PASSTHROUGH", default="1"),
        )
        return config.with_directories(environ.get("IMGVOL_ROOT"), environ.get("IMGVOL_RUN"))

    def with_directories(self, root: str | None, run: str | None) -> Self:
        """The same habits with other directories, made absolute; None keeps what is there."""
        return replace(
            self,
            root=Path(os.path.abspath(root)) if root else self.root,
            run=Path(os.path.abspath(run)) if run else self.run,
        )

    def with_transport(self, transport: str | None, passthrough: bool | None) -> Self:
        """The same with what somebody has said of the transport; None keeps what is there."""
        return replace(
            self,
            transport=TransportChoice(transport) if transport else self.transport,
            passthrough=self.passthrough if passthrough is None else passthrough,
        )

    @property
    def socket(self) -> Path:
        """The control API's unix socket."""
        return self.run / "imgvol.sock"

    @property
    def cri_socket(self) -> Path:
        """Where the Container Runtime Interface is served unless somebody says otherwise."""
        return self.run / "cri.sock"

    @property
    def docker_socket(self) -> Path:
        """The volume plugin's unix socket."""
        return self.run / "docker.sock"

    @property
    def docker_volumes(self) -> Path:
        """Where volumes of the plugin are mounted."""
        return self.run / "docker"

    @property
    def views(self) -> Path:
        """Where the FUSE filesystem is mounted: one directory per chain ID."""
        return self.run / "views"

    @property
    def volumes(self) -> Path:
        """Where volumes of sandboxes are bound: <sandbox>/<image>."""
        return self.run / "volumes"

    @property
    def images(self) -> Path:
        """Where images are preloaded from unless somebody says otherwise."""
        return self.root / PRELOAD_NAME

    @property
    def log(self) -> Path:
        """Where a daemon that was started on demand writes its log."""
        return self.root / "daemon.log"


def parse_rate(text: str) -> float:
    """Bytes per second: a number, with k, M or G behind it for the powers of 1000.

    Raises:
        InvalidArgument: It is something else, or nothing.
    """
    match = _RATE.fullmatch(text)
    rate = float(match[1]) * _POWERS[match[2].lower()] if match else 0.0
    if not rate:
        raise InvalidArgument(
            "not a rate", hint="Bytes per second, such as 500k, 2M or 1.5M.", value=text
        )
    return rate


def parse_size(text: str) -> int:
    """Bytes: a number, with k, M, G or T behind it for the powers of 1000.

    Raises:
        InvalidArgument: It is something else, or nothing.
    """
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _POWERS[match[2].lower()]) if match else 0
    if not size:
        raise InvalidArgument("not a size", hint="Bytes, such as 500M, 20G or 1.5T.", value=text)
    return size


def parse_percent(text: str) -> int:
    """A whole number of percent, from 1 to 100.

    Raises:
        InvalidArgument: It is something else.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 100):
        raise InvalidArgument("not a whole number of percent, from 1 to 100", value=text)
    return int(text)


def _space(environ: Mapping[str, str]) -> SpaceLimits:
    return UNLIMITED.with_chosen(
        quota=environ.get("IMGVOL_QUOTA"),
        high=environ.get("IMGVOL_HIGH_WATERMARK"),
        low=environ.get("IMGVOL_LOW_WATERMARK"),
        min_free=environ.get("IMGVOL_MIN_FREE"),
    )


def _transport(environ: Mapping[str, str]) -> TransportChoice:
    value = environ.get("IMGVOL_TRANSPORT") or TransportChoice.AUTO
    try:
        return TransportChoice(value)
    except ValueError as exc:
        raise InvalidArgument(
            "IMGVOL_TRANSPORT is none that there is", hint=", ".join(TransportChoice), value=value
        ) from exc


def _preload(environ: Mapping[str, str]) -> PreloadConfig:
    directory = environ.get("IMGVOL_PRELOAD")
    return PreloadConfig(
        directory=Path(os.path.abspath(directory)) if directory else None,
        links=_switch(environ, "IMGVOL_PRELOAD_LINK"),
        registries=tuple(environ.get("IMGVOL_RETAG_REGISTRIES", "").replace(",", " ").split()),
        keeps_pins=_switch(environ, "IMGVOL_KEEP_PINS"),
        waits=_switch(environ, "IMGVOL_PRELOAD_WAIT"),
    )


def pulls_environment(
    environ: Mapping[str, str], prefix: str = ENVIRONMENT_PREFIX
) -> dict[str, str]:
    """The environment in which images are pulled: `IMGVOL_ENV_X` is X there, whatever X is else.

    So the proxy of pulls need not be that of all services. An override leaves no variable of the
    same name in other letters, which might come before it.

    Args:
        environ: The daemon's own.
        prefix: Of variables that are meant for pulls.
    """
    overrides = {
        name.removeprefix(prefix): value
        for name, value in environ.items()
        if name.startswith(prefix) and name != prefix
    }
    hidden = {name.lower() for name in overrides if name.lower().endswith("_proxy")}
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(prefix) and name.lower() not in hidden
    }
    return {**kept, **overrides}


def supervisor_is_wanted(environ: Mapping[str, str]) -> bool | None:
    """Whether daemons run under a supervisor when the command line does not say; None: unsaid."""
    is_said = bool(environ.get("IMGVOL_SUPERVISOR"))
    return _switch(environ, "IMGVOL_SUPERVISOR") if is_said else None


def _switch(environ: Mapping[str, str], name: str, default: str = "0") -> bool:
    """What a variable that is 1 or 0 says; off when it is not set, unless told otherwise."""
    value = environ.get(name) or default
    if value not in {"0", "1"}:
        raise InvalidArgument(f"{name} is neither 0 nor 1", value=value)
    return value == "1"

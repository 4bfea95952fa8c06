"""`serve`, `stop`, `df`, `version`."""

import contextlib
import os
import select
import time
from pathlib import Path
from typing import Any, Final

import click

from imgvol import __version__, limits
from imgvol.cli import units
from imgvol.cli.client import NotRunning, connect, peer_process
from imgvol.cli.render import echo_facts, echo_json, echo_note
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.cli.supervision import stop_if_down, supervise_if_wanted
from imgvol.config import DOCKER_SPEC, ENVIRONMENT_PREFIX, TransportChoice, parse_rate
from imgvol.errors import DaemonUnavailable, InvalidArgument
from imgvol.supervisor import status

_STOP_DEADLINE: Final = 30.0
_POLL: Final = 0.05


@click.command(
    "serve",
    epilog=examples(
        "imgvol serve                        # as root: for the whole machine",
        "imgvol --root /tmp/r --run /tmp/s serve --idle-exit 60",
    ),
)
@click.option(
    "--idle-exit",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="Leave after so long without volumes, pulls and requests.",
)
@click.option(
    "--soci-referrers/--no-soci-referrers",
    default=None,
    help="Use SOCI indexes that only refer to an image: anyone who may push to its repository can "
    "add one. Off by default [IMGVOL_SOCI_REFERRERS].",
)
@click.option(
    "--missing-digests/--no-missing-digests",
    default=None,
    help="Show content that has no digest of its own before its layer has been checked as a whole. "
    "Off by default: such layers are pulled first [IMGVOL_MISSING_DIGESTS].",
)
@click.option(
    "--traces/--no-traces",
    "follows_traces",
    default=None,
    help="Whether mounts bring first what a trace of the image names. On by default "
    "[IMGVOL_NO_TRACES].",
)
@click.option(
    "--trace-referrers/--no-trace-referrers",
    default=None,
    help="Ask registries for traces of images that have none here: some more requests for each, "
    "and whoever may push can say what is fetched first. Off by default [IMGVOL_TRACE_REFERRERS].",
)
@click.option(
    "--background-rate",
    metavar="RATE",
    help="How fast to fetch what nobody waits for of mounted images, all together, in bytes per "
    "second: 500k, 2M. Unlimited by default [IMGVOL_BACKGROUND_RATE].",
)
@click.option(
    "--max-downloads",
    metavar="N",
    type=click.IntRange(1, limits.MAX_DOWNLOADS),
    help="How many layers to pull at once, of all images. By default 2 to 4, by the processors.",
)
@click.option(
    "--pull-progress-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=limits.PULL_PROGRESS_TIMEOUT,
    show_default=True,
    help="Give a pull up that waits for bytes and gets none for so long; 0: never.",
)
@click.option(
    "--runtime-handler",
    "runtime_handlers",
    metavar="NAME=PLATFORM[,lazy=off]",
    multiple=True,
    help="Which platform the sandboxes of a runtime handler want, and whether their images have to "
    "be here as a whole. May be repeated.",
)
@click.option(
    "--cri-socket",
    metavar="PATH",
    help="Where to serve the Kubernetes Container Runtime Interface; its directory is 0700. By "
    "default RUN/cri.sock for root, unless --idle-exit is given; nowhere otherwise.",
)
@click.option("--no-cri", is_flag=True, help="Do not serve the Container Runtime Interface.")
@click.option(
    "--hosts-dir",
    "hosts_dirs",
    metavar="DIR",
    multiple=True,
    help="Look for hosts.toml of registries here, as containerd does; again for more directories, "
    "the first that speaks of a registry counts [IMGVOL_HOSTS_DIRS, with colons].",
)
@click.option(
    "--registries-file",
    metavar="FILE",
    help="Mirrors, rewrites and logins in the form of k3s' registries.yaml "
    "[IMGVOL_REGISTRIES_FILE].",
)
@click.option(
    "--docker-plugin",
    metavar="[FILE]",
    is_flag=False,
    flag_value=str(DOCKER_SPEC),
    help=f"Also be a volume plugin for Docker, and tell it so in FILE [{DOCKER_SPEC}].",
)
@click.option(
    "--exec-env-prefix",
    metavar="PREFIX",
    default=ENVIRONMENT_PREFIX,
    show_default=True,
    help="Variables that begin so are, without it, for pulls and the programs that they run: "
    f"{ENVIRONMENT_PREFIX}HTTPS_PROXY is their proxy, and nobody else's.",
)
@click.option(
    "--pin-image",
    "pinned_images",
    metavar="IMAGE",
    multiple=True,
    help="Keep what has this name, now or later, from being collected. Can be repeated.",
)
@click.option(
    "--preload",
    metavar="DIR",
    help="Keep the images of archives and lists in DIR, which is watched. By default ROOT/images "
    "for root, unless --idle-exit is given; none otherwise [IMGVOL_PRELOAD].",
)
@click.option("--no-preload", is_flag=True, help="Have no such directory.")
@click.option(
    "--preload-link/--no-preload-link",
    default=None,
    help="Read uncompressed layers in those archives, and do not copy them: the archives have to "
    "stay [IMGVOL_PRELOAD_LINK].",
)
@click.option(
    "--preload-wait/--no-preload-wait",
    default=None,
    help="Be ready only when all has been loaded that is there at the start [IMGVOL_PRELOAD_WAIT].",
)
@click.option(
    "--retag-registry",
    "retag_registries",
    metavar="HOST[/PREFIX]",
    multiple=True,
    help="Give preloaded images names under this registry, too. Can be repeated "
    "[IMGVOL_RETAG_REGISTRIES].",
)
@click.option(
    "--keep-pins/--no-keep-pins",
    default=None,
    help="Keep images of a file pinned that is removed, until the next start [IMGVOL_KEEP_PINS].",
)
@click.option(
    "--quota",
    metavar="SIZE",
    help="How much disk the store may take: 20G. What was used longest ago and can be fetched again"
    " goes when it is nearly full. Any, by default [IMGVOL_QUOTA].",
)
@click.option(
    "--high-watermark",
    metavar="PERCENT",
    help="Evict when it is fuller than this. 90 by default [IMGVOL_HIGH_WATERMARK].",
)
@click.option(
    "--low-watermark",
    metavar="PERCENT",
    help="Evict down to this. 80 by default [IMGVOL_LOW_WATERMARK].",
)
@click.option(
    "--min-free",
    metavar="SIZE",
    help="Also evict when less is free on the store's filesystem [IMGVOL_MIN_FREE].",
)
@click.option(
    "--transport",
    type=click.Choice([each.value for each in TransportChoice]),
    help="What carries the kernel's requests: pyfuse3, or the kernel's protocol spoken by imgvol "
    "itself (Linux 6.9). By default what imgvol doctor says [IMGVOL_TRANSPORT].",
)
@click.option(
    "--passthrough/--no-passthrough",
    default=None,
    help="With the transport kernel: have the kernel read large files in the store itself. On by "
    "default, where the kernel can; imgvol doctor says so. Without, the kernel opens files by "
    "itself, so that small ones are read faster [IMGVOL_PASSTHROUGH].",
)
@click.option(
    "--supervisor/--no-supervisor",
    "is_supervised",
    default=None,
    help="Have a small process start the daemon again when it crashes; clients and readers wait "
    "meanwhile. By default with the transport kernel [IMGVOL_SUPERVISOR].",
)
@click.option("--ready-fd", metavar="FD", type=click.IntRange(min=0), hidden=True)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="IMGVOL_LOG_LEVEL",
    help="How much to log, on standard error [IMGVOL_LOG_LEVEL].",
)
@click.option(
    "--log-file",
    metavar="FILE",
    envvar="IMGVOL_LOG_FILE",
    help="Log there instead; 50 MiB, and three compressed files more [IMGVOL_LOG_FILE].",
)
@pass_session
def serve_command(
    session: Session,
    /,
    *,
    idle_exit: float | None,
    soci_referrers: bool | None,
    missing_digests: bool | None,
    follows_traces: bool | None,
    trace_referrers: bool | None,
    background_rate: str | None,
    max_downloads: int | None,
    pull_progress_timeout: float,
    runtime_handlers: tuple[str, ...],
    cri_socket: str | None,
    no_cri: bool,
    hosts_dirs: tuple[str, ...],
    registries_file: str | None,
    docker_plugin: str | None,
    exec_env_prefix: str,
    pinned_images: tuple[str, ...],
    preload: str | None,
    no_preload: bool,
    preload_link: bool | None,
    preload_wait: bool | None,
    retag_registries: tuple[str, ...],
    keep_pins: bool | None,
    quota: str | None,
    high_watermark: str | None,
    low_watermark: str | None,
    min_free: str | None,
    transport: str | None,
    passthrough: bool | None,
    is_supervised: bool | None,
    ready_fd: int | None,
    log_level: str,
    log_file: str | None,
) -> int:
    """Run the daemon in the foreground.

    The other commands start one by themselves when there is none; it leaves when it is idle.
    """
    config = session.config.with_transport(transport, passthrough)
    ready_fd = supervise_if_wanted(config, is_supervised, ready_fd)
    from dataclasses import replace

    from imgvol import daemon

    config = replace(
        config,
        idle_exit=idle_exit,
        max_downloads=max_downloads,
        pull_progress_timeout=pull_progress_timeout or None,
        runtime_handlers=runtime_handlers,
        pinned_images=pinned_images,
        exec_env_prefix=exec_env_prefix,
        registries=config.registries.with_chosen(hosts_dirs, registries_file),
    )
    trust = config.trust
    if soci_referrers is not None:
        trust = replace(trust, soci_referrers=soci_referrers)
    if missing_digests is not None:
        trust = replace(trust, missing_digests=missing_digests)
    habits_of_traces = {"follows": follows_traces, "referrers": trace_referrers}
    chosen = {name: value for name, value in habits_of_traces.items() if value is not None}
    config = replace(config, trust=trust, traces=replace(config.traces, **chosen))
    if background_rate is not None:
        config = replace(config, background_rate=parse_rate(background_rate))
    if cri_socket is not None and no_cri:
        raise InvalidArgument("give --cri-socket or --no-cri, not both")
    if cri_socket is not None:
        config = replace(config, cri=Path(os.path.abspath(cri_socket)))
    elif config.is_system and idle_exit is None and not no_cri:
        config = replace(config, cri=config.cri_socket)
    if docker_plugin is not None:
        config = replace(config, docker_spec=Path(os.path.abspath(docker_plugin)))
    directory = config.preload.directory
    if preload is not None and no_preload:
        raise InvalidArgument("give --preload or --no-preload, not both")
    if preload is not None:
        directory = Path(os.path.abspath(preload))
    elif directory is None and config.is_system and idle_exit is None:
        directory = config.images
    given = {"links": preload_link, "waits": preload_wait, "keeps_pins": keep_pins}
    habits = replace(
        config.preload,
        directory=None if no_preload else directory,
        registries=retag_registries or config.preload.registries,
        **{name: value for name, value in given.items() if value is not None},
    )
    config = replace(config, preload=habits)
    space = config.space.with_chosen(
        quota=quota, high=high_watermark, low=low_watermark, min_free=min_free
    )
    config = replace(config, space=space)
    log_path = Path(os.path.abspath(log_file)) if log_file else None
    return daemon.run(config, ready_fd=ready_fd, log_level=log_level, log_file=log_path)


@click.command("stop", epilog=examples("imgvol stop", "imgvol stop --force"))
@click.option("--force", is_flag=True, help="Unmount all volumes, in use or not.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def stop_command(session: Session, /, *, force: bool) -> None:
    """Stop the daemon, and wait until it has gone. No daemon is fine too."""
    path = str(session.config.socket)
    try:
        process = open_process(path)
    except NotRunning:
        if not session.is_quiet:
            echo_note("No daemon was running.")
        return
    try:
        if not stop_if_down(session.config, process):
            session.running_client.call("POST", "/stop", body={"force": force})
        _wait_until_gone(path, process)
    finally:
        if process is not None:
            os.close(process)


def open_process(path: str) -> int | None:
    """A descriptor of the process behind a socket; None when it cannot be had.

    Its socket goes first, its locks only with the process: the next daemon needs these. Where there
    is a supervisor, it is the last to go.
    """
    supervisor = status.read(os.path.dirname(path))
    if supervisor is not None:
        with contextlib.suppress(OSError):
            return os.pidfd_open(supervisor.pid)
    with connect(path, timeout=_STOP_DEADLINE) as connected:
        pid, _ = peer_process(connected)
    try:
        return os.pidfd_open(pid)
    except (OSError, ValueError):
        return None  # it is in another container, or has gone


def _wait_until_gone(path: str, process: int | None) -> None:
    deadline = time.monotonic() + _STOP_DEADLINE
    while time.monotonic() < deadline:
        if process is not None:
            # Readable once it has ended, whether somebody has waited for it or not.
            if select.select([process], [], [], deadline - time.monotonic())[0]:
                return
            continue
        try:
            connect(path, timeout=_STOP_DEADLINE).close()
        except NotRunning:
            return
        time.sleep(_POLL)
    raise DaemonUnavailable(
        f"the daemon has not ended after {_STOP_DEADLINE:g} s",
        hint="Programs may hang in a view; free them with: imgvol abort",
    )


@click.command("df", epilog=examples("imgvol df", "imgvol df --json"))
@json_option()
@quiet_option()
@verbose_option()
@pass_session
def df_command(session: Session, /) -> None:
    """Show what the store holds, and what is left on its disk."""
    usage = session.client.call("GET", "/usage")
    space = session.client.call("GET", "/space")
    if session.is_json:
        echo_json({**usage, "space": space})
        return
    facts = [("store", str(session.config.root)), *_usage_facts(usage), *_space_facts(space)]
    echo_facts(facts)


def _space_facts(space: dict[str, Any]) -> list[tuple[str, str]]:
    """The limits, and what could be evicted and what could not."""
    facts = [("in use", units.size(space["used"]))]
    if space["quota"] is not None:
        facts.append(("quota", units.size(space["quota"])))
    if space["min_free"] is not None:
        facts.append(("to be left free", units.size(space["min_free"])))
    if space["high"] is not None:
        lines = f"above {units.size(space['high'])}, down to {units.size(space['low'])}"
        facts.append(("evicts", lines))
    facts += [
        ("could be evicted", f"{units.size(space['evictable_layers'])} of unused images"),
        ("could be given back", f"{units.size(space['evictable_spans'])} of mounted lazy layers"),
    ]
    facts += [(f"stays, {why}", units.size(size)) for why, size in space["kept"].items()]
    return facts


# What was saved: the number of bytes, what it is called, and of how many it is.
_SAVINGS: Final = {
    "copied_bytes": ("copied, not fetched", "copied_spans", "pieces"),
    "cloned_bytes": ("cloned, not written", "", ""),
    "shared_bytes": ("shared, not fetched", "shared_layers", "layers"),
    "linked_size": ("linked, not stored", "", ""),
}


def _usage_facts(usage: dict[str, Any]) -> list[tuple[str, str]]:
    """Numbers by name: what says bytes or disk is a size, the rest are counts."""
    facts = []
    counted = {count for _, count, _ in _SAVINGS.values()}
    for key, value in usage.items():
        if key in counted:
            continue
        if key in _SAVINGS:
            label, count, what = _SAVINGS[key]
            number = f" ({units.count(usage[count])} {what})" if count else ""
            facts.append((label, f"{units.size(value)}{number}"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            is_size = "bytes" in key or "size" in key or key.startswith("disk")
            shown = units.size(value) if is_size else units.count(int(value))
            facts.append((key.replace("_", " "), shown))
    return facts


@click.command("version", epilog=examples("imgvol version", "imgvol version --json"))
@json_option()
@verbose_option()
@pass_session
def version_command(session: Session, /) -> None:
    """Print the versions of the command and of the daemon, if one is running."""
    try:
        daemon: dict[str, Any] | None = session.running_client.call("GET", "/version")
    except DaemonUnavailable:
        daemon = None
    if session.is_json:
        echo_json({"version": __version__, "daemon": daemon})
        return
    facts = [("imgvol", __version__)]
    if daemon is None:
        facts.append(("daemon", "not running"))
    else:
        since = units.age(daemon["started_at"])
        facts.append(("daemon", f"{daemon['version']}, process {daemon['pid']}, started {since}"))
    echo_facts(facts)

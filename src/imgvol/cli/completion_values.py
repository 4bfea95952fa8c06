"""Values for shell completion: quick, and silent when there is no daemon or no answer."""

from typing import Any, Final

import click
from click.shell_completion import CompletionItem

# Longer than this feels like a shell that hangs.
_PATIENCE: Final = 0.5


def complete_image(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem[Any]]":
    """Names of local images."""
    images = _ask(context, "/images").get("images", [])
    names = {name for image in images for name in _spellings(image["names"])}
    return _items(names, incomplete)


def complete_volume(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem[Any]]":
    """Paths and IDs of volumes: paths, unless the word begins as no path does."""
    volumes = _ask(context, "/volumes").get("volumes", [])
    targets = {volume["target"] for volume in volumes if volume["target"]}
    identifiers = {volume["id"] for volume in volumes}
    return _items(targets if incomplete.startswith("/") else targets | identifiers, incomplete)


def complete_lease(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem[Any]]":
    """IDs of leases."""
    leases = _ask(context, "/leases").get("leases", [])
    return _items({lease["id"] for lease in leases}, incomplete)


def complete_path(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem[Any]]":
    """Paths inside the image that the command line names before."""
    from imgvol.cli.pulling import absolute_image

    image = context.params.get("image")
    if not image:
        return []
    directory = incomplete.rpartition("/")[0] + "/"
    chosen = {"image": absolute_image(image), "path": directory}
    try:
        events = list(_client(context).iter_events("GET", "/files/list", chosen))
    except Exception:  # noqa: BLE001 - no completion is better than noise in a prompt
        return []
    found = {
        directory + event["path"].rpartition("/")[2] + ("/" if event["type"] == "directory" else "")
        for event in events
        if event["event"] == "entry"
    }
    return _items(found, incomplete)


def _spellings(names: list[str]) -> set[str]:
    """Each name, and the short form that people type."""
    from imgvol.cli.names import familiar

    return {spelling for name in names for spelling in (name, familiar(name))}


def _items(values: set[str], incomplete: str) -> "list[CompletionItem[Any]]":
    # A line break in a value would be two values, and other controls are worse.
    return [
        CompletionItem(value)
        for value in sorted(values)
        if value.startswith(incomplete) and value.isprintable()
    ]


def _client(context: click.Context) -> Any:
    from imgvol.cli.client import Client
    from imgvol.cli.session import Session

    # The group's callback does not run for a completion, its parameters are parsed all the same.
    session = context.find_object(Session) or Session()
    return Client(str(session.config.socket), timeout=_PATIENCE)


def _ask(context: click.Context, path: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = _client(context).call("GET", path)
    except Exception:  # noqa: BLE001 - no completion is better than noise in a prompt
        return {}
    return answer

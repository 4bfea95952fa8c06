"""What requests that push may carry, and what is told of the push."""

import pytest

from imgvol.api.fields import parse_body
from imgvol.api.pushing import (
    PUSH_PROGRESS,
    PUSHED,
    PUSHING,
    TARGET,
    encode_push_progress,
    encode_pushed,
    open_push,
    parse_target,
)
from imgvol.errors import InvalidArgument, InvalidReference, Unauthorized
from imgvol.oci.digest import Digest
from imgvol.oci.reference import Reference
from imgvol.publish.pushing import BlobProgress, Pushed, PushProgress
from support.upload_server import UploadServer

FIELDS = (TARGET, *PUSHING)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("example.com/a", "example.com/a:latest"),
        ("example.com/a:1", "example.com/a:1"),
        ("a", "docker.io/library/a:latest"),
    ],
)
def test_target_has_a_tag(text, target):
    values = parse_body(f'{{"target": "{text}"}}'.encode(), FIELDS)
    assert parse_target(values) == Reference.parse(target)


def test_target_that_is_none():
    with pytest.raises(InvalidReference):
        parse_target(parse_body(b'{"target": "A/b c"}', FIELDS))
    with pytest.raises(InvalidArgument, match="target is missing"):
        parse_body(b"{}", FIELDS)


async def test_a_digest_is_no_target():
    digest = Digest.of(b"")
    values = parse_body(f'{{"target": "example.com/a@{digest}"}}'.encode(), FIELDS)
    with pytest.raises(InvalidArgument, match="not where it goes"):
        async with open_push(values, parse_target(values), None):
            pass


async def test_the_login_of_a_request_is_used_and_only_that(monkeypatch, tmp_path):
    logins = tmp_path / "auth.json"
    logins.write_text("{}")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(logins))
    with UploadServer() as server:
        server.authorization = "Basic bWU6c2VjcmV0LXdvcmQ="
        request = f'"target": "{server.domain}/some/image"'
        login = '"username": "me", "password": "secret-word"'
        values = parse_body(f"{{{request}, {login}}}".encode(), FIELDS)
        async with open_push(values, parse_target(values), None) as pusher:
            assert not await pusher.has_blob(Digest.of(b"x"))
        values = parse_body(f"{{{request}}}".encode(), FIELDS)
        async with open_push(values, parse_target(values), None) as pusher:
            with pytest.raises(Unauthorized):
                await pusher.has_blob(Digest.of(b"x"))


async def test_options_that_contradict():
    values = parse_body(b'{"target": "a", "plain_http": true, "insecure": true}', FIELDS)
    with pytest.raises(InvalidArgument, match="no certificates"):
        async with open_push(values, parse_target(values), None):
            pass


def test_what_is_told_has_the_members_that_are_said():
    progress = PushProgress(
        blobs=[
            BlobProgress(Digest.of(b"a"), 10, "exists"),
            BlobProgress(Digest.of(b"b"), 20, "mounted"),
            BlobProgress(Digest.of(b"c"), 30, "done", 30),
            BlobProgress(Digest.of(b"d"), 40, "sending", 5),
            BlobProgress(Digest.of(b"e"), 50),
        ]
    )
    told = encode_push_progress(progress)
    assert told == {"stage": "blobs", "blobs": 5, "finished": 3, "size": 120, "sent": 35}
    assert told.keys() == PUSH_PROGRESS.keys()
    assert encode_pushed(Pushed(Digest.of(b"a"), "n")).keys() == PUSHED.keys()

"""Every operation of the OpenAPI document, with what no document can forbid (F92).

Texts that are hostile to names, paths, terminals and shells, numbers beyond any range, and far too
much of anything, one at a time; bodies and queries that are none, methods and paths that do not
exist: each gets an answer of the form that the document promises, soon, and never a 500; and when
all is over nothing is left of any of it. What the document itself allows and forbids is tried in
test_api_schemathesis.py, but for streams without an end.

Made from the document alone, so an operation that is added is tried, too.
"""

import json
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from imgvol import limits
from imgvol.api.openapi import openapi_document
from support.api_client import ask
from support.served import LEASE, served_daemon

pytestmark = [pytest.mark.fuse, pytest.mark.fault("F92")]

DOCUMENT = openapi_document()
OPERATIONS = [
    pytest.param(
        method.upper(),
        path,
        # Where it stands, to find the schemas of its answers.
        {**operation, "at": f"{path.replace('/', '~1')}/{method}"},
        id=operation["operationId"],
    )
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
ROOT = "urn:imgvol"
REGISTRY = Registry().with_resource(ROOT, DRAFT202012.create_resource(DOCUMENT))
# What the document says may happen besides 4xx: a registry or this machine has not what it takes.
EXCUSED = {501, 502, 503, 507}
SLOWEST = 10.0
BODIES = [
    b"",
    b" ",
    b"{",
    b"[]",
    b"null",
    b'"a"',
    b"1e999",
    b'{"image": "a", "image": "b"}',
    b'{"image": 1' + b"0" * 5000 + b"}",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b'{"image": "\xff"}',
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"[" * 100_000,
    b"{" + b" " * limits.API_BODY_SIZE + b"}",
]
LONG = "x" * 100_000
TEXTS = [
    "",
    " ",
    ".",
    "..",
    "/",
    "//",
    "../../../../etc/passwd",
    "/proc/self/root/etc",
    "/proc/self/fd/0",
    "/dev/zero",
    "a\0b",
    "a\nb\r\nc: d",
    "\x1b[31m",
    "\u202egnp.exe",
    "é" * 300,
    "\ud800",
    "\udc80\udcff",
    "\U0001f600",
    "%00%2e%2e",
    "$(reboot)`reboot`",
    "'; DROP TABLE image; --",
    "-rf",
    "sha256:" + "0" * 64,
    "sha256:" + "0" * 63,
    "0" * 12,
    "oci:/",
    "oci:/nonexistent:tag",
    "oci-archive:/dev/null",
    "oci-archive:/dev/zero",
    "docker-archive:/proc/self/mem",
    "docker-archive:/proc/kmsg",
    "localhost:1/a/b:c",
    "127.0.0.1:1/a@sha256:" + "0" * 64,
    "user:password@localhost:1/a",
    "linux/amd64/v99/x",
    "windows/arm",
    "0:0:4294967295",
    "0:0:1,0:0:1",
    "a" * (limits.REFERENCE_LENGTH + 1),
    LONG,
]
HOSTILE = {
    "string": TEXTS,
    "number": (NUMBERS := [1e308, float("inf"), float("nan"), 10**30]),
    "integer": NUMBERS,
    "array": [["a"] * 2000, [[]], [{str(n): "" for n in range(2000)}], [{"length": 1}] * 2000],
    "object": [{str(n): "" for n in range(2000)}, {"": {}}],
    "boolean": [],
}


# What makes sense, by the member's name: what is hostile elsewhere is then looked at, too.
SENSIBLE = {
    "platform": "linux/amd64",
    "path": "/etc/motd",
    "sub_path": "etc",
    "image_sub_path": "etc",
    "sandbox": LEASE,
    "lease": LEASE,
    "container_path": "/data",
    "readonly": True,
    "host_path": "",
    "pull": "missing",
    "drain": 0,
    "ca_file": "/nonexistent",
    "uid_mappings": "0:100000:65536",
    "gid_mappings": "0:100000:65536",
    "propagation": "private",
    "label": "a=b",
    "labels": {"a": "b"},
    "target": "/nonexistent",
    "volume": "/nonexistent",
    "kinds": "image.created,image.removed",
}


@pytest.fixture(scope="module")
def served(our_roots, tmp_path_factory):
    with served_daemon(Path(our_roots[1]) / tmp_path_factory.mktemp("schema").name) as served:
        yield served


def send(served, method, target, operation, body=None):
    """Sends one request and holds the answer to what the document says."""
    started = time.monotonic()
    answer = ask(served.socket, method, target, body, is_endless=is_endless(operation))
    assert time.monotonic() - started < SLOWEST
    check_answer(answer, operation)
    if answer.status == 200 and method != "GET":
        served.restore()


def check_answer(answer, operation):
    """Fails unless the document allows the answer."""
    assert answer.status < 500 or answer.status in EXCUSED, answer
    responses = operation["responses"]
    name = str(answer.status) if str(answer.status) in responses else "default"
    response = responses[name]
    where = f"/paths/{operation['at']}/responses/{name}"
    if "$ref" in response:
        where = response["$ref"].removeprefix("#")
        response = DOCUMENT["components"]["responses"][where.rpartition("/")[2]]
    content = response["content"]
    assert answer.media_type in content, answer
    if answer.media_type.endswith("json"):
        media_type = answer.media_type.replace("/", "~1")
        schema = {"$ref": f"{ROOT}#{where}/content/{media_type}/schema"}
        validator = Draft202012Validator(schema, registry=REGISTRY)
        assert answer.is_whole
        assert answer.documents, "an answer has at least one document"
        for document in answer.documents:
            validator.validate(document)


def members_of(operation):
    """The schemas of what an operation takes, and whether it is in the query."""
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        return schema["properties"], set(schema["required"]), False
    parameters = operation.get("parameters", [])
    required = {parameter["name"] for parameter in parameters if parameter["required"]}
    return {p["name"]: p["schema"] for p in parameters}, required, True


def kind_of(schema):
    """The type of a value that is not null."""
    return schema["type"][0] if isinstance(schema["type"], list) else schema["type"]


def sensible(name, schema, image):
    """A value that the daemon does something with."""
    kind = kind_of(schema)
    if name == "image":
        return image
    if kind == "array":
        items = schema["items"]
        if items["type"] != "object":
            return [image] if name == "images" else ["ro"]
        members = items["properties"]
        wanted = {"image", "readonly", "container_path"} & members.keys() or members.keys()
        return [{key: sensible(key, members[key], image) for key in wanted}]
    if kind in {"integer", "number"} and name != "drain":
        return 1
    if name in SENSIBLE:
        return SENSIBLE[name]
    return {"boolean": False}.get(kind, "a")


def requests_of(operation, image):
    """One hostile thing at a time, all else as it should be."""
    members, required, in_query = members_of(operation)
    good = {name: sensible(name, members[name], image) for name in required}
    yield good
    for name, schema in members.items():
        for value in TEXTS if in_query else HOSTILE[kind_of(schema)]:
            yield {**good, name: value}
        if kind_of(schema) == "array" and schema["items"]["type"] == "object":
            (element,) = sensible(name, schema, image)
            for member, inner in schema["items"]["properties"].items():
                for value in HOSTILE[kind_of(inner)]:
                    yield {**good, name: [{**element, member: value}]}


def is_endless(operation):
    return operation["operationId"] == "followEvents"


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_one_hostile_value_at_a_time(served, method, path, operation):
    _, _, in_query = members_of(operation)
    for request in requests_of(operation, served.image):
        if in_query:
            query = {
                name: value.encode("utf-8", "surrogatepass") for name, value in request.items()
            }
            send(served, method, f"{path}?{urlencode(query)}", operation)
        else:
            send(served, method, path, operation, json.dumps(request).encode())
    served.check_nothing_left()


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_bodies_and_queries_that_are_none(served, method, path, operation):
    for body in BODIES:
        answer = ask(served.socket, method, path, body, is_endless=is_endless(operation))
        assert answer.status < 500
    for text in ("a", "=", "&&&", "%", "%zz=%", "a=1&a=2", "&".join(f"a{n}=1" for n in range(99))):
        send(served, method, f"{path}?{text}", operation)
    assert ask(served.socket, method, f"{path}/more").status == 404
    assert ask(served.socket, "BREW", path).status == 405

"""Every operation of the OpenAPI document, with what it does not expect (F92).

Members that are missing, of another type, too long, out of range, and hostile, one at a time and
many at once: each gets an answer of the form that the document promises, soon, and never a 500; and
when all is over nothing is left of any of it.

Made from the document alone, so an operation that is added is tried, too.
"""

import json
import os
import time
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from imgvol import limits
from imgvol.api.openapi import openapi_document
from support import images
from support.api_client import ask
from support.daemon import running_daemon
from support.guards import mounts_below

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
OTHERS = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    float("inf"),
    float("nan"),
    10**30,
    [],
    {},
    [[]],
    [None],
    [{}],
    {"a": None},
    {"": {}},
    ["a"] * 2000,
    [{"length": 1}] * 2000,
    {str(n): "" for n in range(2000)},
]
HOSTILE = [*TEXTS, *OTHERS]


# What makes sense, by the member's name: what is hostile elsewhere is then looked at, too.
SENSIBLE = {
    "platform": "linux/amd64",
    "path": "/etc/motd",
    "sub_path": "etc",
    "image_sub_path": "etc",
    "sandbox": "pod",
    "lease": "pod",
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
    """A daemon with one image and one volume; in the end it has just these."""
    base = Path(our_roots[1]) / tmp_path_factory.mktemp("schema").name
    base.mkdir(mode=0o755)
    content = images.Layer([images.file("etc/motd", b"hello")], "gzip")
    layout = images.write_layout(base / "layout", {"v": images.Image([content])})
    with pytest.MonkeyPatch.context() as environment:
        # Nothing is asked of the network: whatever is not on this machine is refused at once.
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            environment.setenv(name, "http://127.0.0.1:1")
        with running_daemon(base, RETRIES=0, CONNECT_RETRIES=0) as daemon:
            served = Served(daemon, f"oci:{layout}:v")
            yield served
            served.check_nothing_left()


class Served:
    """The daemon under test, and what it had before."""

    def __init__(self, daemon, image):
        self.daemon, self.image = daemon, image
        daemon.run("mount", image, daemon.target("kept"))
        self.socket = daemon.run_dir / "imgvol.sock"
        self.volumes, self.leases = self._volumes(), self._leases()
        self.images, self.mounts = self._images(), self._mounts()
        self.files = self._files()

    def ask(self, method, path, operation, *, query=(), body=None):
        """Sends one request and holds the answer to what the document says."""
        text = "&".join(f"{quote(name)}={_quoted(value)}" for name, value in query)
        data = None if body is None else json.dumps(body).encode()
        return self.send(method, f"{path}?{text}" if text else path, operation, data)

    def send(self, method, target, operation, body=None):
        started = time.monotonic()
        answer = ask(self.socket, method, target, body, is_endless=is_endless(operation))
        assert time.monotonic() - started < SLOWEST
        check_answer(answer, operation)
        if answer.status == 200 and method == "POST":
            self.clean()
        return answer

    def clean(self):
        """Takes away what a request that was right has made."""
        for volume in self._volumes() - self.volumes:
            answer = ask(self.socket, "DELETE", f"/v1/volumes?volume={quote(volume)}")
            assert answer.status == 200, answer.body
        for lease in self._leases() - self.leases:
            answer = ask(self.socket, "DELETE", f"/v1/leases?lease={quote(lease)}&drain=0")
            assert answer.status == 200, answer.body

    def check_nothing_left(self):
        """Whatever is not there any more, or is there and was not."""
        self.clean()
        assert self._volumes() == self.volumes
        assert self._leases() == self.leases
        assert self._images() == self.images
        assert self._mounts() == self.mounts
        assert os.listdir(self.daemon.root / "ingest") == []
        assert [*(self.daemon.run_dir / "volumes").glob("*")] == []
        assert self._get("/check")["wrong"] == []
        # What the pool of threads and sqlite keep open differs a little.
        assert self._files() <= self.files + 10

    def _get(self, path):
        return json.loads(ask(self.socket, "GET", f"/v1{path}").body)

    def _volumes(self):
        return {volume["id"] for volume in self._get("/volumes")["volumes"]}

    def _leases(self):
        return {lease["id"] for lease in self._get("/leases")["leases"]}

    def _images(self):
        return {image["id"] for image in self._get("/images")["images"]}

    def _mounts(self):
        return mounts_below([str(self.daemon.base)])

    def _files(self):
        return len(os.listdir(f"/proc/{self.daemon.process.pid}/fd"))


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


def _quoted(value):
    if isinstance(value, str):
        return quote_from_bytes(value.encode("utf-8", "surrogatepass"), safe="")
    return quote(json.dumps(value), safe="")


def members_of(operation):
    """The schemas of what an operation takes, and whether it is in the query."""
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        return schema["properties"], set(schema["required"]), False
    parameters = operation.get("parameters", [])
    required = {parameter["name"] for parameter in parameters if parameter["required"]}
    return {p["name"]: p["schema"] for p in parameters}, required, True


def sensible(name, schema, image):
    """A value that the daemon does something with."""
    if name == "image":
        return image
    if schema["type"] == "array":
        items = schema["items"]
        if items["type"] != "object":
            return [image] if name == "images" else ["ro"]
        members = items["properties"]
        wanted = {"image", "readonly", "container_path"} & members.keys() or members.keys()
        return [{key: sensible(key, members[key], image) for key in wanted}]
    if schema["type"] in {"integer", "number"} and name != "drain":
        return 1
    if name in SENSIBLE:
        return SENSIBLE[name]
    return {"boolean": False}.get(schema["type"], "a")


def requests_of(operation, image):
    """One wrong thing at a time, all else as it should be."""
    members, required, in_query = members_of(operation)
    good = {name: sensible(name, members[name], image) for name in required}
    yield good
    yield {**good, "unknown": "x"}
    for name, schema in members.items():
        if name in required:
            yield {key: value for key, value in good.items() if key != name}
        yield {**good, name: sensible(name, schema, image)}
        if in_query:
            hostile = TEXTS
        else:
            hostile = HOSTILE if schema["type"] in {"string", "array"} else OTHERS
        for value in hostile:
            yield {**good, name: value}
        if schema["type"] == "array" and schema["items"]["type"] == "object":
            (element,) = sensible(name, schema, image)
            for member in schema["items"]["properties"]:
                for value in HOSTILE:
                    yield {**good, name: [{**element, member: value}]}


def is_endless(operation):
    return operation["operationId"] == "followEvents"


def ends_the_daemon(operation, request):
    return operation["operationId"] == "stopDaemon" and request.get("force") is True


def send(served, method, path, operation, request):
    _, _, in_query = members_of(operation)
    if in_query:
        return served.ask(method, path, operation, query=list(request.items()))
    return served.ask(method, path, operation, body=request)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_one_wrong_member_at_a_time(served, method, path, operation):
    for request in requests_of(operation, served.image):
        if not ends_the_daemon(operation, request):
            send(served, method, path, operation, request)
    served.check_nothing_left()


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_bodies_and_queries_that_are_none(served, method, path, operation):
    for body in BODIES:
        answer = ask(served.socket, method, path, body, is_endless=is_endless(operation))
        assert answer.status < 500
    for text in ("a", "=", "&&&", "%", "%zz=%", "a=1&a=2", "&".join(f"a{n}=1" for n in range(99))):
        served.send(method, f"{path}?{text}", operation)
    assert ask(served.socket, method, f"{path}/more").status == 404
    assert ask(served.socket, "BREW", path).status == 405


values = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(), max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_anything_anywhere(served, data):
    method, path, operation = data.draw(st.sampled_from(OPERATIONS)).values
    members, _, _ = members_of(operation)
    request = {}
    for name, schema in members.items():
        choice = data.draw(st.integers(0, 3))
        if choice == 3:
            request[name] = data.draw(values)
        elif choice:
            request[name] = sensible(name, schema, served.image)
    if not ends_the_daemon(operation, request):
        send(served, method, path, operation, request)

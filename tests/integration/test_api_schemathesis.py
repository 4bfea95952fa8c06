"""The HTTP API against its own OpenAPI document, by schemathesis (F92).

For every operation schemathesis makes requests that the document allows and requests that it
forbids: each boundary of each member once, then at random, with a fixed seed. No answer is a 5xx
that the document does not announce, none has a status, a media type or a body that is not in it,
none takes long, and what is forbidden is refused. When all is over nothing is left of any of it.

What no document can say, such as texts that are hostile to a file system, is in test_api_schema.py.
"""

import collections
import itertools
import json
from pathlib import Path

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig

from imgvol.api.openapi import openapi_document
from support.served import LEASE, served_daemon
from support.unix_requests import unix_session

# pyproject.toml keeps it from every run that does not need it.
pytest_plugins = ["schemathesis.pytest.plugin"]
pytestmark = pytest.mark.fuse

DOCUMENT = openapi_document()
OPERATIONS = {
    operation["operationId"]
    for methods in DOCUMENT["paths"].values()
    for operation in methods.values()
}
LEFT_OUT = {
    "followEvents": "its good answer has no end; test_api_schema.py reads the first line",
    "recordTrace": "it lasts as long as is asked for; test_traces.py records",
}
# What is as good as 200 here: 200 would be the end of the daemon, or takes an open file that comes
# with the request, which no client of HTTP can send (tests/integration/test_import_export.py does),
# or a trace or an index, of which there is none (test_traces.py and test_indexes.py have some), or
# a registry to push to (test_convert.py has one).
BEST = {
    "stopDaemon": 409,
    "exportImages": 400,
    "finishTrace": 404,
    "pushTrace": 404,
    "readTrace": 404,
    "removeTrace": 404,
    "removeIndexes": 404,
    "pushIndexes": 404,
    "convertImage": 503,
}
SLOWEST = 10
# The document's examples stand for what is here; see the fixture `real`.
IMAGE, SANDBOX, TARGET = "docker.io/library/alpine:3.20", "3f9c2a71", "/mnt/alpine"
ARCHIVE, BASE_NAME = "/srv/images/app.tar", "docker.io/library/app"
VALUES = {
    "image": [IMAGE],
    "sandbox": [SANDBOX],
    "target": [TARGET],
    "path": ["/etc", "/etc/os-release"],
    "platform": ["linux/amd64"],
    "archive": [ARCHIVE],
    "base_name": [BASE_NAME],
}
MEMBERS = {
    "image": ["query.image", "body.image", "body.images[*]", "body.mounts[*].image"],
    "sandbox": ["query.lease", "body.lease", "body.sandbox"],
    "target": ["query.volume", "body.target"],
    "path": ["query.path"],
    "archive": ["body.path"],
    "base_name": ["body.base_name"],
    "platform": ["query.platform", "body.platform"],
}
CONFIG = {
    "seed": 92,
    "base-url": "http://localhost",
    "request-timeout": SLOWEST,
    "generation": {"max-examples": 20, "deterministic": True, "database": "none"},
    # Not what it finds in the sources: they would be another test with every change.
    "analysis": {"constants": {"enabled": False}},
    "checks": {
        "max_response_time": SLOWEST,
        # Where the document says so: a registry or this machine has not what it takes.
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 501, 502, 503, 507]},
        # The grammar of a reference, a platform or a certificate is in no schema: texts that the
        # schema allows are refused, too. That each operation also answers well is tested below.
        "positive_data_acceptance": {"enabled": False},
    },
    # More often than not what exists, or nearly all that would be tried is a 404.
    "dictionaries": {name: {"values": values} for name, values in VALUES.items()},
    "parameters": {
        member: {"dictionary": name, "probability": 0.6}
        for name, members in MEMBERS.items()
        for member in members
    },
}
answers = collections.defaultdict(set)
numbers = itertools.count(1)


def pytest_generate_tests(metafunc):
    """Numbers the operations' tests: to pytest they have one ID, which is that of parameters."""
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", [next(numbers)])


@schemathesis.deserializer("application/x-ndjson")
def documents_of(_context, response):
    return [json.loads(line) for line in response.content.splitlines()]


def strict_document():
    """The document with a schema for streams as a whole, and with no word for any other status."""
    document = json.loads(json.dumps(DOCUMENT))
    for methods in document["paths"].values():
        for operation in methods.values():
            del operation["responses"]["default"]
            for media_type, answer in operation["responses"]["200"]["content"].items():
                if media_type.endswith("ndjson"):
                    answer["schema"] = {"type": "array", "minItems": 1, "items": answer["schema"]}
    return document


schema = schemathesis.openapi.from_dict(
    strict_document(), config=SchemathesisConfig.from_dict(CONFIG)
).exclude(operation_id=list(LEFT_OUT))


@pytest.fixture(scope="module")
def served(our_roots, tmp_path_factory):
    with served_daemon(Path(our_roots[1]) / tmp_path_factory.mktemp("schemathesis").name) as served:
        yield served


@pytest.fixture(scope="module")
def session(served):
    with unix_session(served.socket) as session:
        yield session


@pytest.fixture(scope="module")
def real(served):
    """What is here, by the example that stands for it."""
    return {
        IMAGE: served.image,
        SANDBOX: LEASE,
        TARGET: served.target,
        ARCHIVE: served.layout,
        "linux/arm64": "linux/amd64",
        "/etc/os-release": "/etc/motd",
    }


def replaced(value, real):
    if isinstance(value, dict):
        return {name: replaced(member, real) for name, member in value.items()}
    if isinstance(value, list):
        return [replaced(element, real) for element in value]
    return real.get(value, value) if isinstance(value, str) else value


def ends_the_daemon(operation, body):
    return operation == "stopDaemon" and isinstance(body, dict) and body.get("force") is True


def has_bare_flag(case):
    """Whether a flag has no value: `?force` is taken for true, which no schema can say."""
    flags = [
        parameter["name"]
        for parameter in case.operation.definition.raw.get("parameters", ())
        if parameter["schema"].get("type") == "boolean"
    ]
    query = case.query if isinstance(case.query, dict) else {}
    return any(query.get(name) == "" for name in flags)


@pytest.mark.fault("F92")
@schema.parametrize()
def test_an_operation_does_what_its_document_says(case, number, served, session, real):
    operation = case.operation.definition.raw["operationId"]
    if ends_the_daemon(operation, case.body) or has_bare_flag(case):
        return
    for part in ("query", "body"):
        value = getattr(case, part)
        # Only what differs: schemathesis judges anew whether the document allows what is set.
        if (wanted := replaced(value, real)) != value:
            setattr(case, part, wanted)
    if operation == "unmountVolume":
        served.post("volumes", image=served.image, target=served.target)
    response = case.call_and_validate(session=session)
    answers[operation].add(response.status_code)
    if case.method != "GET":
        served.restore()


def test_every_operation_has_been_tried_or_is_left_out_for_a_reason(served):
    """Of this file as a whole: alone it fails."""
    assert answers.keys() | LEFT_OUT.keys() == OPERATIONS
    assert not answers.keys() & LEFT_OUT.keys()
    seen = {name: codes for name, codes in answers.items() if BEST.get(name, 200) not in codes}
    assert not seen, "never answered well"
    served.check_nothing_left()

"""The OpenAPI 3.1 document, made from the route table."""

from http import HTTPStatus

from imgvol import __version__
from imgvol.api.fields import Field, object_schema
from imgvol.api.http import JSON, NDJSON, OCTETS, PLAIN
from imgvol.api.route import Route
from imgvol.api.routes import ROUTES
from imgvol.api.schemas import COMPONENTS, Schema, reference

_ABOUT = """\
Control of one imgvol daemon, over its unix socket (0600; only its own user and root are served).

Errors are `Problem` documents. Operations that answer with `application/x-ndjson` give one JSON
object per line; an error before the first line is a `Problem` with a status of its own, a later one
is an `ErrorEvent` line, which is the last. Clients ignore members that they do not know.
"""


def openapi_document() -> dict[str, object]:
    """Build the document; a plain JSON value."""
    paths: dict[str, dict[str, object]] = {}
    for route in ROUTES:
        paths.setdefault(route.full_path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "imgvol",
            "version": __version__,
            "summary": "Container images as read-only directories.",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # A URL has no form for a unix socket: clients connect to it and send any Host.
        "servers": [{"url": "http://localhost", "description": "<run>/imgvol.sock"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in ROUTES)],
        "paths": paths,
        "components": {
            "schemas": COMPONENTS,
            "responses": {
                "Problem": {
                    "description": "What is wrong, and what to do next.",
                    "content": {JSON: {"schema": reference("Problem")}},
                }
            },
        },
    }


def _operation(route: Route) -> dict[str, object]:
    operation: dict[str, object] = {
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [route.tag],
        "responses": _responses(route),
    }
    if route.query:
        operation["parameters"] = [_parameter(field) for field in route.query]
    if route.body:
        operation["requestBody"] = {
            # An empty body is an object without members.
            "required": any(field.required for field in route.body),
            "content": {JSON: {"schema": object_schema(route.body)}},
        }
    return operation


def _parameter(field: Field) -> dict[str, object]:
    return {
        "name": field.name,
        "in": "query",
        "required": field.required,
        "description": field.description,
        "schema": field.schema(),
        **({} if field.example is None else {"example": field.example}),
    }


def _responses(route: Route) -> dict[str, object]:
    content: dict[str, object] = {"schema": _answer_schema(route)}
    descriptions = {
        JSON: "The result.",
        NDJSON: "One JSON object per line, each of which matches the schema.",
        OCTETS: "The bytes.",
        PLAIN: "The text.",
    }
    responses: dict[str, object] = {
        "200": {
            "description": descriptions[route.media_type],
            "content": {route.media_type: content},
        }
    }
    for status in sorted({400, *route.errors}):
        problem = {"$ref": "#/components/responses/Problem"}
        responses[str(status)] = {**problem, "summary": HTTPStatus(status).phrase}
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    return responses


def _answer_schema(route: Route) -> Schema:
    if route.media_type == OCTETS:
        return {"type": "string", "contentMediaType": OCTETS}
    if route.media_type == PLAIN:
        return {"type": "string"}
    if len(route.answers) == 1:
        return reference(route.answers[0])
    return {"oneOf": [reference(name) for name in route.answers]}

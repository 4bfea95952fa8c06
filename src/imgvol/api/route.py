"""What a route is: one operation of the API, as the dispatch and the OpenAPI document need it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from imgvol.api.fields import Field, Values
from imgvol.api.http import JSON, Response, Stream
from imgvol.api.services import Services

Handler = Callable[[Services, Values], Awaitable[Response | Stream]]

PREFIX: Final = "/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation.

    Attributes:
        method: HTTP method.
        path: Below the prefix.
        prefix: Where it is; what is no part of the versioned API is at the top.
        operation: Its identifier for generated clients.
        summary: One sentence.
        tag: The group it is shown in.
        handler: Does it.
        answers: Names of the component schemas of the answer; for NDJSON, of its lines.
        media_type: Of the answer.
        query: What the query string may carry.
        body: What the JSON body may carry.
        errors: Statuses that an error of this operation typically has.
        takes_file: Whether an open file may come with the request, over SCM_RIGHTS.
    """

    method: str
    path: str
    operation: str
    summary: str
    tag: str
    handler: Handler
    answers: tuple[str, ...]
    prefix: str = PREFIX
    media_type: str = JSON
    query: tuple[Field, ...] = ()
    body: tuple[Field, ...] = ()
    errors: tuple[int, ...] = ()
    takes_file: bool = False

    @property
    def full_path(self) -> str:
        """The path as a client asks for it."""
        return self.prefix + self.path

"""Requests to a registry with whatever authorisation they need."""

import dataclasses
from typing import Final

import httpx

from imgvol.errors import ImgvolError
from imgvol.registry.auth import Authorizer
from imgvol.registry.challenge import parse_challenges
from imgvol.registry.channel import Channel
from imgvol.registry.hops import Hops, Request, discard, words_of
from imgvol.registry.hosts import Endpoint
from imgvol.registry.redaction import Secret

_SECRET_LENGTH: Final = 8


class Session:
    """One endpoint, as one user sees it. Safe to use from any thread."""

    def __init__(self, endpoint: Endpoint, hops: Hops, authorizer: Authorizer) -> None:
        self.hops = hops
        self._endpoint = endpoint
        self._authorizer = authorizer
        # Short ones are no secrets, and would make holes in every message.
        self._header_secrets = tuple(
            value for _, value in endpoint.headers if len(value.reveal()) >= _SECRET_LENGTH
        )

    def send(self, channel: Channel, request: Request, repository: str) -> httpx.Response:
        """One try: ask, answer a challenge if there is one, ask again. Whatever comes then, comes.

        To be called by what `Hops.insist` calls.

        Args:
            channel: The caller's.
            request: What to ask; its authorisation is filled in here.
            repository: Whose content it is about.
        """
        authorization = self._authorizer.current(repository)
        response = self.hops.follow(channel, self._with(request, repository, authorization))
        if response.status_code != httpx.codes.UNAUTHORIZED or not self.hops.is_registry(response):
            return response
        challenges = parse_challenges(response.headers.get_list("www-authenticate"))
        if not challenges:
            return response
        discard(response)
        renewed = self._authorizer.renew(channel, repository, challenges, rejected=authorization)
        return self.hops.follow(channel, self._with(request, repository, renewed))

    def refusal(self, response: httpx.Response, request: Request, repository: str) -> ImgvolError:
        """The error that an answer means which is not the one we want; the answer is closed."""
        is_registry, who = self.hops.is_registry(response), self._endpoint.who
        return request.judge(
            response,
            what=request.what,
            who=who if is_registry else f"the server that {who} sent us to",
            words=words_of(response, self._with(request, repository, None)),
            # Nobody logs in to an object store.
            hint=self._authorizer.hint(repository) if is_registry else "",
        ).error

    def _with(self, request: Request, repository: str, authorization: Secret | None) -> Request:
        return dataclasses.replace(
            request,
            authorization=authorization,
            private=self._endpoint.headers,
            secrets=(*self._authorizer.secrets(repository), *self._header_secrets),
        )

"""Requests to a registry with whatever authorisation they need."""

import dataclasses

import httpx

from imgvol.errors import ImgvolError
from imgvol.registry.auth import Authorizer
from imgvol.registry.challenge import parse_challenges
from imgvol.registry.channel import Channel
from imgvol.registry.failures import failure_of_status
from imgvol.registry.hops import Hops, Request, discard, words_of
from imgvol.registry.redaction import Secret


class Session:
    """One registry, as one user sees it. Safe to use from any thread."""

    def __init__(self, hops: Hops, authorizer: Authorizer) -> None:
        self.hops = hops
        self._authorizer = authorizer

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
        is_registry = self.hops.is_registry(response)
        return failure_of_status(
            response,
            what=request.what,
            who="the registry" if is_registry else "the server that the registry sent us to",
            words=words_of(response, self._with(request, repository, None)),
            # Nobody logs in to an object store.
            hint=self._authorizer.hint(repository) if is_registry else "",
        ).error

    def _with(self, request: Request, repository: str, authorization: Secret | None) -> Request:
        secrets = self._authorizer.secrets(repository)
        return dataclasses.replace(request, authorization=authorization, secrets=secrets)

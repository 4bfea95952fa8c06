"""The limits that a registry client obeys, as one value, so that tests can set small ones."""

from dataclasses import dataclass

from imgvol import limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Durations in seconds, sizes in bytes; `imgvol.limits` says where each value comes from."""

    connect_timeout: float = limits.CONNECT_TIMEOUT
    read_timeout: float = limits.READ_TIMEOUT
    document_deadline: float = limits.DOCUMENT_DEADLINE
    minimum_rate: float = limits.MINIMUM_RATE
    rate_window: float = limits.RATE_WINDOW
    redirects: int = limits.REDIRECTS
    retries: int = limits.RETRIES
    connect_retries: int = limits.CONNECT_RETRIES
    stall_retries: int = limits.STALL_RETRIES
    retry_budget: int = limits.RETRY_BUDGET
    retry_first_delay: float = limits.RETRY_FIRST_DELAY
    retry_delay: float = limits.RETRY_DELAY
    retry_after: float = limits.RETRY_AFTER
    push_chunk: int = limits.PUSH_CHUNK
    push_answer: float = limits.PUSH_ANSWER
    manifest_size: int = limits.MANIFEST_SIZE
    token_size: int = limits.TOKEN_SIZE


DEFAULT_BOUNDS = Bounds()

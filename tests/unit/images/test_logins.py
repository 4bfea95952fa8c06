"""Logins of pulls: which is used, and how long it is kept."""

from imgvol.images.credentials import KeptLogins, Logins
from imgvol.registry import StaticCredentials
from support.pulling import login


def found(source, repository="h.example/a/b"):
    registry, _, path = repository.partition("/")
    return source.find(registry, path).credential


def test_a_login_that_came_with_a_pull_is_used_for_it_and_else_none():
    logins = Logins()
    assert found(logins.for_pull(login("request"))) == login("request")
    assert logins.for_pull(None) is None


def test_reads_use_the_login_of_the_latest_pull_of_the_repository():
    logins = Logins()
    reads = logins.for_reads()
    assert found(reads) is None
    logins.kept.keep("h.example/a/b", login("first"))
    assert found(reads) == login("first")
    logins.kept.keep("h.example/a/b", login("second"))
    assert found(reads) == login("second")
    assert found(reads, "h.example/a/c") is None
    logins.kept.keep("h.example/a/b", None)
    assert found(reads) is None
    assert reads.find("h.example", "a/b").notes == (
        "no pull since the daemon's start has brought a login",
    )


def test_there_are_never_too_many():
    kept = KeptLogins(most=2)
    for name in ("a", "b", "a", "c"):
        kept.keep(f"h.example/{name}", login(name))
    assert kept.repositories == {"h.example/a", "h.example/c"}
    kept.forget({"h.example/a", "h.example/unknown"})
    assert kept.repositories == {"h.example/c"}


def test_nothing_shows_them():
    kept = KeptLogins()
    kept.keep("h.example/a", login("c4n4ry"))
    for thing in (
        kept,
        kept.find("h.example", "a"),
        login("c4n4ry"),
        StaticCredentials(login("c4n4ry")),
    ):
        assert "c4n4ry" not in repr(thing) + str(thing)

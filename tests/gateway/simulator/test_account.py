"""The account knows what was asked, and forgets in time."""

from gateway.simulator import account
from gateway.simulator.account import Account


def test_only_the_first_end_counts() -> None:
    """What comes later is an echo of it."""
    record = Account().begin("/v1", 1.0)
    record.end("cut", 2.0)
    record.end("client_gone", 3.0)
    assert (record.outcome, record.ended_at_s) == ("cut", 2.0)


def test_a_public_record_has_no_headers_and_no_body_unless_asked() -> None:
    """Prompts and keys stay inside."""
    books = Account()
    record = books.begin("/v1", 1.0)
    record.headers = {"authorization": "Bearer secret"}
    books.keep_body(record, {"messages": ["private"]})
    assert "secret" not in str(record.public(with_body=True))
    assert "private" not in str(record.public(with_body=False))
    assert record.public(with_body=True)["body"] == {"messages": ["private"]}
    assert "secret" not in repr(record)


def test_old_records_and_older_bodies_are_dropped() -> None:
    """Memory is bounded."""
    books = Account()
    for serial in range(account._KEPT_RECORDS + 5):
        books.keep_body(books.begin("/v1", float(serial)), {"n": serial})
    assert len(books.records) == account._KEPT_RECORDS
    assert sum(record.body is not None for record in books.records) == account._KEPT_BODIES
    assert books.records[-1].body == {"n": account._KEPT_RECORDS + 4}


def test_clearing_forgets_everything() -> None:
    """And says how much that was."""
    books = Account()
    books.begin("/v1", 1.0)
    assert books.clear() == 1
    assert not books.records
    assert books.begin("/v1", 2.0).serial == 2

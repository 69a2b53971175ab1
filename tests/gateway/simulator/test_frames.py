"""Events are framed as server-sent events."""

from gateway.simulator.frames import data_line, named_event


def test_a_data_line_is_compact_json_in_utf8() -> None:
    """With the line end of the wire."""
    assert data_line({"text": "水"}) == 'data: {"text":"水"}\n\n'.encode()
    assert data_line({}, b"\r\n") == b"data: {}\r\n\r\n"


def test_a_named_event_has_its_name_first() -> None:
    """Then the data, then a blank line."""
    assert named_event("ping", {"type": "ping"}) == b'event: ping\ndata: {"type":"ping"}\n\n'

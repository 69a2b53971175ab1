"""A rejection carries what the provider would say."""

from gateway.simulator.ask import Complaint, Rejected, invalid


def test_an_invalid_request_is_a_400_unless_said_otherwise() -> None:
    """With the message, the parameter and the code."""
    rejected = invalid("no", param="n", code="c")
    assert isinstance(rejected, Rejected)
    assert rejected.complaint == Complaint(status=400, message="no", param="n", code="c")
    assert invalid("no", status=422).complaint.status == 422

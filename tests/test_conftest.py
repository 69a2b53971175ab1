from hypothesis import HealthCheck, settings


def test_no_example_has_to_be_quick() -> None:
    """What a test leaves open is as here: on a loaded machine an example takes as long as it takes."""
    assert settings().deadline is None
    assert settings(max_examples=1).deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check

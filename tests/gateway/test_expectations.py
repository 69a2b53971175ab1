import pytest

from gateway.expectations import expect, failing, lacking, unlike


class Library:
    """What is expected of it is ``known``, with one parameter."""

    number = 1

    def known(self, value: int) -> int:
        """Return it."""
        return value


@pytest.mark.parametrize(
    ("attribute", "parameters", "names"),
    [
        ("known", ["self", "value"], []),
        ("known", ("self", "value"), []),
        ("known", ["self"], ["it"]),
        ("known", ["self", "value", "other"], ["it"]),
        ("gone", ["self"], ["it"]),
        ("number", ["self"], ["it"]),
    ],
)
def test_what_has_other_parameters_or_is_not_there_is_named(
    attribute: str, parameters: list[str], names: list[str]
) -> None:
    """And what cannot be called at all."""
    assert list(unlike({"it": (Library, attribute, parameters)})) == names


def test_what_is_not_there_is_named() -> None:
    """Whatever it would be."""
    assert list(lacking({"number": (Library, "number"), "it": (Library, "gone")})) == ["it"]


def test_a_rehearsal_that_goes_wrong_is_told_with_its_reason() -> None:
    """Whatever it raises; one that goes well is not told of."""

    def rehearse() -> None:
        expect(1 + 1 == 2, "a sum")
        expect(1 + 1 == 3, "another sum")

    assert list(failing(rehearse, "sums")) == ["sums: LookupError: another sum"]
    assert list(failing(lambda: expect(True, "a sum"), "sums")) == []  # noqa: FBT003, as in an assertion

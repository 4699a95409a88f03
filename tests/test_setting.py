import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.setting import Kind, choice, count, duration, factor, flag, names, show_size, size, text, url


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("5s", 5.0),
        ("250ms", 0.25),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("7d", 604_800.0),
        ("0.5 s", 0.5),
        (3, 3.0),
        (0.1, 0.1),
    ],
)
def test_durations_are_seconds_or_have_a_unit(value: object, seconds: float) -> None:
    assert duration(0.01).parse(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "5 sec", "-1", "1e3", "nan", "inf", "5ss", True, None, -1, [5]])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        duration(0.01).parse(value)


def test_a_duration_below_its_minimum() -> None:
    with pytest.raises(ValueError, match=r"must be at least 0\.5 s"):
        duration(0.5).parse("499ms")


def test_one_of_several_words() -> None:
    assert choice("ping", "k8s", "noop").parse("k8s") == "k8s"
    for value in ("", "PING", None, 1):
        with pytest.raises(ValueError, match="must be ping, k8s or noop"):
            choice("ping", "k8s", "noop").parse(value)


@pytest.mark.parametrize(
    ("value", "total"), [("1024", 1024), ("64KiB", 65536), ("1 MiB", 1048576), (2048, 2048)]
)
def test_sizes_are_bytes_or_have_a_unit(value: object, total: int) -> None:
    assert size(1, 2**30).parse(value) == total


@pytest.mark.parametrize("value", ["1MB", "1.5MiB", "", -5, True, None, 1.5])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        size(1, 2**30).parse(value)


def test_a_size_outside_of_its_range_names_the_range() -> None:
    with pytest.raises(ValueError, match="must be 1 KiB to 16 MiB"):
        size(1024, 16 * 2**20).parse("17MiB")


@given(st.integers(0, 2**40))
def test_a_size_that_is_shown_reads_as_itself(total: int) -> None:
    assert size(0, 2**50).parse(show_size(total)) == total


@pytest.mark.parametrize("value", [0, -1, "0", "-3", "unbounded", "1.5", 1.5, True, None])
def test_counts_are_whole_and_positive(value: object) -> None:
    with pytest.raises(ValueError, match="must be a whole number, at least 1"):
        count().parse(value)


def test_counts_may_be_text_with_underscores() -> None:
    assert count().parse("1_000_000") == 1_000_000


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("off", False), ("True", True), (False, False)])
def test_flags(value: object, expected: bool) -> None:
    assert flag().parse(value) is expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (flag(), "2"),
        (factor(), "0"),
        (factor(), "nan"),
        (factor(), True),
        (factor(), "x"),
        (names("[a-z]+", "names"), "a,B"),
        (names("[a-z]+", "names"), ""),
        (names("[a-z]+", "names"), 5),
        (text("[a-z]+", "letters"), "A"),
        (text("[a-z]+", "letters"), 5),
        (url("redis"), "http://host"),
        (url("redis"), 5),
    ],
)
def test_values_that_do_not_fit(kind: Kind, value: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        kind.parse(value)


def test_names_keep_their_order_and_drop_repeats() -> None:
    assert names("[a-z]+", "names").parse("b, a,b") == ("b", "a")
    assert names("[a-z]+", "names").parse(["x", "y"]) == ("x", "y")


def test_a_url_that_does_not_fit_is_not_repeated_in_the_error() -> None:
    with pytest.raises(ValueError, match="must be a URL") as caught:
        url("redis").parse("rediss://:canary@host")
    assert "canary" not in str(caught.value)

"""RESP2, as far as a proxy needs it."""

Value = bytes | int | list["Value"] | None

_LINE_END = b"\r\n"


def parse(data: bytes | bytearray, start: int = 0) -> tuple[Value, int] | None:
    """The value that begins at `start`, with its end; None while some of it is missing."""
    end = data.find(_LINE_END, start)
    if end < 0:
        return None
    kind, head, after = data[start : start + 1], bytes(data[start + 1 : end]), end + len(_LINE_END)
    match bytes(kind):
        case b"+" | b"-":
            return head, after
        case b":":
            return int(head), after
        case b"$":
            return _bulk(data, int(head), after)
        case b"*":
            return _array(data, int(head), after)
        case other:
            raise ValueError(f"RESP2 has no type {other!r}")


def _bulk(data: bytes | bytearray, length: int, start: int) -> tuple[Value, int] | None:
    if length < 0:
        return None, start
    end = start + length
    if len(data) < end + len(_LINE_END):
        return None
    return bytes(data[start:end]), end + len(_LINE_END)


def _array(data: bytes | bytearray, length: int, start: int) -> tuple[Value, int] | None:
    if length < 0:
        return None, start
    values: list[Value] = []
    for _ in range(length):
        parsed = parse(data, start)
        if parsed is None:
            return None
        value, start = parsed
        values.append(value)
    return values, start

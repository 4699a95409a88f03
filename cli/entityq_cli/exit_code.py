"""How the command ends, frozen: scripts and supervisors decide by these numbers."""

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: no runner or server answered
    STILL_PENDING = 75  # EX_TEMPFAIL: timed out, the request stays accepted


class CommandError(Exception):
    """Ends the command with one sentence on stderr and an exit code."""

    def __init__(self, sentence: str, code: ExitCode) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code


def usage_error(sentence: str) -> CommandError:
    return CommandError(sentence, ExitCode.USAGE)

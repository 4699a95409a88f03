"""One safeguard, and what the code looks like without it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Edit:
    """`old` stands exactly once in the file (of the checkout); without the safeguard it is `new`."""

    file: str
    old: str
    new: str = ""


@dataclass(frozen=True, slots=True)
class Safeguard:
    """`noticed_by`: tests, as pytest names them, of which at least one fails without the safeguard.

    `promise`: the number of the promise that it keeps, see docs/guarantees.md.
    """

    name: str
    promise: str
    without: str
    edits: tuple[Edit, ...]
    noticed_by: tuple[str, ...]

    def switch_off(self, root: Path) -> None:
        """In the sources below `root`. Raises ValueError where an edit does not fit them any more."""
        for edit in self.edits:
            path = root / edit.file
            text = path.read_text()
            found = text.count(edit.old)
            if found != 1:
                raise ValueError(f"{self.name}: {edit.file} has {found} times what is to be replaced")
            path.write_text(text.replace(edit.old, edit.new))

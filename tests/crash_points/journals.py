"""The app of these tests: entities whose state is the list of what was applied, in order."""

from entityq import Entity, EntityQ, message

app = EntityQ("crash-points")


@app.entity
class Journal(Entity):
    entries: list[str] = []

    @message(primary_key="key")
    async def write(self, key: str) -> list[str]:
        """The reply tells the whole state, so that any repeat or other order shows in it."""
        self.entries.append(key)
        return self.entries

    @message
    async def append(self, text: str) -> list[str]:
        self.entries.append(text)
        return self.entries

    @message(primary_key="key")
    async def pass_on(self, key: str, to: str) -> list[str]:
        """Sends on: part of the turn."""
        self.entries.append(key)
        for part in ("first", "second"):
            await Journal.at(to).append.send(f"{key} {part}")
        return self.entries

    @message(primary_key="key")
    async def consult(self, key: str, whom: str) -> list[str]:
        """Asks in the turn: committed at once, and joined by a repeat of the turn."""
        answer = await Journal.at(whom).append(key)
        self.entries.append(key)
        return [*answer, *self.entries]

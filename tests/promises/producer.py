"""A program that sends requests to one journal and then waits to be killed: `producer.py JOURNAL TEXT ...`."""

import asyncio
import sys

from tests.promises.journals import Journal


async def send(journal: str, texts: list[str]) -> None:
    for text in texts:
        receipt = await Journal.at(journal).append.send(text)
        sys.stdout.write(f"accepted {receipt.request_id}\n")
        sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(send(sys.argv[1], sys.argv[2:]))

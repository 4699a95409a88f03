"""Broadcasts in a test client."""

from collections.abc import Callable, Iterable

from entityq.address import Address
from entityq.broadcast import Broadcast, Reached, tally
from entityq.definition import EntityDefinition
from entityq.runner.activation import Activation


def broadcast_to(
    activations: Iterable[Activation], definition: EntityDefinition, deliver: Callable[[Address], None]
) -> Broadcast:
    """To those of the definition that have room."""
    reached = refused = 0
    for activation in activations:
        if activation.definition is not definition or activation.ending:
            continue
        if activation.queued < activation.definition.mailbox_capacity:
            deliver(activation.address)
            reached += 1
        else:
            refused += 1
    return tally(1, [Reached(reached, refused)])

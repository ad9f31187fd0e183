"""The one place that touches Flower's process-wide task identity (pinned to flwr 1.41, tested).

A `Message` can only be made in a process that has such an identity.  Inside Flower's own runtimes it is set
already and left alone; the in-process grid sets one.
"""

from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE_ID = 0


def ensure_identity() -> None:
    """Gives this process the identity of a server task unless it has one."""
    for field, value in (("task_id", 1), ("run_id", RUN_ID), ("node_id", SERVER_NODE_ID)):
        try:
            getattr(TaskIdentity, field)
        except RuntimeError:
            setattr(TaskIdentity, field, value)

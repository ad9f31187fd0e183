"""What a failed node said, as one line of ours."""

import pytest

from fedsim_userdp.federation.replies import one_line

OF_RAY = (
    "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=1)\n"
    '  File "client_app.py", line 161, in __call__\n    ^^^^^^\nRuntimeError: out of memory\n\n'
    "flwr.clientapp.client_app.ClientAppException: \nException ClientAppException occurred. Message: out of memory'>"
)
DEAD = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly.\n\tclass_name: ClientAppActor'>"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (OF_RAY, "out of memory"),
        (DEAD, "The actor died unexpectedly."),
        ("RuntimeError: \x1b[1mred\x1b[0m\nand more", "RuntimeError: red"),
        ("\n \x1b[0m\n", "no reason given"),
        ("x" * 400, "x" * 300),
    ],
)
def test_a_reason_is_one_line_without_codes_for_terminals_and_names_of_others_classes(reason: str, said: str) -> None:
    assert one_line(reason) == said

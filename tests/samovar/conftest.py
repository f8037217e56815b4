"""What tests of the clients and of the commands that use them need: a gateway whose masks can be foretold."""

from tests.gateway.conftest import _session_stack, stack

__all__ = ["_session_stack", "stack"]

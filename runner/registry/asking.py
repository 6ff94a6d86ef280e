"""One authenticated request to a registry: what pulling and pushing are made of.

Imports the door and tokens. Who asks: `client.py` and `pushing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runner.domain.transfer import RemoteCredentials
from runner.registry.abort import Abort
from runner.registry.pace import HEADERS_S
from runner.registry.rules import Endpoint
from runner.registry.tokens import Authenticator, FindsCredentials, Scopes
from runner.registry.transport import Answer, Authorization, Door, StreamedBody


class RegistryRequests:
    """Asks registries, as whom the credentials say. Thread-safe."""

    def __init__(self, door: Door, credentials: FindsCredentials, *, clock: Callable[[], float]) -> None:
        self.door = door
        self._authenticator = Authenticator(door, credentials, clock=clock)

    def ask(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        scopes: Scopes,
        *,
        given: RemoteCredentials | None,
        abort: Abort | None,
        headers: Mapping[str, str] | None = None,
        body: bytes | StreamedBody | None = None,
        is_small: bool = True,
        head_s: float = HEADERS_S,
    ) -> Answer:
        """The answer to a request, authenticated when the registry asks for it; any status, 401 included.

        A token that has run out is fetched anew, once. Raises what a request raises.
        """
        abort = abort or Abort()
        identity = self._authenticator.identity(endpoint, given)

        def send(authorization: Authorization | None) -> Answer:
            return self.door.request(
                method,
                url,
                origin=endpoint,
                headers=headers,
                body=body,
                authorization=authorization,
                abort=abort,
                is_small=is_small,
                head_s=head_s,
            )

        used = self._authenticator.known(endpoint, scopes, identity)
        answer = send(used)
        if answer.status != 401 or answer.authority != endpoint.authority:
            return answer
        try:
            better = self._authenticator.answer_to(answer, endpoint, scopes, identity, used=used, abort=abort)
        except BaseException:
            answer.close()
            raise
        if better is None:
            return answer
        answer.discard()
        return send(better)

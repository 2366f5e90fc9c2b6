"""Every private name of Kaggle's packages that aimo touches; no other module of this wing uses one.

Written for kagglesdk 0.1.38. Out of scope: names without an underscore.
"""

from typing import Any

import requests
from requests.adapters import HTTPAdapter

TIMEOUT_S = 10, 300
"""Seconds to wait for a connection, and for the next bytes of an answer."""


class Timed(HTTPAdapter):
    """Connections with a time limit."""

    def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
        """Send a request under `TIMEOUT_S`, unless it has a limit of its own."""
        return super().send(request, *args, **options | {"timeout": options.get("timeout") or TIMEOUT_S})


def limit_times(http: Any) -> None:
    """Put time limits on the connections of a `KaggleHttpClient`, which would wait for ever.

    `KaggleHttpClient._init_session` makes the `_session` when the first request is sent, and neither it nor a
    time limit can be given from outside. https://pypi.org/project/kagglesdk/0.1.38/
    """
    http._init_session()
    for scheme in ("https://", "http://"):
        http._session.mount(scheme, Timed())

"""Every name of Kaggle's packages that aimo reaches into; no other module of this wing does.

Written for kaggle 2.2.4 and kagglesdk 0.1.38.
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


def give_token(token: str | None, source: str) -> None:
    """Make the client use a token. By itself it takes every token for a path first, and fails on a long one.

    https://github.com/Kaggle/kaggle-cli/issues/1188
    """
    from kaggle.api import kaggle_api_extended
    from kagglesdk import kaggle_http_client

    for module in (kaggle_api_extended, kaggle_http_client):
        module.get_access_token_from_env = lambda: (token, source)


def limit_times(http: Any) -> None:
    """Put time limits on the connections of a `KaggleHttpClient`, which would wait for ever.

    `KaggleHttpClient._init_session` makes the `_session` when the first request is sent, and neither it nor a
    time limit can be given from outside. https://pypi.org/project/kagglesdk/0.1.38/
    """
    http._init_session()
    for scheme in ("https://", "http://"):
        http._session.mount(scheme, Timed())

"""The pages of docs/zh say that they are Chinese, for readers aloud and search engines."""

from typing import Any


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Return a built page with its own language; called by MkDocs."""
    chinese = page.file.src_uri.startswith("zh/")
    return output.replace('<html lang="en"', '<html lang="zh"', 1) if chinese else output

"""The query parameters that the routes have in common."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

ApiKey = Annotated[
    str | None,
    Query(
        description="Your API key. Needed only where the operator has configured keys; it also keeps your image_ids "
        "yours."
    ),
]
Ignored = Annotated[str | None, Query(description="Accepted and ignored.", include_in_schema=True)]

"""The Python client: embed a picture once, segment it as often as you like, and get numpy masks.

    from samovar.client import SamClient

    with SamClient("http://localhost:9001") as client:
        picture = client.embed("photo.jpg")
        result = client.segment(picture, point_coords=[[380, 350]])
        result.masks  # bool, 1 x height x width

`AsyncSamClient` has the same methods, to be awaited. `samovar.client.grpc` speaks to the services directly, for
backends. What can go wrong is in `samovar.client.errors`. None of it needs torch.
"""

from sam.tls import Tls
from samovar.client.errors import AnswerUnreadable, ClientError, SamovarError, ServerUnreachable
from samovar.client.everything import Everything, EverythingOptions, FoundMask, Progress
from samovar.client.http import SamClient
from samovar.client.http_async import AsyncSamClient
from samovar.client.pictures import Picture, Source, StoredPicture
from samovar.client.prompts import Prompt
from samovar.client.results import Segmentation

__all__ = [
    "AnswerUnreadable",
    "AsyncSamClient",
    "ClientError",
    "Everything",
    "EverythingOptions",
    "FoundMask",
    "Picture",
    "Progress",
    "Prompt",
    "SamClient",
    "SamovarError",
    "Segmentation",
    "ServerUnreachable",
    "Source",
    "StoredPicture",
    "Tls",
]

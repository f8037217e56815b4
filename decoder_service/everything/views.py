"""Finds the embeddings of a picture and its crops before any of them is segmented."""

from __future__ import annotations

from decoder_service.everything.grid import Part
from decoder_service.everything.requests import EverythingOrder
from decoder_service.everything.segmenter import View
from decoder_service.image_lookup import FoundImage, ImageLookup
from sam.errors import RequestInvalid


async def find_views(order: EverythingOrder, images: ImageLookup, tenant: str) -> tuple[FoundImage, list[View]]:
    """Return the picture, and it and its crops as they are looked at.

    Raises:
        EmbeddingNotFound, StoreUnavailable: see `ImageLookup.find`.
        RequestInvalid: a crop is not where the request says.
    """
    image = await images.find(order.source, tenant)
    views = [View(image, Part.all_of(image.original_size), order.points)]
    for index, crop in enumerate(order.crops):
        if not crop.crop.is_in(image.original_size):
            height, width = image.original_size
            raise RequestInvalid(
                f"A crop must lie within the image, which has {width} x {height} pixels.", field=f"crops[{index}].crop"
            )
        found = await images.find(crop.source, tenant)
        if found.original_size != crop.crop.size:
            raise RequestInvalid(
                "The crop's embedding is of another size. Send the image_digest that EmbedImage returned for it.",
                field=f"crops[{index}].image_digest",
            )
        views.append(View(found, Part(crop.crop, image.original_size), crop.points))
    return image, views

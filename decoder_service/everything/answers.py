"""`SegmentEverything`'s answers in the contract's words."""

from __future__ import annotations

from decoder_service.answers import to_timings
from decoder_service.everything.grid import FoundMask
from decoder_service.everything.segmenter import Everything
from decoder_service.image_lookup import FoundImage
from sam.errors import RequestTooLarge
from sam.geometry import Size
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2, image_pb2


def to_progress(state: Everything) -> pb.SegmentEverythingResponse:
    """Tell how far the work is."""
    progress = pb.SegmentEverythingProgress(
        points_done=state.points_done, points_total=state.points_total, masks_found=len(state.masks)
    )
    return pb.SegmentEverythingResponse(progress=progress)


def to_everything(
    state: Everything, image: FoundImage, embedding: embedding_pb2.ImageEmbedding, max_bytes: int
) -> pb.SegmentEverythingResponse:
    """Return all masks.

    Raises:
        RequestTooLarge: they take more than `max_bytes`.
    """
    if sum(len(mask.rle) for mask in state.masks) > max_bytes:
        raise RequestTooLarge(
            f"The answer would be larger than {max_bytes} bytes. Ask for fewer points, or for higher thresholds."
        )
    result = pb.SegmentEverythingResult(
        masks=[_to_found_mask(mask, image.original_size) for mask in state.masks],
        embedding=embedding,
        cache_status=image.cache_status,
        image_id_moved=image.image_id_moved,
        timings=to_timings(
            queue=state.queued_s,
            store=image.store_s if image.stored else None,
            decode=state.decode_s,
            render=state.render_s,
        ),
    )
    return pb.SegmentEverythingResponse(result=result)


def _to_found_mask(mask: FoundMask, size: Size) -> pb.FoundMask:
    rle = pb.Rle(size=image_pb2.ImageSize(height=size.height, width=size.width), counts=mask.rle)
    x_min, y_min, x_max, y_max = mask.box
    x, y = mask.point
    return pb.FoundMask(
        mask=pb.Mask(rle=rle, iou_prediction=mask.iou_prediction),
        box=pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max),
        area=mask.area,
        point=pb.Point(x=x, y=y, label=pb.POINT_LABEL_FOREGROUND),
        stability_score=mask.stability_score,
        crop=image_pb2.ImageCrop(
            left=mask.crop.left, top=mask.crop.top, width=mask.crop.size.width, height=mask.crop.size.height
        ),
    )

"""Masks drawn by hand, in all the forms of the contract."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from sam.geometry import Size
from sam.tensors import to_tensor
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import image_pb2

MASK_SIDE = 9

Mask = npt.NDArray[np.bool_]


def square(prompt: pb.Prompt, size: Size) -> Mask:
    """Return the mask that the fake decoder draws."""
    mask = np.zeros(size, np.bool_)
    if prompt.HasField("box"):
        box = prompt.box
        mask[int(box.y_min) : int(box.y_max), int(box.x_min) : int(box.x_max)] = True
    elif prompt.points:
        x, y, half = int(prompt.points[0].x), int(prompt.points[0].y), MASK_SIDE // 2
        mask[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = True
    return mask


def low_res_logits(mask: Mask) -> npt.NDArray[np.float32]:
    """Return logits whose sign is the mask's top left corner: float32, 1x256x256."""
    logits = np.full((1, 256, 256), -8.0, np.float32)
    corner = mask[:256, :256]
    logits[0, : corner.shape[0], : corner.shape[1]][corner] = 8.0
    return logits


def encoded(mask: Mask, request: pb.SegmentImageRequest, score: float) -> pb.Mask:
    """Write a mask in the forms that a request asks for."""
    message = pb.Mask(iou_prediction=score)
    height, width = mask.shape
    size = image_pb2.ImageSize(height=height, width=width)
    if request.mask_encoding == pb.MASK_ENCODING_BITMAP:
        message.bitmap.CopyFrom(bitmap_of(mask))
    elif request.mask_encoding == pb.MASK_ENCODING_PNG:
        message.png = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()
    else:
        counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
        message.rle.CopyFrom(pb.Rle(size=size, counts=counts))
    logits = low_res_logits(mask)
    if request.low_res_view == pb.LOW_RES_VIEW_LOGITS:
        message.low_res_logits.CopyFrom(to_tensor(logits))
    elif request.low_res_view == pb.LOW_RES_VIEW_BITMAP:
        message.low_res_bitmap.CopyFrom(bitmap_of(logits[0] > 0))
    return message


def bitmap_of(mask: Mask) -> pb.Bitmap:
    """Pack a mask as the decoder does: the smallest rectangle that holds all of it."""
    height, width = mask.shape
    bitmap = pb.Bitmap(size=image_pb2.ImageSize(height=height, width=width))
    rows, columns = np.nonzero(mask)
    if len(rows):
        bitmap.top, bitmap.left = int(rows.min()), int(columns.min())
        region = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        bitmap.region.height, bitmap.region.width = region.shape
        bitmap.data = np.packbits(region, axis=1).tobytes()
    return bitmap

"""What a user of the official `inference-sdk` writes; run by its own Python, with a server and a picture as arguments.

Prints one JSON object, of which each entry is what one use of the package returned.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

POINT: dict[str, Any] = {"points": [{"x": 380, "y": 350, "positive": True}, {"x": 80, "y": 300, "positive": False}]}
BOX: dict[str, Any] = {"box": {"x": 300, "y": 225, "width": 400, "height": 350}}


def main() -> None:
    """Use the package."""
    import cv2
    from inference_sdk import InferenceHTTPClient
    from inference_sdk.http.errors import HTTPCallErrorError

    url, photo = sys.argv[1:]
    client = InferenceHTTPClient(api_url=url, api_key="key")
    pixels = cv2.imread(photo)
    try:
        client.sam2_segment_image(photo, prompts=[{}])
        refusal = None
    except HTTPCallErrorError as error:
        refusal = {"status": error.status_code, "message": error.api_message}
    results = {
        "server": client.get_server_info().name,
        "models": [model.model_id for model in client.list_loaded_models().models],
        "polygons": client.sam2_segment_image(photo, prompts=[POINT, BOX]),
        "rle": client.sam2_segment_image(photo, prompts=[POINT, BOX], mask_input_format="rle"),
        "one mask": client.sam2_segment_image(photo, prompts=[BOX], multimask_output=False, mask_input_format="rle"),
        "pixels": client.sam2_segment_image(pixels, prompts=[BOX]),
        "several": client.sam2_segment_image([photo, pixels], prompts=[BOX]),
        "awaited": asyncio.run(client.sam2_segment_image_async(photo, prompts=[POINT, BOX])),
        "refusal": refusal,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()

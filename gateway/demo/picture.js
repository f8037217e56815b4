// A picture as this browser and the server both see it.

import { ApiError } from "./api.js";

// What the server decodes without being told to. Anything else that the browser can show is sent as PNG.
const SENT_AS_IS = new Set(["image/jpeg", "image/png", "image/webp"]);

/** @typedef {{name: string, blob: Blob, bitmap: ImageBitmap, width: number, height: number}} Picture */

/** Decode a file. */
export async function readPicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new ApiError(`${name} is not a picture that this browser can show. Try a JPEG, PNG or WebP file.`);
  }
  const picture = { name, blob, bitmap, width: bitmap.width, height: bitmap.height };
  return SENT_AS_IS.has(blob.type) ? picture : asPng(picture);
}

/** The same picture, its file replaced by the pixels that are seen. */
export async function asPng(picture) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  canvas.getContext("2d").drawImage(picture.bitmap, 0, 0);
  return { ...picture, blob: await canvas.convertToBlob({ type: "image/png" }) };
}

/** The file in base64, with the prefix that the server allows. */
export function dataUrlOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError("The file cannot be read any more. Open it again."));
    reader.readAsDataURL(blob);
  });
}

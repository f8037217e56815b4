// Decodes an embedding in JavaScript, as SAM's web demo does: npyjs reads our .npy, and onnxruntime-web runs the mask
// decoder that upstream exports.
//
//   node decode.mjs EMBEDDING_URL DECODER.onnx HEIGHT WIDTH X Y MASK_FILE
//
// Writes the mask as HEIGHT x WIDTH bytes, 1 on the object, and prints the score.
import { readFile, writeFile } from "node:fs/promises";
import npyjs from "npyjs";
import * as ort from "onnxruntime-web";

const [url, decoder, ...rest] = process.argv.slice(2);
const [height, width, x, y] = rest.slice(0, 4).map(Number);
ort.env.wasm.numThreads = 1;

const embedding = await new npyjs().load(url);
const scale = 1024 / Math.max(height, width);
const inputs = {
  image_embeddings: new ort.Tensor("float32", embedding.data, embedding.shape),
  // The click and, because there is no box, a padding point.
  point_coords: new ort.Tensor("float32", [x * scale, y * scale, 0, 0], [1, 2, 2]),
  point_labels: new ort.Tensor("float32", [1, -1], [1, 2]),
  mask_input: new ort.Tensor("float32", new Float32Array(256 * 256), [1, 1, 256, 256]),
  has_mask_input: new ort.Tensor("float32", [0], [1]),
  orig_im_size: new ort.Tensor("float32", [height, width], [2]),
};
const session = await ort.InferenceSession.create(await readFile(decoder));
const { masks, iou_predictions: scores } = await session.run(inputs);
await writeFile(rest[4], Uint8Array.from(masks.data, (logit) => (logit > 0 ? 1 : 0)));
console.log(JSON.stringify({ shape: masks.dims, score: scores.data[0] }));

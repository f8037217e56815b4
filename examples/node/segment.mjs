// Segments a picture with Samovar's services over gRPC.
//
//   npm install
//   node segment.mjs photo.jpg 380 350
//
// The services are `samovar serve`'s own unless ENCODER and DECODER say where they are; PROTOS is the folder with the
// contract, and API_KEY your key, if the services ask for one.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const here = path.dirname(fileURLToPath(import.meta.url));
const protos = process.env.PROTOS ?? path.join(here, "../../protos");
const [file, x, y] = process.argv.slice(2);
if (y === undefined) {
  console.error("usage: node segment.mjs PICTURE X Y");
  process.exit(2);
}

const definition = protoLoader.loadSync(["sam/v1/encoder_service.proto", "sam/v1/decoder_service.proto"], {
  includeDirs: [protos],
  enums: String,
  defaults: true,
});
const { EncoderService, DecoderService } = grpc.loadPackageDefinition(definition).sam.v1;

// A picture, or an embedding in float32, is larger than gRPC's default limit of 4 MiB.
const options = {
  "grpc.max_send_message_length": 64 * 2 ** 20,
  "grpc.max_receive_message_length": 64 * 2 ** 20,
  "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
};
const plain = grpc.credentials.createInsecure();
const encoder = new EncoderService(process.env.ENCODER ?? "localhost:9002", plain, options);
const decoder = new DecoderService(process.env.DECODER ?? "localhost:9003", plain, options);

const metadata = new grpc.Metadata();
if (process.env.API_KEY) metadata.set("authorization", `Bearer ${process.env.API_KEY}`);

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + 60_000;
    client[method](request, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

try {
  const { embedding } = await call(encoder, "EmbedImage", { image: { content: await readFile(file) } });
  const { height, width } = embedding.originalSize;
  console.log(`${width} x ${height} pixels, model ${embedding.model}`);

  const answer = await call(decoder, "SegmentImage", {
    image: { imageDigest: embedding.imageDigest },
    prompts: [{ points: [{ x: Number(x), y: Number(y), label: "POINT_LABEL_FOREGROUND" }] }],
    maskEncoding: "MASK_ENCODING_PNG",
  });
  const [mask] = answer.results[0].masks;
  console.log(`score ${mask.iouPrediction.toFixed(3)}, ${mask.png.length} bytes of PNG`);
} catch (error) {
  // The reason, such as IMAGE_UNDECODABLE, is in google.rpc.ErrorInfo; the message is for people.
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
} finally {
  encoder.close();
  decoder.close();
}

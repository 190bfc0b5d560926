// The same through generated stubs and another implementation of HTTP/2 and of messages:
// typed classes from protoc-gen-es in gen/, connect's transport for gRPC.

import { readFileSync } from "node:fs";

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { DataType } from "./gen/teacher_proto/v1/array_pb.js";
import { ContinuationStatus } from "./gen/teacher_proto/v1/score_pb.js";
import { TeacherScoringService } from "./gen/teacher_proto/v1/service_pb.js";
import { SpecialRole } from "./gen/teacher_proto/v1/tokenizer_pb.js";

const asked = JSON.parse(readFileSync(process.argv[2], "utf8"));
const shows = (next) => (call) => {
  call.header.set("authorization", `Bearer ${asked.token}`);
  return next(call);
};
const transport = (interceptors) =>
  createGrpcTransport({ baseUrl: `http://${asked.address}`, interceptors });
const client = createClient(TeacherScoringService, transport([shows]));
const stranger = createClient(TeacherScoringService, transport([]));

const int32 = (ids) => {
  const data = new Uint8Array(4 * ids.length);
  const view = new DataView(data.buffer);
  ids.forEach((id, index) => view.setInt32(4 * index, id, true));
  return { dtype: DataType.INT32, shape: [BigInt(ids.length)], data };
};
const float32 = ({ data }) => {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return Array.from({ length: data.length / 4 }, (_, at) => view.getFloat32(4 * at, true));
};

const request = (changes = {}) => ({
  requestId: "generated-1",
  teacher: asked.teacher,
  tokenizerHash: asked.tokenizer_hash,
  prompt: { source: { case: "tokenIds", value: int32(asked.prompt) } },
  continuations: asked.continuations.map((ids) => ({
    segments: [{ tokenIds: int32(ids), scored: true }],
  })),
  topK: asked.top_k,
  temperature: 1,
  returns: { sampled: true },
  ...changes,
});

const refused = async (promise) => {
  try {
    await promise;
  } catch (error) {
    const found = ConnectError.from(error);
    const [info] = found.findDetails(ErrorInfoSchema);
    return { code: Code[found.code], reason: info?.reason, domain: info?.domain, ...info?.metadata };
  }
  return "not refused";
};

async function* upload() {
  const file = readFileSync(asked.tokenizer_file);
  const specialTokens = [{ tokenId: 0, role: SpecialRole.END_OF_TEXT }];
  const header = { tokenizerHash: asked.other_hash, specialTokens };
  Object.assign(header, { fileSha256: asked.file_sha256, fileBytes: BigInt(file.length) });
  yield { part: { case: "header", value: header } };
  for (let at = 0; at < file.length; at += 65536) {
    yield { part: { case: "chunk", value: file.subarray(at, at + 65536) } };
  }
}

const { teachers } = await client.getTeacher({});
const scored = await client.score(request());
const rendered = await client.render({
  teacher: asked.teacher,
  prompts: [{ source: { case: "text", value: "a b" } }],
});
const found = {
  teacher: teachers[0].name,
  digest: teachers[0].identity.digest,
  statuses: scored.results.map((one) => ContinuationStatus[one.status]),
  log_probs: scored.results.map((one) => float32(one.topLogProbs)),
  sampled: scored.results.map((one) => float32(one.sampledLogProbs)),
  rendered: rendered.prompts.map((one) => one.tokenCount),
  levels: (await client.registerTokenizer(upload())).levels.map((one) => one.teacher),
  wrong: await refused(client.score(request({ temperature: undefined }))),
  no_token: await refused(stranger.getTeacher({})),
};
console.log(JSON.stringify(found));
process.exit(0);

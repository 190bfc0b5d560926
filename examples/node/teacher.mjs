// A client of the teacher service in Node, from the proto files alone (docs/contract.md).
//
//   npm ci
//   node teacher.mjs HOST:PORT ../../proto
//
// With LSM_TOKEN in the environment it shows that token; see docs/access.md for TLS.

import { createHash, randomUUID } from "node:crypto";
import { fileURLToPath, pathToFileURL } from "node:url";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const DOMAIN = "lsm-distill";
const SERVICE = "teacher_proto.v1.TeacherScoringService";
const PROTOS = fileURLToPath(new URL("../../proto", import.meta.url));
const FILES = ["teacher_proto/v1/service.proto"];
const OPTIONS = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
// google/rpc/status.proto and error_details.proto, as far as they are needed.
const { root: errors } = protobuf.parse(
  `syntax = "proto3";
   message Any { string type_url = 1; bytes value = 2; }
   message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
   message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
   message Duration { int64 seconds = 1; int32 nanos = 2; }
   message RetryInfo { Duration retry_delay = 1; }`,
  { keepCase: true },
);
const [Status, ErrorInfo, RetryInfo] = ["Status", "ErrorInfo", "RetryInfo"].map((name) =>
  errors.lookupType(name),
);
// What this client reads of one reply. grpc-js reads 4 MiB unless it is told otherwise.
const MAX_REPLY_BYTES = 64 << 20;

// A client of the service at HOST:PORT.
export function connect(address, protoFolder, options = {}) {
  const definition = loader.loadSync(FILES, { ...OPTIONS, includeDirs: [protoFolder] });
  const Client = grpc.makeGenericClientConstructor(definition[SERVICE]);
  const { credentials = grpc.credentials.createInsecure(), ...others } = options;
  return new Client(address, credentials, {
    "grpc.max_receive_message_length": MAX_REPLY_BYTES,
    ...others,
  });
}

// What goes beside every call: the token, where the server asks for one.
export function metadata(token) {
  const found = new grpc.Metadata();
  if (token) found.set("authorization", `Bearer ${token}`);
  return found;
}

// One call: its reply, or a RefusedError where the service said why.
export function call(client, method, request, { token, seconds = 60 } = {}) {
  const options = { deadline: Date.now() + seconds * 1000 };
  return new Promise((resolve, reject) => {
    client[method](request, metadata(token), options, (error, reply) => {
      if (error) reject(refusal(error));
      else resolve(reply);
    });
  });
}

// Registers the bytes of a tokenizer.json under its fingerprint (docs/fingerprint.md).
export function register(client, header, file, { token, seconds = 60 } = {}) {
  const options = { deadline: Date.now() + seconds * 1000 };
  return new Promise((resolve, reject) => {
    const stream = client.RegisterTokenizer(metadata(token), options, (error, reply) => {
      if (error) reject(refusal(error));
      else resolve(reply);
    });
    const file_sha256 = sha256(file);
    stream.write({ header: { ...header, file_sha256, file_bytes: file.length } });
    for (let at = 0; at < file.length; at += 1 << 20) {
      stream.write({ chunk: file.subarray(at, at + (1 << 20)) });
    }
    stream.end();
  });
}

// The arrays of the contract are raw little-endian bytes with their type and shape.
const KINDS = {
  DATA_TYPE_INT32: Int32Array,
  DATA_TYPE_FLOAT32: Float32Array,
  DATA_TYPE_FLOAT64: Float64Array,
  DATA_TYPE_UINT8: Uint8Array,
};

export function int32(values, shape = [values.length]) {
  const data = Buffer.alloc(4 * values.length);
  values.forEach((value, index) => data.writeInt32LE(value, 4 * index));
  return { dtype: "DATA_TYPE_INT32", shape, data };
}

// Values of an array in C order; of a bitmap booleans. A copy, since bytes of a message
// need not lie where numbers of four bytes may begin.
export function values(array) {
  const count = array.shape.reduce((product, size) => product * size, 1);
  if (array.dtype === "DATA_TYPE_BITMAP") {
    if (array.data.length !== Math.ceil(count / 8)) throw new Error("a bitmap of another length");
    return Array.from({ length: count }, (_, at) => Boolean((array.data[at >> 3] >> (at & 7)) & 1));
  }
  const found = new KINDS[array.dtype](Uint8Array.from(array.data).buffer);
  if (found.length !== count) throw new Error("an array of another length than its shape");
  return found;
}

// An error of the service: its reason, what, where and fix, and the seconds after which to
// try again, where that can help (docs/errors.md).
export class RefusedError extends Error {
  constructor(error, info, retryAfter) {
    super(error.details || error.message, { cause: error });
    this.code = error.code;
    this.reason = info ? info.reason : undefined;
    this.detail = info ? info.metadata : {};
    this.retryAfter = retryAfter;
  }
}

function refusal(error) {
  let info;
  let retryAfter;
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  for (const { type_url, value } of bytes ? Status.decode(bytes).details : []) {
    if (type_url.endsWith("/google.rpc.ErrorInfo")) {
      const found = ErrorInfo.decode(value);
      if (found.domain === DOMAIN) info = found;
    } else if (type_url.endsWith("/google.rpc.RetryInfo")) {
      const { seconds, nanos } = RetryInfo.decode(value).retry_delay;
      retryAfter = Number(seconds) + nanos / 1e9;
    }
  }
  return new RefusedError(error, info, retryAfter);
}

export const sha256 = (data) => createHash("sha256").update(data).digest("hex");

// JSON of texts, arrays and objects as digests have it: no spaces, keys in ascending order
// of their code points. JSON.stringify writes texts as it has to be.
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value === "string") return JSON.stringify(value);
  const keys = Object.keys(value).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

// The digest that an identity has to have.
export function identityDigest({ digest, ...others }) {
  if (!others.chat_template_digest) delete others.chat_template_digest;
  return sha256(canonical(others));
}

async function main(address, protoFolder) {
  const token = process.env.LSM_TOKEN;
  const client = connect(address, protoFolder);
  const { teachers } = await call(client, "GetTeacher", {}, { token });
  const [{ name, identity }] = teachers;
  if (identity.digest !== identityDigest(identity)) throw new Error("a digest of something else");
  const request = {
    request_id: randomUUID(),
    // With credentials the run is theirs.
    run: token ? "" : "example",
    teacher: name,
    tokenizer_hash: identity.tokenizer_hash,
    prompt: { text_prompt: { text: "The cat", special_tokens: "SPECIAL_TOKENS_ADD" } },
    continuations: [{ segments: [{ token_ids: int32([5, 6, 7]), scored: true }] }],
    top_k: 4,
    temperature: 1,
    returns: { sampled: true },
    expected_identity: identity.digest,
    max_reply_bytes: MAX_REPLY_BYTES,
  };
  const { results } = await call(client, "Score", request, { token });
  const [rows, k] = results[0].top_ids.shape;
  const ids = values(results[0].top_ids);
  const logProbs = values(results[0].top_log_probs);
  for (let row = 0; row < rows; row++) {
    const support = Array.from({ length: k }, (_, slot) => {
      const at = row * k + slot;
      return `${ids[at]}: ${logProbs[at].toFixed(4)}`;
    });
    console.log(`${name} row ${row}  ${support.join("  ")}`);
  }
  client.close();
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  await main(process.argv[2], process.argv[3] ?? PROTOS);
}

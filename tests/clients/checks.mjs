// What a client of the proto files alone sees of a server: one JSON object on standard output.
// Beside it lie examples/node/teacher.mjs and its packages.

import { readFileSync } from "node:fs";

import grpc from "@grpc/grpc-js";

import { call, canonical, connect, identityDigest, int32, register, sha256, values } from "./teacher.mjs";

const asked = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { address, protos, token, poor } = asked;
const client = connect(address, protos);
const stock = connect(address, protos, { "grpc.max_receive_message_length": 4 << 20 });

const request = (changes = {}) => ({
  request_id: "node-1",
  teacher: asked.teacher,
  tokenizer_hash: asked.tokenizer_hash,
  prompt: { token_ids: int32(asked.prompt) },
  continuations: asked.continuations.map((ids) => ({
    segments: [{ token_ids: int32(ids), scored: true }],
  })),
  top_k: asked.top_k,
  temperature: 1,
  returns: { sampled: true, log_tail: true },
  ...changes,
});

const rows = (result) => ({
  shape: result.top_ids.shape,
  ids: Array.from(values(result.top_ids)),
  log_probs: Array.from(values(result.top_log_probs)),
  counts: Array.from(values(result.valid_counts)),
  sampled: Array.from(values(result.sampled_log_probs)),
  sampled_valid: values(result.sampled_valid),
});

const refused = async (promise) => {
  try {
    await promise;
  } catch (error) {
    return {
      code: grpc.status[error.code],
      reason: error.reason,
      detail: error.detail,
      retry_after: error.retryAfter,
    };
  }
  return "not refused";
};

// Raw reflection of version 1: field 7 (list_services) of the request.
const services = () =>
  new Promise((resolve, reject) => {
    const same = (bytes) => bytes;
    const method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    const shown = new grpc.Metadata();
    shown.set("authorization", `Bearer ${token}`);
    const stream = client.makeBidiStreamRequest(method, same, same, shown, {});
    stream.on("data", (bytes) => resolve(bytes.toString("latin1")));
    stream.on("error", reject);
    stream.end(Buffer.from([0x3a, 0x00]));
  });

const checks = {
  async teacher() {
    const { teachers, limits } = await call(client, "GetTeacher", {}, { token });
    const [{ name, identity, model }] = teachers;
    return { name, model, digest: identity.digest, own: identityDigest(identity), limits };
  },
  async scores() {
    const { results, request_id } = await call(client, "Score", request(), { token });
    return { request_id, results: results.map(rows) };
  },
  again: () => checks.scores(),
  wrong: () => refused(call(client, "Score", request({ top_k: 1e9 }), { token })),
  unknown_tokenizer: () =>
    refused(call(client, "Score", request({ tokenizer_hash: "v2-0" }), { token })),
  no_token: () => refused(call(client, "GetTeacher", {})),
  other_run: () => refused(call(client, "Score", request({ run: "another" }), { token })),
  async quota() {
    const spend = (request_id) => call(client, "Score", request({ request_id }), { token: poor });
    await spend("first");
    return refused(spend("second"));
  },
  async registered() {
    const file = readFileSync(asked.tokenizer_file);
    const header = { tokenizer_hash: asked.other_hash };
    header.special_tokens = [{ token_id: 0, role: "SPECIAL_ROLE_END_OF_TEXT" }];
    const whole = await register(client, header, file, { token });
    const damaged = register(client, { tokenizer_hash: "v2-0" }, file, { token });
    return { whole, damaged: await refused(damaged) };
  },
  async large() {
    const [ids] = asked.continuations;
    const group = Array(asked.large.group).fill(Array(asked.large.rows).fill(ids[0]));
    const continuations = group.map((one) => ({
      segments: [{ token_ids: int32(one), scored: true }],
    }));
    const large = { request_id: "large", continuations, top_k: asked.large.top_k };
    const said = request({ ...large, max_reply_bytes: 4 << 20 });
    const before = await refused(call(stock, "Score", said, { token }));
    const lost = await refused(call(stock, "Score", request(large), { token }));
    const { results } = await call(client, "Score", request(large), { token });
    return { before, lost, count: results.reduce((sum, one) => sum + values(one.top_ids).length, 0) };
  },
  services,
  vectors() {
    const { identities, chat_templates } = asked.vectors;
    return {
      identities: identities.map((one) => identityDigest(one.identity)),
      chat_templates: chat_templates.map((one) => sha256(canonical(one.reads))),
    };
  },
  deadline: () =>
    refused(call(client, "Score", request({ request_id: "late" }), { token, seconds: 0.5 })),
};

const found = {};
for (const name of asked.checks) found[name] = await checks[name]();
console.log(JSON.stringify(found));
client.close();
stock.close();

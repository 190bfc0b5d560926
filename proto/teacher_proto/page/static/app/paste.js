// What people paste: a document of rows, lines of responses that the trainer kept, or a rollout.
import { inLines } from "./query.js";

const FORMAT = "lsm-rows/1";

// {rows}: a document that is drawn as it is; {query}: a rollout to ask about.
// Throws an Error that says what was found instead.
export function pasted(text) {
  const found = valuesOf(text);
  const [read] = found;
  if (found.length === 1 && read?.format === FORMAT) return { rows: read };
  if (found.every(isKept)) return { rows: documentOf(found.map(ofKept)) };
  if (found.every((one) => Array.isArray(one?.tokens))) {
    return { rows: documentOf(found.map((one, at) => ({ name: `pasted ${at + 1}`, ...one }))) };
  }
  const query = queryOf(read);
  if (found.length === 1 && query) return { query };
  throw new Error(`Rollout: paste a document of ${FORMAT}, lines of responses that the trainer kept, `
    + 'or an object with "prompt" and "text".');
}

// One JSON value, or one on each line.
function valuesOf(text) {
  try {
    return [JSON.parse(text)];
  } catch (error) {
    const lines = text.split("\n").filter((line) => line.trim());
    try {
      if (lines.length > 1) return lines.map((line) => JSON.parse(line));
    } catch { /* the first error tells more */ }
    throw new Error(`Rollout: this is no JSON (${error.message}).`);
  }
}

function documentOf(sequences) {
  return { format: FORMAT, title: "", sequences };
}

// A response that the trainer kept has its parts as one list each (docs/watching.md).
const EACH = {
  texts: "text", teacher_log_probs: "log_prob", student_log_probs: "student", losses: "loss",
  classes: "class", reasons: "reason", chunks: "chunk", coverage: "coverage",
};
const TOP = ["top_ids", "top_texts", "top_log_probs"];

function isKept(value) {
  return Array.isArray(value?.ids) && Array.isArray(value.texts) && value.ids.length === value.texts.length;
}

function ofKept(record, number) {
  const tokens = record.ids.map((id, at) => {
    const token = { id };
    for (const [list, name] of Object.entries(EACH)) {
      const value = record[list]?.[at];
      if (value !== undefined && value !== null && value !== "") token[name] = value;
    }
    const [ids, texts, logProbs] = TOP.map((name) => record[name]?.[at]);
    if (Array.isArray(ids)) token.top = ids.map((one, k) => [one, texts?.[k] ?? null, logProbs[k]]);
    return token;
  });
  const facts = {};
  for (const name of ["step", "loss", "origin", "finished"]) {
    if (["number", "string", "boolean"].includes(typeof record[name])) facts[name] = record[name];
  }
  return {
    name: `response ${record.place ?? number + 1}`, facts, tokens,
    prompt: typeof record.prompt === "string" ? record.prompt : null,
    text: typeof record.text === "string" ? record.text : null,
  };
}

// What an object with a prompt and a text asks, the fields that it decides; null for another one.
function queryOf(read) {
  const response = read?.text ?? read?.response ?? read?.completion;
  const prompt = read?.prompt ?? read?.messages;
  if (typeof response !== "string" || (typeof prompt !== "string" && !Array.isArray(prompt))) return null;
  const query = { kind: "text", prompt: "", messages: "", tools: "", student: "", response };
  if (Array.isArray(prompt)) {
    query.kind = "chat";
    query.messages = inLines(prompt);
  } else {
    query.prompt = prompt;
  }
  if (Array.isArray(read.student_log_probs)) query.student = read.student_log_probs.join(", ");
  return query;
}

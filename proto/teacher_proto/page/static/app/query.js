// What the form asks: as a link, as bodies of requests, and out of what people paste.

// The fields of a question. Everything is text or a number as it stands in the form.
export const EMPTY = {
  kind: "text", prompt: "", response: "", messages: "", tools: "", student: "",
  teacher: "", tokenizer: "", top_k: 20, temperature: 1, special: false,
  compare: "nothing", other_teacher: "", other_prompt: "",
};

const QUESTION = "What is the capital of France?";
const ANSWER = "The capital of France is Paris.";

// A question to begin with, as a teacher of GET /v1/teacher can read it; null: not known yet.
export function exampleFor(teacher) {
  if (teacher && !teacher.chat.template_digest) {
    return { ...EMPTY, teacher: teacher.name, prompt: QUESTION, response: ` ${ANSWER}` };
  }
  return {
    ...EMPTY, kind: "chat", teacher: teacher?.name ?? "",
    messages: inLines([{ role: "user", content: QUESTION }]), response: ANSWER,
  };
}

// A list as JSON, each of its items in a line.
export function inLines(list) {
  return `[\n ${list.map((item) => JSON.stringify(item)).join(",\n ")}\n]`;
}

const TOOL = {
  type: "function",
  function: {
    name: "weather", description: "The weather of a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

// What a form of each kind shows in its empty fields.
export const HINTS = {
  messages: JSON.stringify([{ role: "user", content: "..." }]),
  tools: JSON.stringify([TOOL]),
};

// The whole question in the part of an address that is never sent to a server.
export function toFragment(query) {
  const changed = Object.fromEntries(Object.entries(query).filter(([key, value]) => value !== EMPTY[key]));
  const bytes = new TextEncoder().encode(JSON.stringify(changed));
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) {
    binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return `q=${btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

// The question of a fragment; null where there is none. Throws an Error for one that is broken.
export function ofFragment(fragment) {
  const parts = /^#?q=([\w-]*)$/.exec(fragment);
  if (!parts) return null;
  let found;
  try {
    const binary = atob(parts[1].replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
    const read = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    const query = { ...EMPTY };
    for (const key of Object.keys(EMPTY)) {
      if (typeof read[key] === typeof EMPTY[key]) query[key] = read[key];
    }
    found = query;
  } catch {
    throw new Error("The link's question cannot be read: it is not whole.");
  }
  if (found.kind === "rollout") throw new Error("The link holds no question: what is pasted stands in no link.");
  return found;
}

// The bodies of POST /v1/score for a question: [name, body] of each.
// Throws an Error that says which field is wrong.
export function requestsOf(query, teachers) {
  const first = bodyOf(query, query.teacher);
  const name = query.teacher || teachers[0] || "teacher";
  const found = [[name, first]];
  if (query.compare === "teacher") {
    found.push([query.other_teacher, bodyOf(query, query.other_teacher)]);
  } else if (query.compare === "prompt") {
    found[0][0] = `${name}, own prompt`;
    found.push([`${name}, other prompt`,
      { ...first, teacher_prompt: { text: query.other_prompt } }]);
  } else if (query.compare === "temperature") {
    found[0][0] = `${name}, T = ${query.temperature}`;
    found.push([`${name}, T = 1`, { ...first, temperature: 1 }]);
  }
  return found;
}

function bodyOf(query, teacher) {
  const crossed = Boolean(query.tokenizer);
  const body = {
    prompt: promptOf(query),
    continuations: [query.kind === "ids"
      ? { token_ids: idsOf(query.response, "Response") }
      : { text: required(query.response, "Response") }],
    top_k: numberOf(query.top_k, "K"),
    temperature: numberOf(query.temperature, "Temperature"),
    returns: { sampled: true, log_tail: Number(query.top_k) > 0, realignment: crossed, coarse: crossed },
  };
  if (teacher) body.teacher = teacher;
  if (crossed) body.tokenizer_hash = query.tokenizer;
  return body;
}

// The prompt of a question as the server takes it.
export function promptOf(query) {
  if (query.kind === "ids") return { token_ids: idsOf(query.prompt, "Prompt") };
  if (query.kind === "chat") {
    const prompt = { messages: listOf(query.messages, "Messages") };
    if (query.tools.trim()) prompt.template_arguments = { tools: listOf(query.tools, "Tools") };
    return prompt;
  }
  const prompt = { text: required(query.prompt, "Prompt") };
  if (query.special) prompt.special_tokens = "add";
  return prompt;
}

// The student's log-probabilities; null where none are given.
export function studentOf(query) {
  if (!query.student.trim()) return null;
  const values = query.student.split(/[\s,[\]]+/).filter(Boolean).map(Number);
  if (values.some((value) => !Number.isFinite(value))) {
    throw new Error("Student's log-probabilities: write numbers, such as -0.21, -1.7.");
  }
  return values;
}

function required(text, name) {
  if (!text) throw new Error(`${name}: it is empty.`);
  return text;
}

function numberOf(value, name) {
  if (value === "" || !Number.isFinite(Number(value))) throw new Error(`${name}: write a number.`);
  return Number(value);
}

function idsOf(text, name) {
  const ids = text.split(/[\s,[\]]+/).filter(Boolean).map(Number);
  if (!ids.length || ids.some((id) => !Number.isInteger(id) || id < 0)) {
    throw new Error(`${name}: write token ids, such as 1, 2, 3.`);
  }
  return ids;
}

function listOf(text, name) {
  let read;
  try { read = JSON.parse(text); } catch (error) {
    throw new Error(`${name}: this is no JSON (${error.message}).`);
  }
  if (!Array.isArray(read) || !read.length) throw new Error(`${name}: write a list of objects.`);
  return read;
}

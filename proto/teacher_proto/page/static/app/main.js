// The page over a teacher server: asks what the form says and draws what comes back.
import { look } from "../view/look.js";
import { AskError, askJson, serverAddress, setToken, token } from "./ask.js";
import { offer, readForm, showFields, writeForm } from "./form.js";
import { livePanel } from "./live.js";
import { pasted } from "./paste.js";
import { exampleFor, ofFragment, promptOf, requestsOf, studentOf, toFragment } from "./query.js";
import { sequenceOfReply } from "./reply.js";

const FORMAT = "lsm-rows/1";
const part = (id) => document.getElementById(id);
let info = null;
let meeting = null;
let asking = null;

// Learns what the server offers; false when it did not say.
function meet() {
  meeting = learn();
  return meeting;
}

async function learn() {
  try {
    info = await askJson("/v1/teacher");
    const { tokenizers } = await askJson("/v1/tokenizers");
    offer(info, tokenizers);
    const count = info.teachers.length;
    part("state").textContent = `${count} teacher${count === 1 ? "" : "s"}, version ${info.server_version}`;
    return true;
  } catch (error) {
    part("state").textContent = error.wantsToken ? "Needs a token" : "Not ready";
    tell(error);
    return false;
  }
}

function tell(error) {
  if (error.name === "AbortError") return;
  const known = error instanceof AskError || error.constructor === Error;
  part("problem").textContent = error.told ?? (known ? error.message : `The page failed: ${error}`);
  part("problem").hidden = false;
  if (error.wantsToken) openTokenForm();
  if (!known) console.error(error);
}

function hideProblem() {
  part("problem").hidden = true;
  part("problem").textContent = "";
}

function openTokenForm() {
  part("token-form").hidden = false;
  part("token").focus();
}

async function ask() {
  asking?.abort();
  hideProblem();
  const own = new AbortController();
  asking = own;
  const stopped = () => own.signal.aborted;
  try {
    busy(true);
    if (readForm().kind === "rollout") {
      const found = pasted(part("rollout").value);
      if (found.rows) {
        look(part("look"), found.rows);
        return;
      }
      writeForm({ ...readForm(), ...found.query });
    }
    if (!(await meeting) && !(await meet())) return;
    const query = readForm();
    const student = studentOf(query);
    const requests = requestsOf(query, info.teachers.map((teacher) => teacher.name));
    checkSize(requests);
    const sequences = [];
    for (const [name, body] of requests) {
      part("progress").textContent = `Asking ${name} …`;
      const reply = await askJson("/v1/score", { body, signal: own.signal });
      const sequence = sequenceOfReply(name, reply, 0, student);
      sequence.facts = { teacher: reply.teacher, K: body.top_k, temperature: body.temperature };
      sequence.request = body;
      sequence.server = serverAddress();
      sequence.needs_token = token() !== "";
      sequences.push(sequence);
    }
    const missing = await addPrompts(query, requests, sequences, own.signal);
    if (query.tokenizer) {
      missing.push(...await addTeachersTokens(query, requests, sequences, own.signal));
    }
    if (stopped()) return;
    look(part("look"), { format: FORMAT, title: "", sequences });
    missing.slice(0, 1).forEach(tell);
    history.replaceState(null, "", `#${toFragment(query)}`);
    part("look").scrollIntoView({ block: "start" });
  } catch (error) {
    if (!stopped()) tell(error);
  } finally {
    if (asking === own) busy(false);
  }
}

function busy(on) {
  part("stop").hidden = !on;
  part("send").disabled = on;
  if (!on) part("progress").textContent = "";
}

// A server ends the connection of a body beyond its limit, which a browser cannot tell apart
// from one that is gone.
function checkSize(requests) {
  const most = info.limits.max_request_bytes;
  for (const [, body] of requests) {
    const size = new Blob([JSON.stringify(body)]).size;
    if (size > most) {
      throw new Error(`The question is ${size} bytes, and the server reads ${most} at most (limits.max_request_bytes).`);
    }
  }
}

// Asks something beside each request: a refusal is no reason to show no rows. The refusals.
async function beside(requests, asks) {
  const refusals = [];
  for (const [at, [, body]] of requests.entries()) {
    try {
      await asks(at, body);
    } catch (error) {
      if (!(error instanceof AskError)) throw error;
      refusals.push(error);
    }
  }
  return refusals;
}

// The prompts as the teachers read them.
function addPrompts(query, requests, sequences, signal) {
  return beside(requests, async (at, body) => {
    const prompt = body.teacher_prompt ?? promptOf(query);
    if (prompt.token_ids) return;
    const asked = { prompts: [prompt], token_ids: false };
    if (body.teacher) asked.teacher = body.teacher;
    const { prompts } = await askJson("/v1/render", { body: asked, signal });
    if (typeof prompts[0].text === "string") sequences[at].prompt = prompts[0].text;
  });
}

// The teacher's own tokens of the same text, below those of the student.
function addTeachersTokens(query, requests, sequences, signal) {
  return beside(requests, async (at, body) => {
    if (query.kind === "ids") return;  // the prompt's ids are the student's
    const { tokenizer_hash: _, ...own } = body;
    const text = query.response;
    const asked = {
      ...own, continuations: [{ text }], top_k: 0,
      returns: { sampled: true, log_tail: false, realignment: false, coarse: false },
    };
    const reply = await askJson("/v1/score", { body: asked, signal });
    sequences[at].text = text;
    sequences[at].other = { name: `${reply.teacher}'s own tokens`, tokens: sequenceOfReply("", reply).tokens };
  });
}

async function register(file) {
  try {
    part("progress").textContent = "Registering the tokenizer …";
    const found = await askJson("/v1/tokenizers", { body: file });
    await meet();
    writeForm({ ...readForm(), tokenizer: found.tokenizer_hash });
  } catch (error) {
    tell(error);
  } finally {
    part("progress").textContent = "";
  }
}

async function copyLink() {
  const link = `${location.origin}${location.pathname}#${toFragment(readForm())}`;
  history.replaceState(null, "", link);
  try {
    await navigator.clipboard.writeText(link);
    part("progress").textContent = "Copied; it is in the address bar too.";
  } catch {
    part("progress").textContent = "It is in the address bar.";
  }
}

async function start() {
  part("live").append(livePanel(() => info));
  part("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  part("example").addEventListener("click", async () => {
    await meeting;
    const { teacher } = readForm();
    writeForm(exampleFor(info?.teachers.find((one) => one.name === teacher) ?? null));
    ask();
  });
  part("stop").addEventListener("click", () => { asking?.abort(); busy(false); });
  part("link").addEventListener("click", copyLink);
  part("tokenizer-file").addEventListener("change", (event) => {
    if (event.target.files.length) register(event.target.files[0]);
  });
  part("token-open").addEventListener("click", openTokenForm);
  part("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(part("token").value.trim());
  });
  part("token-forget").addEventListener("click", () => useToken(""));
  addEventListener("hashchange", readLink);
  if (!readLink()) writeForm(exampleFor(null));
  await meet();
}

async function useToken(value) {
  setToken(value);
  part("token").value = "";
  hideProblem();
  if (await meet()) part("token-form").hidden = true;
}

// Whether the address holds a question, which is in the form then. Who opened it sends it: it may
// be somebody else's, and it would go with this tab's token.
function readLink() {
  try {
    const query = ofFragment(location.hash);
    if (query) {
      writeForm(query);
      part("progress").textContent = "The link's question is in the form; Look asks it.";
    }
    showFields();
    return query !== null;
  } catch (error) {
    tell(error);
    return false;
  }
}

start();

// The question behind a sequence as JSON, curl and Python, and its rows as JSON.
import { copyButton, make } from "./dom.js";

const TOKEN_HINT = "LSM_TOKEN";

// A server that stands in a program: nothing in it ends a string (teacher_proto/page/document.py).
const SERVER = /^https?:\/\/[!#-&(-[\]-_a-~]+$/;

// A text as one word of a shell.
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

export function asCurl(server, request, needsToken) {
  const header = needsToken ? ` \\\n  -H "Authorization: Bearer $${TOKEN_HINT}"` : "";
  return `curl -sS${header} \\\n  -H 'Content-Type: application/json' \\\n`
    + `  -d ${quoted(JSON.stringify(request))} \\\n  ${quoted(`${server}/v1/score`)}`;
}

// A text as a string of Python, which one of JSON's own escapes is too.
function ofPython(text) {
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

export function asPython(server, request, needsToken) {
  const header = needsToken
    ? `, "Authorization": "Bearer " + os.environ["${TOKEN_HINT}"]` : "";
  return `import json${needsToken ? "\nimport os" : ""}\nimport urllib.request\n\n`
    + `request = json.loads(${ofPython(JSON.stringify(request))})\n`
    + `call = urllib.request.Request(\n    ${ofPython(`${server}/v1/score`)},\n`
    + `    json.dumps(request).encode(),\n`
    + `    {"Content-Type": "application/json"${header}},\n)\n`
    + `with urllib.request.urlopen(call) as answer:\n    reply = json.load(answer)\n`
    + `for row in reply["results"][0]["rows"]:\n`
    + `    print(row["row"], repr(row["token"]), row.get("sampled_log_prob"))\n`;
}

// Buttons, and the text of what was copied last below them.
export function sourcesView(sequence) {
  const shown = make("textarea", {
    class: "source", readonly: true, rows: "12", "aria-label": "What was copied", spellcheck: "false",
  });
  const offer = (label, text) => copyButton(label, () => { shown.value = text(); return shown.value; });
  const buttons = [offer("Copy rows as JSON", () => JSON.stringify(sequence, null, 1))];
  const { request, server, needs_token: needsToken } = sequence;
  if (request) {
    buttons.push(offer("Copy request as JSON", () => JSON.stringify(request, null, 1)));
    if (typeof server === "string" && SERVER.test(server)) {
      buttons.push(
        offer("Copy as curl", () => asCurl(server, request, needsToken)),
        offer("Copy as Python", () => asPython(server, request, needsToken)));
    }
  }
  return make("div", { class: "sources" },
    make("div", { class: "toolbar" }, buttons),
    needsToken ? make("p", { class: "soft" },
      `The token is not copied: curl and Python read it from the variable ${TOKEN_HINT}.`) : null,
    shown);
}

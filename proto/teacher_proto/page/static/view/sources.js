// The question behind a sequence as JSON, curl and Python, and its rows as JSON.
import { copyButton, make } from "./dom.js";

const TOKEN_HINT = "LSM_TOKEN";

export function asCurl(server, request, needsToken) {
  const body = JSON.stringify(request).replaceAll("'", "'\\''");
  const header = needsToken ? ` \\\n  -H "Authorization: Bearer $${TOKEN_HINT}"` : "";
  return `curl -sS${header} \\\n  -H 'Content-Type: application/json' \\\n`
    + `  -d '${body}' \\\n  '${server}/v1/score'`;
}

export function asPython(server, request, needsToken) {
  // JSON inside a string of JSON's own escapes is a Python string too.
  const body = JSON.stringify(JSON.stringify(request)).replace(/[\u007f-\uffff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const header = needsToken
    ? `, "Authorization": "Bearer " + os.environ["${TOKEN_HINT}"]` : "";
  return `import json${needsToken ? "\nimport os" : ""}\nimport urllib.request\n\n`
    + `request = json.loads(${body})\n`
    + `call = urllib.request.Request(\n    ${JSON.stringify(`${server}/v1/score`)},\n`
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
    if (server) {
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

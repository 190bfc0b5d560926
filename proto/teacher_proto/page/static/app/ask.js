// Calls of the teacher server, with the token of this tab; every failure in words.

const KEY = "lsm-distill token";

// The token lives in this tab alone: never in a link, gone when the tab is.
export function token() {
  try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; }
}

export function setToken(value) {
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch { /* a browser without storage asks again */ }
}

// A call that did not give what was asked for: `reason` as the server names it.
export class AskError extends Error {
  constructor(reason, what, fix = "", where = "") {
    super(what);
    this.reason = reason;
    this.fix = fix;
    this.where = where;
  }

  get told() {
    const place = this.where ? `${this.where}: ` : "";
    return `${place}${this.message}${this.fix ? `\nFix: ${this.fix}` : ""}\n(${this.reason})`;
  }

  get wantsToken() {
    return ["UNAUTHENTICATED", "TOKEN_EXPIRED"].includes(this.reason);
  }
}

const SERVER = new URL(".", document.baseURI).href.replace(/\/$/, "");

export function serverAddress() {
  return SERVER;
}

// The text that a path answers. `body`: a value that is sent as JSON, or a file as it is.
export async function askText(path, { body, method, signal } = {}) {
  const headers = {};
  if (token()) headers.authorization = `Bearer ${token()}`;
  const file = body instanceof Blob;
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer, text;
  try {
    answer = await fetch(`${SERVER}${path}`, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers, signal, cache: "no-store", credentials: "same-origin", redirect: "error",
      body: body === undefined || file ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AskError("NO_ANSWER", "the server does not answer",
      "see whether it still runs and whether this address reaches it; what you wrote is kept");
  }
  try {
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AskError("REPLY_CUT", "the connection ended in the middle of the reply",
      "ask again; if it happens again, read the server's log");
  }
  if (answer.ok) return text;
  let detail = null;
  try { detail = JSON.parse(text).error; } catch { /* not one of the server's own errors */ }
  if (!detail?.reason) {
    throw new AskError(`HTTP_${answer.status}`, `the answer is HTTP ${answer.status} and no error of a teacher server`,
      "see what stands between this page and the server");
  }
  throw new AskError(detail.reason, detail.what, detail.fix, detail.where);
}

export async function askJson(path, options) {
  const text = await askText(path, options);
  try {
    return JSON.parse(text);
  } catch {
    throw new AskError("REPLY_CUT", `the reply of ${text.length} characters is cut off or no JSON`,
      "ask again; if it happens again, read the server's log");
  }
}

// The live panel: teachers, queue, runs and their shares, refusals, limits.
import { make } from "../view/dom.js";
import { shortNumber } from "../view/text.js";
import { AskError, askText } from "./ask.js";
import { byLabel, samplesOf } from "./prometheus.js";

const SECONDS = 2;

// The panel; `info()`: the last answer of GET /v1/teacher, or null. It asks while it is open.
export function livePanel(info) {
  const place = make("div", {}, make("p", { class: "soft" }, "Open it to look."));
  const panel = make("details", { class: "card live" },
    make("summary", {}, make("h2", {}, "Live: teachers, queue, runs, refusals")), place);
  let before = null, timer = 0;

  async function look() {
    clearTimeout(timer);
    if (!panel.open) return;
    if (!document.hidden) {
      try {
        const now = { at: performance.now(), samples: samplesOf(await askText("/metrics")) };
        place.replaceChildren(...tables(info(), now, before));
        before = now;
      } catch (error) {
        if (!(error instanceof AskError)) throw error;
        place.replaceChildren(make("p", { class: "problem" }, error.told));
      }
    }
    timer = setTimeout(look, SECONDS * 1000);
  }

  panel.addEventListener("toggle", look);
  return panel;
}

function tables(info, now, before) {
  const seconds = before ? (now.at - before.at) / 1000 : null;
  const all = (name, label) => byLabel(now.samples, `lsm_teacher_${name}`, label);
  const rate = (name, label) => {
    const then = before ? byLabel(before.samples, `lsm_teacher_${name}`, label) : new Map();
    return new Map([...all(name, label)].map(([key, value]) =>
      [key, seconds ? (value - (then.get(key) ?? 0)) / seconds : null]));
  };
  return [
    make("h3", {}, "Teachers"), teacherTable(info, all, rate),
    make("h3", {}, "Runs"), runTable(all, rate),
    make("h3", {}, "Refused since the server started"), refusals(all),
    info ? make("details", {}, make("summary", {}, "Limits"), grid(["limit", "value"],
      Object.entries(info.limits).map(([name, value]) => [name, String(value)]))) : null,
  ].filter(Boolean);
}

function teacherTable(info, all, rate) {
  const queue = all("queue_tokens", "teacher"), age = all("queue_age_seconds", "teacher");
  const inside = all("inflight_tokens", "teacher"), speed = rate("computed_tokens_total", "teacher");
  const names = info ? info.teachers.map((teacher) => teacher.name) : [...queue.keys()];
  return grid(["teacher", "model", "engine", "largest K", "longest", "tokens/s", "waiting", "oldest", "in the engine"],
    names.map((name) => {
      const facts = info?.teachers.find((teacher) => teacher.name === name);
      return [name, facts?.model ?? "\u2013", facts?.engine ?? "\u2013", shortNumber(facts?.max_top_k),
        shortNumber(facts?.max_length), shortNumber(speed.get(name)), shortNumber(queue.get(name)),
        `${shortNumber(age.get(name))} s`, shortNumber(inside.get(name))];
    }));
}

function runTable(all, rate) {
  const total = all("run_tokens_total", "run"), speed = rate("run_tokens_total", "run");
  const queue = all("run_queue_tokens", "run"), age = all("run_queue_age_seconds", "run");
  const names = [...new Set([...total.keys(), ...queue.keys()])];
  if (!names.length) return make("p", { class: "soft" }, "No run has asked yet.");
  const sum = [...speed.values()].reduce((a, b) => a + (b ?? 0), 0);
  return grid(["run", "share now", "tokens/s", "tokens so far", "waiting", "oldest"], names.map((name) => {
    const share = sum > 0 ? `${(((speed.get(name) ?? 0) / sum) * 100).toFixed(0)}%` : "\u2013";
    return [name || "(none)", share, shortNumber(speed.get(name)), shortNumber(total.get(name)),
      shortNumber(queue.get(name) ?? 0), `${shortNumber(age.get(name) ?? 0)} s`];
  }));
}

function refusals(all) {
  const reasons = [...all("rejections_total", "reason")].filter(([, count]) => count > 0);
  if (!reasons.length) return make("p", { class: "soft" }, "None.");
  return grid(["reason", "requests"], reasons.sort((a, b) => b[1] - a[1])
    .map(([reason, count]) => [reason, shortNumber(count)]));
}

function grid(names, rows) {
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table by ${names[0]}` },
    make("table", {},
      make("thead", {}, make("tr", {}, names.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, rows.map(([first, ...rest]) => make("tr", {},
        make("th", { scope: "row" }, first), rest.map((cell) => make("td", {}, cell)))))));
}

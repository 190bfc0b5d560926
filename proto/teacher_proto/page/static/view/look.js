// A document of rows to look at, drawn into an element: docs/inspect.md has its format.
import { positionChart } from "./chart.js";
import { compareView, worstRow } from "./compare.js";
import { detailsPanel } from "./details.js";
import { choice, make, tick, unique } from "./dom.js";
import { SCALES, coverageOf, gapOf, measured, scalesOf, stepClass, worst } from "./scales.js";
import { segmentView } from "./segments.js";
import { sourcesView } from "./sources.js";
import { tokenStrip } from "./strip.js";
import { known, shortNumber, shortProbability, visible } from "./text.js";

const FORMAT = "lsm-rows/1";
const WORST = 12;

// Draws `rows` into `root`; what is not such a document is said in words.
export function look(root, rows) {
  if (rows?.format !== FORMAT || !Array.isArray(rows.sequences) || !rows.sequences.length) {
    root.replaceChildren(make("p", { class: "problem", role: "alert" },
      `These are no rows to look at: "format" has to be "${FORMAT}", and "sequences" a list.`));
    return;
  }
  const { sequences } = rows;
  const place = make("div");
  let chosen = 0;
  const draw = () => place.replaceChildren(...sequenceView(sequences, chosen));
  const picker = sequences.length > 1
    ? make("div", { class: "toolbar" }, choice("Sequence",
      sequences.map((sequence, at) => [at, `${at + 1}. ${sequence.name}`]), 0,
      (value) => { chosen = Number(value); draw(); }))
    : null;
  draw();
  root.replaceChildren(...[
    make("h2", { class: rows.title ? null : "offscreen" }, rows.title || "Rows"),
    picker, place].filter(Boolean));
}

function sequenceView(sequences, chosen) {
  const sequence = sequences[chosen];
  const second = chosen === 0 ? 1 : 0;
  const views = [["Tokens", () => tokensView(sequence)]];
  if (sequences.length > 1) {
    views.push(["Side by side", () => compareView(sequences, Math.min(chosen, second), Math.max(chosen, second))]);
  }
  if (sequence.other) {
    views.push(["Segmentations", () => withDetails(sequence)]);
  }
  views.push(["Copy", () => sourcesView(sequence)]);
  return [summary(sequence), promptOf(sequence), tabs(views)].filter(Boolean);
}

function summary(sequence) {
  const scored = sequence.tokens.filter((token) => token.scored !== false);
  const mean = (of) => {
    const values = scored.map(of).filter(known);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  };
  const logProb = mean((token) => token.log_prob), gap = mean(gapOf), coverage = mean(coverageOf);
  const masked = scored.filter((token) => token.class === "MASKED").length;
  const cards = [
    ["tokens", String(scored.length)],
    ["teacher's mean log-probability", known(logProb) ? shortNumber(logProb) : null],
    ["mean gap, student \u2212 teacher", known(gap) ? shortNumber(gap) : null],
    ["mean coverage", known(coverage) ? shortProbability(Math.log(coverage)) : null],
    ["masked", sequence.tokens.some((token) => token.class) ? String(masked) : null],
    ...Object.entries(sequence.facts ?? {}).map(([name, value]) =>
      [name, typeof value === "number" ? shortNumber(value) : String(value)]),
  ];
  return make("dl", { class: "cards" }, cards.filter(([, value]) => value !== null)
    .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function promptOf(sequence) {
  if (!sequence.prompt) return null;
  return make("details", { class: "prompts" },
    make("summary", {}, "Prompt, as it was read"),
    make("pre", { class: "prompt", tabindex: "0" }, visible(sequence.prompt)));
}

function tabs(views) {
  const place = make("div", { role: "tabpanel", id: unique("panel"), tabindex: "-1" });
  const buttons = views.map(([name], at) => make("button", {
    type: "button", role: "tab", id: unique("tab"), "aria-controls": place.id,
    "aria-selected": "false", click: () => open(at),
    keydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (at + step + views.length) % views.length;
      open(next);
      buttons[next].focus();
    },
  }, name));
  function open(chosen) {
    buttons.forEach((button, at) => {
      button.setAttribute("aria-selected", String(at === chosen));
      button.tabIndex = at === chosen ? 0 : -1;
    });
    place.setAttribute("aria-labelledby", buttons[chosen].id);
    place.replaceChildren(views[chosen][1]());
  }
  open(0);
  return make("div", { class: "tabs" },
    make("div", { role: "tablist", "aria-label": "Views" }, buttons), place);
}

function withDetails(sequence) {
  const panel = detailsPanel();
  return make("div", { class: "split" }, segmentView(sequence, (at) =>
    panel.show(sequence.tokens[at], at, sequence.tokens.length)), panel.element);
}

function tokensView(sequence) {
  const { tokens } = sequence;
  if (!tokens.length) return make("p", { class: "soft" }, "There are no tokens.");
  const panel = detailsPanel();
  let chart = null, shown = -1;
  const strip = tokenStrip(tokens, "Tokens of the sequence", (at) => {
    shown = at;
    panel.show(tokens[at], at, tokens.length);
    chart?.mark(at);
  });
  const above = make("div");
  const about = make("p", { class: "soft" });
  const names = scalesOf(tokens);
  const draw = (name) => {
    const scale = SCALES[name];
    const { values, full } = measured(tokens, scale);
    strip.paint(values.map((value) => stepClass(value, full, scale.signed)));
    const seen = values.map((value) => (known(value) && scale.shown ? scale.shown(value) : value));
    chart = positionChart(seen, scale.label, strip.pin);
    if (shown >= 0) chart?.mark(shown);
    about.textContent = scale.about;
    above.replaceChildren(...[chart?.element,
      worstRow(tokens, seen, worst(values, WORST), strip.pin)].filter(Boolean));
  };
  const first = names.includes("loss") ? "loss" : names.includes("gap") ? "gap" : names[0];
  if (first) draw(first);
  else strip.paint(tokens.map(() => "unknown"));
  strip.begin(first ? worst(measured(tokens, SCALES[first]).values, 1)[0] ?? 0 : 0);
  return make("div", {},
    make("div", { class: "toolbar" },
      first ? choice("Colour by", names.map((name) => [name, SCALES[name].label]), first, draw) : null,
      tick("Show white space", true, (on) => strip.write(!on)),
      about),
    above,
    make("div", { class: "split" }, strip.element, panel.element));
}

// Distributions as bars: one, or two side by side.
import { make } from "./dom.js";
import { inLine, known, shortNumber, shortProbability } from "./text.js";

const FIRST = 24;

// Rows of a table of bars.
// `sides`: one or two of {name, top, sampled, beyond}: entries [id, text, log-probability],
// the log-probability of the token itself and of all that `top` leaves out, null where unknown.
// `token`: {id, text}, which is marked; `byText`: the two sides have different ids.
export function barTable(sides, token, byText = false) {
  const shown = sides.filter((side) => side.top || known(side.sampled));
  if (!shown.length) return make("p", { class: "soft" }, "No distribution is known here.");
  const key = (id, text) => (byText ? String(text) : id);
  const rows = new Map();
  shown.forEach((side, at) => {
    const entries = [...(side.top ?? [])];
    if (known(side.sampled) && !entries.some(([id, text]) => key(id, text) === key(token.id, token.text))) {
      entries.push([token.id, token.text, side.sampled]);
    }
    for (const [id, text, logProb] of entries) {
      const row = rows.get(key(id, text)) ?? { id, text, values: shown.map(() => null) };
      row.values[at] = logProb;
      rows.set(key(id, text), row);
    }
  });
  const size = (row) => Math.max(...row.values.map((v) => (known(v) ? v : -Infinity)));
  const sorted = [...rows.values()].sort((a, b) => size(b) - size(a));
  const isOwn = (row) => key(row.id, row.text) === key(token.id, token.text);
  const body = make("tbody");
  const add = (list) => body.append(...list.map((row) => barRow(row, shown, isOwn(row))));
  add(sorted.filter((row, at) => at < FIRST || isOwn(row)));
  const later = sorted.filter((row, at) => at >= FIRST && !isOwn(row));
  if (shown.some((side) => known(side.beyond))) body.append(beyondRow(shown));
  const table = make("table", { class: shown.length > 1 ? "bars two" : "bars" },
    make("thead", {}, make("tr", {},
      make("th", { scope: "col" }, "Token"),
      shown.map((side) => make("th", { scope: "col" }, side.name)))),
    body);
  if (!later.length) return table;
  const more = make("button", {
    type: "button", click: () => { add(later); more.remove(); },
  }, `Show ${later.length} more`);
  return make("div", {}, table, more);
}

function barRow(row, sides, own) {
  return make("tr", { class: own ? "own" : null },
    make("th", { scope: "row" },
      make("span", { class: "tok" }, inLine(row.text)),
      own ? make("span", { class: "mark" }, " \u25c0 this token") : null,
      make("span", { class: "id" }, ` ${row.id}`)),
    row.values.map((value, at) => make("td", {}, bar(value, sides[at].top !== undefined))));
}

function beyondRow(sides) {
  return make("tr", { class: "beyond" },
    make("th", { scope: "row" }, "everything beyond these"),
    sides.map((side) => make("td", {}, bar(side.beyond, true))));
}

function bar(logProb) {
  if (!known(logProb)) return make("span", { class: "soft" }, "not among them");
  const fill = make("span", { class: "fill" });
  fill.style.width = `${Math.min(100, Math.exp(logProb) * 100).toFixed(2)}%`;
  return make("span", { class: "bar" }, make("span", { class: "track" }, fill),
    make("span", { class: "figure" }, `${shortProbability(logProb)}  ${shortNumber(logProb)}`));
}

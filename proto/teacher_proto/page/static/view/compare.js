// Two readings of the same tokens side by side, and their difference token by token.
import { barTable } from "./bars.js";
import { positionChart } from "./chart.js";
import { choice, make } from "./dom.js";
import { commonEnds, partners } from "./places.js";
import { logBeyond, stepClass, worst } from "./scales.js";
import { inLine, known, shortNumber, visible } from "./text.js";
import { tokenStrip } from "./strip.js";

const FULL = 3;
const WORST = 12;

// The view of two sequences of a document; `first`, `second`: which ones at first.
export function compareView(sequences, first = 0, second = 1) {
  const place = make("div");
  const names = sequences.map((sequence, at) => [at, `${at + 1}. ${sequence.name}`]);
  let left = first, right = second;
  const draw = () => place.replaceChildren(...pairView(sequences[left], sequences[right]));
  const bar = make("div", { class: "toolbar" },
    choice("A", names, left, (value) => { left = Number(value); draw(); }),
    choice("B", names, right, (value) => { right = Number(value); draw(); }));
  draw();
  return make("div", {}, sequences.length > 2 ? bar : null, place);
}

function pairView(left, right) {
  const { same, positions } = partners(left.tokens, right.tokens);
  const values = left.tokens.map((token, at) => {
    const other = right.tokens[positions[at]];
    return other && known(token.log_prob) && known(other.log_prob)
      ? token.log_prob - other.log_prob : null;
  });
  const some = values.filter(known);
  const parts = [make("p", {},
    make("strong", {}, "A "), left.name, " against ", make("strong", {}, "B "), right.name, ". ",
    some.length
      ? `${some.length} of ${left.tokens.length} tokens can be compared; A minus B is `
        + `${shortNumber(some.reduce((a, b) => a + b, 0) / some.length)} nats on average. `
        + "Orange: A finds the token likelier; blue: B does."
      : "They have no token in common that both have a log-probability of.")];
  if (left.prompt && right.prompt && left.prompt !== right.prompt) {
    parts.push(promptDifference(left.prompt, right.prompt));
  }
  const panel = make("section", { class: "details", "aria-label": "Both sides of a token" },
    make("p", { class: "soft" }, "Point at a token to see both distributions."));
  const strip = tokenStrip(left.tokens, "Tokens, coloured by A minus B", (at) => {
    chart?.mark(at);
    const token = left.tokens[at], other = right.tokens[positions[at]];
    panel.replaceChildren(
      make("h3", { "aria-live": "polite" }, make("span", { class: "tok big" }, inLine(token.text)),
        make("span", { class: "soft" }, ` ${at + 1} of ${left.tokens.length} \u00b7 A \u2212 B `
          + `${shortNumber(values[at])}`)),
      barTable([
        { name: "A", top: token.top, sampled: token.log_prob, beyond: logBeyond(token) },
        other
          ? { name: "B", top: other.top, sampled: other.log_prob, beyond: logBeyond(other) }
          : { name: "B", top: undefined, sampled: null, beyond: null },
      ], token, !same));
  });
  const chart = positionChart(values, "A minus B", strip.pin);
  strip.paint(values.map((value) => stepClass(value, FULL, true)));
  const most = worst(values, WORST);
  if (left.tokens.length) strip.begin(most[0] ?? 0);
  parts.push(...[chart?.element, worstRow(left.tokens, values, most, strip.pin),
    make("div", { class: "split" }, strip.element, panel)].filter(Boolean));
  return parts;
}

// Buttons for the tokens with the largest values.
export function worstRow(tokens, values, positions, onPick) {
  if (!positions.length) return null;
  return make("div", { class: "worst" }, make("span", { class: "soft" }, "Largest: "),
    positions.map((at) => make("button", { type: "button", click: () => onPick(at) },
      make("span", { class: "tok" }, inLine(tokens[at].text)),
      make("span", { class: "soft" }, ` ${at + 1}: ${shortNumber(values[at])}`))));
}

function promptDifference(left, right) {
  const [begin, end] = commonEnds(left, right);
  const shown = (text) => make("pre", { class: "prompt" },
    make("span", { class: "soft" }, visible(text.slice(0, begin), true)),
    make("mark", {}, visible(text.slice(begin, text.length - end))),
    make("span", { class: "soft" }, visible(text.slice(text.length - end), true)));
  return make("details", { class: "prompts", open: true },
    make("summary", {}, "The two prompts differ"),
    make("div", { class: "columns" },
      make("div", {}, make("h3", { class: "small" }, "A"), shown(left)),
      make("div", {}, make("h3", { class: "small" }, "B"), shown(right))));
}

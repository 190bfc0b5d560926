// Everything that is known of one token.
import { barTable } from "./bars.js";
import { make } from "./dom.js";
import { coverageOf, gapOf, logBeyond } from "./scales.js";
import { inLine, known, reasonText, shortNumber, shortProbability } from "./text.js";

function rankOf(token) {
  const at = token.top?.findIndex(([id]) => id === token.id) ?? -1;
  return at >= 0 ? `${at + 1} of the teacher's top ${token.top.length}` : null;
}

// [name, value] of what is known of a token beside its distribution.
function factsOf(token) {
  const coverage = coverageOf(token);
  const beyond = logBeyond(token);
  const facts = [
    ["Teacher", known(token.log_prob)
      ? `${shortProbability(token.log_prob)} (${shortNumber(token.log_prob)})` : null],
    ["Student", known(token.student)
      ? `${shortProbability(token.student)} (${shortNumber(token.student)})` : null],
    ["Gap, student \u2212 teacher", known(gapOf(token)) ? shortNumber(gapOf(token)) : null],
    ["Loss contribution", known(token.loss) ? shortNumber(token.loss) : null],
    ["Rank", rankOf(token) ?? (token.top?.length && known(token.log_prob)
      ? `not among the teacher's top ${token.top.length}` : null)],
    ["Coverage of the support", known(coverage) ? `${(coverage * 100).toFixed(2)}%` : null],
    ["Beyond the support", known(beyond) ? shortProbability(beyond) : null],
    ["Class", token.class ?? null],
    ["Reason", token.reason ? reasonText(token.reason) : null],
    ["Chunk", known(token.chunk) && token.chunk >= 0 ? String(token.chunk) : null],
    ["Mass not settled", token.open_mass ? shortNumber(token.open_mass) : null],
    ["Mass that no token expresses", token.lost_mass ? shortNumber(token.lost_mass) : null],
  ];
  return facts.filter(([, value]) => value !== null);
}

// The panel of details; `show(token, at, count)` fills it.
export function detailsPanel() {
  const panel = make("section", { class: "details", "aria-label": "Details of a token" },
    make("p", { class: "soft" },
      "Point at a token, tap it, or move with the arrow keys to see what the teacher thinks of it."));

  function show(token, at, count) {
    const heading = make("h3", { "aria-live": "polite" },
      make("span", { class: "tok big" }, inLine(token.text)),
      make("span", { class: "soft" }, ` id ${token.id} \u00b7 ${at + 1} of ${count}`));
    const facts = make("dl", { class: "facts" },
      factsOf(token).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    const masked = token.class === "MASKED"
      ? make("p", { class: "note" }, "This position is masked: it tells nothing and adds no loss.") : null;
    const given = token.scored === false
      ? make("p", { class: "note" }, "This token was given, not scored.") : null;
    const sides = [
      { name: "Teacher", top: token.top, sampled: token.log_prob, beyond: logBeyond(token) },
      { name: "Student", top: token.student_top, sampled: token.student, beyond: null },
    ];
    panel.replaceChildren(...[heading, masked, given, facts,
      barTable(token.student_top || known(token.student) ? sides : sides.slice(0, 1), token)]
      .filter((part) => part !== null));
  }

  return { element: panel, show };
}

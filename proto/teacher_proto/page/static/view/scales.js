// What tokens can be coloured by: each scale gives a token a value and a step of colour.
import { known } from "./text.js";

// Steps of colour; 0 is none.
export const STEPS = 8;

// The log-probability of what the support leaves out; null where it is not known.
export function logBeyond(token) {
  if (known(token.log_tail)) return token.log_tail;
  if (!token.top?.length) return null;
  const rest = 1 - token.top.reduce((sum, entry) => sum + Math.exp(entry[2]), 0);
  return rest > 1e-7 ? Math.log(rest) : null;
}

// The probability that the support holds; null where there is none.
export function coverageOf(token) {
  if (known(token.coverage)) return token.coverage;
  if (!token.top?.length) return null;
  if (known(token.log_tail)) return 1 - Math.exp(token.log_tail);
  return Math.min(1, token.top.reduce((sum, entry) => sum + Math.exp(entry[2]), 0));
}

// Student's minus teacher's log-probability; null where one of them is missing.
export function gapOf(token) {
  return known(token.student) && known(token.log_prob) ? token.student - token.log_prob : null;
}

// How much likelier than this token the teacher's own choice is, nats.
function surpriseOf(token) {
  if (!token.top?.length || !known(token.log_prob)) return null;
  return Math.max(0, token.top[0][2] - token.log_prob);
}

function negative(value) {
  return known(value) ? -value : null;
}

// name -> what it is called, what it means, a token's value, where the colour is full,
// whether values below 0 have a colour of their own.
export const SCALES = {
  teacher: {
    label: "Teacher's log-probability",
    about: "Stronger colour: the teacher finds the token less likely.",
    value: (token) => negative(token.log_prob), full: 8, shown: (v) => -v,
  },
  surprise: {
    label: "Surprise",
    about: "How much likelier the teacher's first choice is than this token, in nats. "
      + "0: the token is its first choice.",
    value: surpriseOf, full: 6,
  },
  coverage: {
    label: "Coverage",
    about: "Stronger colour: more of the teacher's probability lies outside of the K tokens.",
    value: (token) => { const c = coverageOf(token); return known(c) ? 1 - c : null; },
    full: 0.6, shown: (v) => 1 - v,
  },
  gap: {
    label: "Gap, student \u2212 teacher",
    about: "Orange: the student finds the token likelier than the teacher does; blue: less. "
      + "The mean estimates the reverse KL from these tokens.",
    value: gapOf, full: 4, signed: true,
  },
  loss: {
    label: "Loss contribution",
    about: "What the token adds to the loss, as the trainer wrote it down.",
    value: (token) => (known(token.loss) ? token.loss : null), full: null, signed: true,
  },
  student: {
    label: "Student's log-probability",
    about: "Stronger colour: the student finds the token less likely.",
    value: (token) => negative(token.student), full: 8, shown: (v) => -v,
  },
};

// The names of the scales that at least one token has a value on.
export function scalesOf(tokens) {
  return Object.keys(SCALES).filter((name) =>
    tokens.some((token) => known(SCALES[name].value(token))));
}

// Values of all tokens on a scale, and where its colour is full.
export function measured(tokens, scale) {
  const values = tokens.map(scale.value);
  let full = scale.full;
  if (full === null || full === undefined) {
    const sizes = values.filter(known).map(Math.abs).sort((a, b) => a - b);
    full = sizes.length ? sizes[Math.floor((sizes.length - 1) * 0.98)] || 1 : 1;
  }
  return { values, full };
}

// The class of a token's colour: "h3" of a plain scale, "p3" or "n3" of a signed one.
export function stepClass(value, full, signed) {
  if (!known(value)) return "unknown";
  const step = Math.min(STEPS, Math.round((Math.abs(value) / full) * STEPS));
  if (step === 0) return "h0";
  if (!signed) return value > 0 ? `h${step}` : "h0";
  return value > 0 ? `p${step}` : `n${step}`;
}

// Positions of the largest values, first the largest; at most `count`, and none of 0.
export function worst(values, count) {
  return values.map((value, at) => [known(value) ? Math.abs(value) : 0, at])
    .filter(([size]) => size > 0)
    .sort((a, b) => b[0] - a[0] || a[1] - b[1])
    .slice(0, count).map(([, at]) => at);
}

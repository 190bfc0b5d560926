// What a token looks like: white space and special tokens made visible.

const SHOWN = new Map([
  [" ", "\u00b7"], ["\t", "\u21e5\t"], ["\n", "\u23ce\n"], ["\r", "\u240d"], ["\u00a0", "\u237d"],
]);
// Characters that have no shape of their own, or change the direction of the text beside them.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const SPECIAL = /^(<\|[^\s|]{1,60}\|>|<\/?[a-z_]{1,30}>|\[\/?[A-Z_]{2,20}\]|<\uff5c[^\uff5c]{1,60}\uff5c>)$/;

// The text of a token as it is shown; `whole` leaves white space as it is.
export function visible(text, whole = false) {
  if (text === null || text === undefined) return "\u2205";
  if (text === "") return "\u03b5";
  const named = text.replace(HIDDEN, (c) => `\u27e8U+${codeOf(c)}\u27e9`);
  return whole ? named : named.replace(/[ \t\n\r\u00a0]/g, (c) => SHOWN.get(c));
}

// The same in one line, for tables and buttons.
export function inLine(text) {
  return visible(text).replace(/\n/g, "");
}

function codeOf(character) {
  return character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
}

// Whether a token looks like one that a tokenizer adds to the text, such as <|im_end|>.
export function looksSpecial(text) {
  return typeof text === "string" && SPECIAL.test(text);
}

export function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

// A number for people: three digits that count, "-" where there is none.
export function shortNumber(value) {
  if (!known(value)) return "\u2013";
  if (value === 0) return "0";
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1000) return value.toFixed(0);
  if (size >= 0.01) return value.toFixed(size >= 100 ? 1 : 3);
  return value.toExponential(1);
}

// A probability for people, of a log-probability.
export function shortProbability(logProb) {
  if (!known(logProb)) return "\u2013";
  const percent = Math.exp(logProb) * 100;
  if (percent >= 10) return `${percent.toFixed(1)}%`;
  if (percent >= 0.01) return `${percent.toFixed(2)}%`;
  return `${percent.toExponential(1)}%`;
}

// As teacher_proto.program.mask_reasons has them.
const REASONS = {
  NOT_CANONICAL: "the student's tokenizer writes this text with other tokens",
  UNREADABLE: "the teacher reads text of the chunk byte by byte",
  NO_COUNTERPART: "the chunk has a special token that the teacher does not have",
  LONG_CHUNK: "the tokenizers meet only after too many tokens",
  MERGED_SPACES: "inside spaces that the teacher's tokenizer merges (older servers)",
  LITTLE_AGREES: "inside a teacher token, and hardly any of its row agrees",
  NOTHING_CERTIFIED: "no id of the student's is certified",
  LARGE_REST: "the certified ids hold less than a tenth of the row",
  ONE_CERTIFIED: "a single id is certified, and does not hold the row",
  DOUBTFUL: "an id that is not certified could be the most likely one",
};

export function reasonText(reason) {
  return REASONS[reason] ?? reason;
}

// A student's tokens and the teacher's own over the same text, chunk by chunk.
import { make } from "./dom.js";
import { joined, locate } from "./places.js";
import { inLine, known, reasonText, shortNumber } from "./text.js";

const CLASSES = {
  EXACT: "both tokenizers are the same",
  REMAP: "the same token under another id",
  ALIGNED: "both tokenizers have a boundary before it",
  MID: "begins inside a token of the teacher",
  SPECIAL: "a special token by its role",
  COARSE: "only some of its ids are certain, the rest is lumped together",
  MASKED: "tells nothing and adds no loss",
};

// The view of a sequence that has `other`; `onPick(at)` of a student's token.
export function segmentView(sequence, onPick) {
  const { tokens, other } = sequence;
  const text = sequence.text ?? joined(tokens);
  const places = locate(tokens, text);
  const theirs = locate(other.tokens, text);
  let next = 0;
  const chunks = chunksOf(tokens).map(([begin, end]) => {
    const stop = places[end - 1]?.[1] ?? Infinity;
    const own = [];
    while (next < other.tokens.length && (theirs[next]?.[0] ?? Infinity) < stop) {
      own.push(other.tokens[next]);
      next += 1;
    }
    return chunkBox(sequence, begin, end, own, onPick);
  });
  const left = other.tokens.slice(next);
  return make("div", {},
    make("p", { class: "soft" },
      `Above: ${tokens.length} tokens of the student. Below: ${other.tokens.length} tokens of `
      + `${other.name}. A box is a chunk, the text between two places where both have a boundary.`),
    counts(tokens),
    make("div", { class: "chunks" }, chunks),
    left.length
      ? make("p", { class: "note" },
        `${left.length} tokens of the teacher could not be placed: `
        + left.slice(0, 20).map((token) => inLine(token.text)).join(" "))
      : null);
}

// [begin, end) of the runs of tokens with the same chunk.
function chunksOf(tokens) {
  const found = [];
  tokens.forEach((token, at) => {
    const before = at && tokens[at - 1].chunk === token.chunk && known(token.chunk) && token.chunk >= 0;
    if (before) found.at(-1)[1] = at + 1;
    else found.push([at, at + 1]);
  });
  return found;
}

function chunkBox(sequence, begin, end, theirs, onPick) {
  const own = sequence.tokens.slice(begin, end).map((token, at) => make("button", {
    type: "button", class: `tok seg c-${(token.class ?? "none").toLowerCase()}`,
    title: [token.class, token.reason && reasonText(token.reason)].filter(Boolean).join(": "),
    click: () => onPick(begin + at),
  }, inLine(token.text), token.class ? make("small", {}, token.class.toLowerCase()) : null));
  const likelihood = sequence.chunks?.[sequence.tokens[begin].chunk];
  return make("div", { class: "chunk" },
    make("div", { class: "ours" }, own),
    make("div", { class: "theirs" }, theirs.map((token) => make("span", { class: "tok" },
      inLine(token.text)))),
    known(likelihood) ? make("small", { class: "soft" }, `${shortNumber(likelihood)} nats`) : null);
}

function counts(tokens) {
  const byClass = new Map(), byReason = new Map();
  for (const token of tokens) {
    if (token.class) byClass.set(token.class, (byClass.get(token.class) ?? 0) + 1);
    if (token.reason) {
      const key = `${token.class}: ${reasonText(token.reason)}`;
      byReason.set(key, (byReason.get(key) ?? 0) + 1);
    }
  }
  const line = (name, count, about) => make("li", {},
    make("strong", {}, `${count} `), make("span", { class: `seg c-${name.toLowerCase()}` }, name.toLowerCase()),
    about ? ` \u2013 ${about}` : null);
  return make("div", { class: "columns" },
    make("ul", { class: "plain" }, [...byClass].map(([name, count]) => line(name, count, CLASSES[name]))),
    byReason.size
      ? make("div", {}, make("h3", { class: "small" }, "Why positions are masked or coarse"),
        make("ul", { class: "plain" }, [...byReason].sort((a, b) => b[1] - a[1]).map(([text, count]) =>
          make("li", {}, make("strong", {}, `${count} `), text))))
      : null);
}

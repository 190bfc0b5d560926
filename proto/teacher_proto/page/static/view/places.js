// Where the tokens of two sequences meet.

// [begin, end) of each token in `text`, in UTF-16 units; null from where a token is not found.
// Pieces of characters (U+FFFD) share the place up to the next token that is whole.
export function locate(tokens, text) {
  const found = new Array(tokens.length).fill(null);
  let at = 0, from = 0;
  for (let index = 0; index < tokens.length; index += 1) {
    const piece = tokens[index].text;
    if (piece === null || piece === undefined || piece.includes("\ufffd")) continue;
    const begin = beginOf(piece, text, at, index > from);
    if (begin < 0) return found;
    for (let half = from; half < index; half += 1) found[half] = [at, begin];
    const blank = index === from ? at : begin;
    found[index] = [blank, begin + piece.length];
    at = begin + piece.length;
    from = index + 1;
  }
  for (let half = from; half < tokens.length; half += 1) found[half] = [at, text.length];
  return found;
}

// Some tokenizers spell a token without the space before it.
function beginOf(piece, text, at, afterHalves) {
  if (text.startsWith(piece, at)) return at;
  if (afterHalves) return text.indexOf(piece, at);
  const blank = /^\s*/.exec(text.slice(at, at + 64))[0].length;
  return text.startsWith(piece, at + blank) ? at + blank : -1;
}

// The text that the tokens spell, as far as they do.
export function joined(tokens) {
  return tokens.map((token) => token.text ?? "").join("");
}

// For each token of `left` the position in `right` of the one for the same stretch of the same
// text; -1 where there is none. `same`: both have the same ids.
export function partners(left, right) {
  const same = left.length === right.length
    && left.every((token, at) => token.id === right[at].id && token.text === right[at].text);
  if (same) return { same, positions: left.map((_, at) => at) };
  const text = joined(left);
  const places = new Map();
  locate(right, text).forEach((place, at) => { if (place) places.set(place.join(), at); });
  return {
    same,
    positions: locate(left, text).map((place) => (place ? places.get(place.join()) ?? -1 : -1)),
  };
}

// Where two texts begin and end to differ: [length of the common beginning, of the common end].
export function commonEnds(left, right) {
  const least = Math.min(left.length, right.length);
  let begin = 0;
  while (begin < least && left[begin] === right[begin]) begin += 1;
  let end = 0;
  while (end < least - begin && left[left.length - 1 - end] === right[right.length - 1 - end]) end += 1;
  return [begin, end];
}

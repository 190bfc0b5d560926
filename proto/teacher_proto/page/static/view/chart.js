// A value of every token by its position: the range of each column, and its mean as a line.
import { make, makeSvg } from "./dom.js";
import { known, shortNumber } from "./text.js";

const WIDTH = 900;
const HEIGHT = 110;

// `values`: one for each token, null where there is none; `onPick(at)`: a position is clicked.
export function positionChart(values, label, onPick) {
  const some = values.filter(known);
  if (some.length < 2) return null;
  const low = Math.min(0, ...extremes(some)), high = Math.max(0, ...extremes(some));
  const span = high - low || 1;
  const y = (value) => 4 + (1 - (value - low) / span) * (HEIGHT - 8);
  const columns = Math.min(values.length, 450);
  const width = WIDTH / columns;
  const ranges = [], line = [];
  for (let column = 0; column < columns; column += 1) {
    const part = values.slice(
      Math.floor((column * values.length) / columns),
      Math.floor(((column + 1) * values.length) / columns)).filter(known);
    if (!part.length) continue;
    const x = (column + 0.5) * width;
    const mean = part.reduce((a, b) => a + b, 0) / part.length;
    const top = y(Math.max(...part, 0)), bottom = y(Math.min(...part, 0));
    ranges.push(`M${x.toFixed(1)} ${top.toFixed(1)}V${Math.max(bottom, top + 0.5).toFixed(1)}`);
    line.push(`${line.length ? "L" : "M"}${x.toFixed(1)} ${y(mean).toFixed(1)}`);
  }
  const mean = some.reduce((a, b) => a + b, 0) / some.length;
  const said = `${label} by position: mean ${shortNumber(mean)}, `
    + `from ${shortNumber(Math.min(...extremes(some)))} to ${shortNumber(Math.max(...extremes(some)))}`;
  const cursor = makeSvg("path", { class: "cursor", d: "" });
  const drawing = makeSvg("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
    role: "img", "aria-label": said,
    click: (event) => {
      const box = drawing.getBoundingClientRect();
      onPick(Math.min(values.length - 1,
        Math.floor(((event.clientX - box.left) / box.width) * values.length)));
    },
  },
  makeSvg("path", { class: "zero", d: `M0 ${y(0)}H${WIDTH}` }),
  makeSvg("path", { class: "ranges", d: ranges.join(""), "stroke-width": Math.max(1, width * 0.7) }),
  values.length > 120 ? makeSvg("path", { class: "line", d: line.join("") }) : null,
  cursor);
  const element = make("figure", { class: "position" }, drawing,
    make("figcaption", {}, make("span", {}, "first token"), make("span", {}, said),
      make("span", {}, "last token")));
  return {
    element,
    mark: (at) => cursor.setAttribute("d", `M${((at + 0.5) / values.length) * WIDTH} 0V${HEIGHT}`),
  };
}

// The least and the largest value, without an argument for each.
function extremes(values) {
  let low = values[0], high = values[0];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

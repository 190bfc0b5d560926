// The tokens of a sequence as running text, each with its colour; one of them is chosen.
import { make, unique } from "./dom.js";
import { inLine, looksSpecial, visible } from "./text.js";

// Keys that move the choice, by how many tokens.
const STRIDES = {
  ArrowRight: 1, ArrowDown: 20, PageDown: 200, ArrowLeft: -1, ArrowUp: -20, PageUp: -200,
};

// `onShow(at)`: a token is looked at (hover, keys, tap).
export function tokenStrip(tokens, label, onShow) {
  const prefix = unique("token");
  const list = make("div", {
    class: "strip", role: "listbox", tabindex: "0", "aria-label": label,
  });
  const spans = tokens.map((token, at) => make("span", {
    id: `${prefix}-${at}`, role: "option", "aria-selected": "false",
  }, visible(token.text)));
  list.append(...spans);
  // White space alone is no name of an option.
  tokens.forEach((token, at) => {
    if (token.text?.trim() === "") spans[at].setAttribute("aria-label", `white space ${inLine(token.text)}`);
  });
  const base = tokens.map((token) => {
    const marks = ["tok"];
    if (looksSpecial(token.text)) marks.push("special");
    if (token.scored === false) marks.push("given");
    if (token.class === "MASKED") marks.push("masked");
    if (token.class === "COARSE") marks.push("coarse");
    return marks.join(" ");
  });
  let chosen = -1;
  let pinned = -1;

  function show(at) {
    if (at === chosen || at < 0 || at >= spans.length) return;
    if (chosen >= 0) {
      spans[chosen].classList.remove("chosen");
      spans[chosen].setAttribute("aria-selected", "false");
    }
    chosen = at;
    spans[at].classList.add("chosen");
    spans[at].setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", spans[at].id);
    onShow(at);
  }

  // Shows a token without moving the page.
  function begin(at) {
    pinned = at;
    show(at);
  }

  function pin(at) {
    pinned = Math.max(0, Math.min(spans.length - 1, at));
    show(pinned);
    spans[pinned].scrollIntoView({ block: "nearest" });
  }

  const at = (event) => spans.indexOf(event.target.closest?.("[role=option]"));
  list.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse") show(at(event));
  });
  // When the mouse leaves, the token that was clicked is shown again.
  list.addEventListener("pointerleave", () => { if (pinned >= 0) show(pinned); });
  list.addEventListener("click", (event) => { if (at(event) >= 0) pin(at(event)); });
  list.addEventListener("focus", () => { if (chosen < 0) pin(0); });
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in STRIDES) pin(chosen + STRIDES[event.key]);
    else if (event.key === "Home") pin(0);
    else if (event.key === "End") pin(spans.length - 1);
    else return;
    event.preventDefault();
  });

  // `steps`: a class of colour for each token; `whole`: white space as it is.
  function paint(steps) {
    spans.forEach((span, index) => {
      span.className = `${base[index]} ${steps[index]}${index === chosen ? " chosen" : ""}`;
    });
  }

  function write(whole) {
    spans.forEach((span, index) => { span.textContent = visible(tokens[index].text, whole); });
  }

  return { element: list, begin, pin, paint, write };
}

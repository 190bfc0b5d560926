// Elements, made without markup: whatever a token holds becomes text, never HTML.

// A new element. `attributes`: "class" and others as strings; functions become listeners
// ("click"); true stands for an attribute without a value, false and null for none.
export function make(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

// The same in SVG's namespace.
export function makeSvg(name, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(key, String(value));
    }
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}

// A number that nothing else on the page has, for ids of elements.
let lastNumber = 0;
export function unique(prefix) {
  lastNumber += 1;
  return `${prefix}-${lastNumber}`;
}

// A select with its label; `options` are [value, text].
export function choice(label, options, chosen, onChange) {
  const list = options.map(([value, text]) =>
    make("option", { value, selected: String(value) === String(chosen) }, text));
  const select = make("select", { change: () => onChange(select.value) }, list);
  return make("label", { class: "choice" }, make("span", {}, label), select);
}

export function tick(label, checked, onChange) {
  const box = make("input", { type: "checkbox", checked, change: () => onChange(box.checked) });
  return make("label", { class: "tick" }, box, make("span", {}, label));
}

// A button that copies what `text` returns, and says so.
export function copyButton(label, text) {
  const button = make("button", { type: "button", click: copyIt }, label);
  async function copyIt() {
    const said = (await copied(text())) ? "Copied" : "Select the text below and copy it";
    button.textContent = said;
    setTimeout(() => { button.textContent = label; }, 1600);
  }
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Not every page may use the clipboard: one from a file or in a frame asks the old way.
    const area = make("textarea", { class: "offscreen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

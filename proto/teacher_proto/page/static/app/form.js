// The form: its fields as a question and back, and what it offers.
import { make } from "../view/dom.js";
import { EMPTY, HINTS } from "./query.js";

const form = document.getElementById("ask");

// The question that stands in the form.
export function readForm() {
  const query = { ...EMPTY };
  for (const [key, empty] of Object.entries(EMPTY)) {
    const field = form.elements[key];
    if (typeof empty === "boolean") query[key] = field.checked;
    else query[key] = typeof empty === "number" && field.value !== "" ? Number(field.value) : field.value;
  }
  return query;
}

export function writeForm(query) {
  for (const [key, value] of Object.entries(query)) {
    const field = form.elements[key];
    if (typeof EMPTY[key] === "boolean") field.checked = value;
    else if (field instanceof HTMLSelectElement) choose(field, value);
    else field.value = value;
  }
  for (const area of form.querySelectorAll("details textarea")) {
    area.closest("details").open = area.value !== "";
  }
  showFields();
}

// A choice that is not offered (a link of another server) stays visible.
function choose(select, value) {
  if (![...select.options].some((option) => option.value === value)) {
    select.append(make("option", { value }, value.length > 24 ? `${value.slice(0, 16)}\u2026` : value));
  }
  select.value = value;
}

// Shows the fields of the kind and the comparison that are chosen.
export function showFields() {
  const kind = form.elements.kind.value, compare = form.elements.compare.value;
  for (const part of form.querySelectorAll("[data-kinds], [data-compare]")) {
    const { kinds, compare: wanted } = part.dataset;
    part.hidden = (kinds !== undefined && !kinds.split(" ").includes(kind))
      || (wanted !== undefined && wanted !== compare);
  }
}

// Offers the teachers of GET /v1/teacher and the tokenizers of GET /v1/tokenizers.
export function offer(info, tokenizers) {
  const { teacher, other_teacher: other, tokenizer } = form.elements;
  const names = info.teachers.map((one) => make("option", { value: one.name },
    one.model ? `${one.name} (${one.model})` : one.name));
  refill(teacher, names);
  refill(other, names.map((option) => option.cloneNode(true)));
  refill(tokenizer, [
    make("option", { value: "" }, "the teacher's own"),
    ...tokenizers.map((one) => make("option", { value: one.tokenizer_hash },
      `${one.run}: ${one.tokenizer_hash.slice(0, 14)}\u2026, ${one.vocabulary_size} tokens`)),
  ]);
}

function refill(select, options) {
  const chosen = select.value;
  select.replaceChildren(...options);
  if (chosen) choose(select, chosen);
}

for (const [name, hint] of Object.entries(HINTS)) form.elements[name].placeholder = hint;
form.addEventListener("change", showFields);
showFields();

// Prometheus' text format, as far as the live panel reads it.

// [{name, labels, value}] of the samples.
export function samplesOf(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const parts = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, key, value] of (parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    found.push({ name: parts[1], labels, value: Number(parts[3]) });
  }
  return found;
}

// label's value -> sum of a metric over the labels left open.
export function byLabel(samples, name, label) {
  const found = new Map();
  for (const sample of samples) {
    if (sample.name !== name) continue;
    const key = sample.labels[label] ?? "";
    found.set(key, (found.get(key) ?? 0) + sample.value);
  }
  return found;
}

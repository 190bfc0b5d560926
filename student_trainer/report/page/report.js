"use strict";
// Says the values of a chart's curves at the place that is pointed at, or chosen with the arrows.
for (const panel of document.querySelectorAll(".panel")) {
  const svg = panel.querySelector("svg");
  const data = JSON.parse(panel.querySelector("script").textContent);
  const [left, right, top, bottom, width] = data.box;
  const [first, last] = data.x;
  const places = [...new Set(data.curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  const rule = document.createElementNS("http://www.w3.org/2000/svg", "path");
  rule.setAttribute("class", "rule");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  svg.append(rule);
  panel.append(tip);
  let chosen = -1;

  const told = (value) =>
    value === null || value === undefined
      ? "none"
      : data.share
        ? `${(value * 100).toFixed(1)}%`
        : String(Number(value.toPrecision(4)));

  function show(index) {
    chosen = Math.max(0, Math.min(places.length - 1, index));
    const place = places[chosen];
    const across = left + ((place - first) / (last - first)) * (right - left);
    rule.setAttribute("d", `M${across} ${top}V${bottom}`);
    const lines = [`${data.unit} ${data.names[String(place)] ?? data.names[place.toFixed(1)] ?? place}`];
    for (const curve of data.curves) {
      const at = curve.x.indexOf(place);
      if (at >= 0) lines.push(`${curve.label}: ${told(curve.y[at])}`);
    }
    tip.replaceChildren(
      ...lines.map((text) => {
        const line = document.createElement("div");
        line.textContent = text;
        return line;
      }),
    );
    tip.hidden = false;
    const share = across / width;
    tip.style.left = share > 0.55 ? "auto" : `calc(${share * 100}% + 10px)`;
    tip.style.right = share > 0.55 ? `calc(${(1 - share) * 100}% + 10px)` : "auto";
  }

  function hide() {
    tip.hidden = true;
    rule.removeAttribute("d");
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const across = ((event.clientX - box.left) / box.width) * width;
    const value = first + ((across - left) / (right - left)) * (last - first);
    let nearest = 0;
    places.forEach((place, index) => {
      if (Math.abs(place - value) < Math.abs(places[nearest] - value)) nearest = index;
    });
    show(nearest);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    if (event.key === "Escape") hide();
    if (!(event.key in moves) && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    if (event.key === "Home") show(0);
    else if (event.key === "End") show(places.length - 1);
    else show(chosen < 0 ? 0 : chosen + moves[event.key]);
  });
}

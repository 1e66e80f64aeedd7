"use strict";
const list = document.getElementById("images");
const items = Array.from(list.children);
const form = document.getElementById("filters");
const count = document.getElementById("count");
const orders = {
  listed: (a, b) => a.dataset.index - b.dataset.index,
  uncertain: (a, b) => a.dataset.confidence - b.dataset.confidence,
  certain: (a, b) => b.dataset.confidence - a.dataset.confidence,
};
function show() {
  const { label, status, least, most, order } = form.elements;
  let shown = 0;
  for (const item of items) {
    const { label: best, status: state, confidence } = item.dataset;
    const percent = 100 * confidence;
    const ok = state === "ok";
    item.hidden =
      (label.value !== "" && best !== label.value) ||
      (status.value !== "" && state !== status.value) ||
      (ok && (percent < least.value || percent > most.value));
    shown += !item.hidden;
  }
  items.sort((a, b) => orders[order.value](a, b) || orders.listed(a, b));
  list.append(...items);
  count.textContent = `${shown} of ${items.length} shown`;
}
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
list.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const visible = items.filter((item) => !item.hidden);
  const next = visible[visible.indexOf(event.target) + step];
  if (step && next) {
    event.preventDefault();
    next.focus();
  }
});
show();

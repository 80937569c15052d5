"use strict";
// Sorts and filters the rows of the gallery. The page is whole without it.
(() => {
  const list = document.getElementById("victims"), bar = document.getElementById("filter");
  if (!list || !bar) return;
  const AT_ONCE = 48;
  const rows = [...list.children], more = document.getElementById("more"), status = bar.querySelector("[role=status]");
  const fields = [...bar.querySelectorAll("select, input")];
  const wanted = () => Object.fromEntries(fields.map((field) => [field.name, field.value]));
  const number = (text) => (text === "" ? null : Number(text));
  let room = AT_ONCE;

  // Shows the tiles of one attack, or of all, and gives the SSIM that the row then stands for.
  const choose = (row, attack) => {
    let found = attack === "", ssim = number(row.dataset.ssim);
    for (const tile of row.querySelectorAll("[data-attack]")) {
      const own = attack === "" || tile.dataset.attack === attack;
      tile.hidden = !own;
      if (own && attack !== "") [found, ssim] = [true, number(tile.dataset.ssim)];
    }
    const details = row.querySelector("details");
    if (details) {
      details.hidden = attack !== "" && !details.querySelector("figure:not([hidden])");
      details.open = attack !== "" && !details.hidden;
    }
    return [found, ssim];
  };
  const fits = (row, ssim, want) =>
    ["federation", "node", "round"].every((name) => want[name] === "" || row.dataset[name] === want[name]) &&
    (want.from === "" || (ssim !== null && ssim >= Number(want.from))) &&
    (want.to === "" || (ssim !== null && ssim <= Number(want.to)));
  const low = (value) => (value === null ? -Infinity : value), high = (value) => (value === null ? Infinity : value);
  const orders = {
    "ssim-down": (a, b) => low(b.ssim) - low(a.ssim) || 0,
    "ssim-up": (a, b) => high(a.ssim) - high(b.ssim) || 0,
    round: (a, b) => a.row.dataset.round - b.row.dataset.round,
    node: (a, b) => a.row.dataset.node.localeCompare(b.row.dataset.node),
  };

  const update = () => {
    const want = wanted();
    const all = rows.map((row) => {
      const [found, ssim] = choose(row, want.attack);
      return { row, ssim, shown: found && fits(row, ssim, want) };
    });
    if (want.sort) all.sort(orders[want.sort]);
    let shown = 0;
    for (const { row, shown: own } of all) {
      row.hidden = !own;
      if (own) shown += 1;
      row.classList.toggle("later", own && shown > room);
    }
    list.append(...all.map(({ row }) => row));
    more.hidden = shown <= room;
    status.textContent = `${Math.min(shown, room)} of ${shown} matching images shown; ${rows.length} in all.`;
  };
  bar.addEventListener("input", () => { room = AT_ONCE; update(); });
  bar.querySelector("button").addEventListener("click", () => {
    for (const field of fields) field.value = "";
    room = AT_ONCE;
    update();
  });
  more.addEventListener("click", () => {
    const next = [...list.children].find((row) => row.classList.contains("later"));
    room += AT_ONCE;
    update();
    if (next) { next.tabIndex = -1; next.focus({ preventScroll: true }); }
  });
  bar.hidden = false;
  update();
})();

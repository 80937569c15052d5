"use strict";
// Asks for the state once a second and draws it. Whatever comes from a tape is set as text, never as markup.
(() => {
  const token = new URLSearchParams(location.search).get("token");
  const at = (id) => document.getElementById(id);
  const make = (name, text, className) => {
    const one = document.createElement(name);
    if (text) one.textContent = text;
    if (className) one.className = className;
    return one;
  };
  const short = (node) => (node.length <= 14 ? node : `${node.slice(0, 5)}…${node.slice(-4)}`);
  const set = (id, text) => { if (at(id).textContent !== text) at(id).textContent = text; };
  let seen = -1, drawnResults = "";

  const drawn = (name, attributes, text) => {
    const one = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
    if (text) one.textContent = text;
    return one;
  };
  const median = (values) => {
    const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };
  const chart = (points, threshold) => {
    const place = at("chart");
    if (!points.length) return place.replaceChildren();
    const rounds = [...new Set(points.map((one) => one.round))].sort((a, b) => a - b);
    const first = rounds[0], span = Math.max(rounds[rounds.length - 1] - first, 1);
    const x = (round) => 40 + (386 * (round - first)) / span, y = (ssim) => 12 + 170 * (1 - Math.max(ssim, 0));
    const parts = [];
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      parts.push(drawn("line", { class: "grid", x1: 40, x2: 426, y1: y(share), y2: y(share) }));
      parts.push(drawn("text", { x: 34, y: y(share) + 4, "text-anchor": "end" }, share.toFixed(2)));
    }
    parts.push(drawn("line", { class: "threshold", x1: 40, x2: 426, y1: y(threshold), y2: y(threshold) }));
    const step = Math.ceil(rounds.length / 8);
    rounds.filter((_, i) => i % step === 0).forEach((round) =>
      parts.push(drawn("text", { x: x(round), y: 200, "text-anchor": "middle" }, String(round))));
    for (const one of points) parts.push(drawn("circle", { cx: x(one.round), cy: y(one.ssim), r: 3 }));
    const medians = rounds.map((round) => [round, median(points.filter((p) => p.round === round).map((p) => p.ssim))]);
    parts.push(drawn("polyline", { points: medians.map(([round, value]) => `${x(round)},${y(value)}`).join(" ") }));
    place.replaceChildren(...parts);
    const [round, value] = medians[medians.length - 1];
    place.setAttribute("aria-label", `SSIM of ${points.length} attacked updates; median of round ${round}: ${value.toFixed(2)}`);
  };

  const figure = (uri, title, alt, back) => {
    const one = make("figure"), image = make("img", "", back ? "back" : "");
    image.src = uri;
    image.alt = alt;
    one.append(image, make("figcaption", title));
    return one;
  };
  const entry = (one) => {
    const item = make("li", "", "card"), tiles = make("div", "", "tiles");
    const where = `round ${one.round}, client ${short(one.node)}`, back = one.back > 0;
    item.dataset.id = one.id;
    item.append(make("p", `Round ${one.round}, client ${short(one.node)}`));
    if (one.image) tiles.append(figure(one.image, one.attack.split(":")[0], `Reconstruction: ${where}`, back));
    if (one.truth) tiles.append(figure(one.truth, "true image", `True image: ${where}`, false));
    item.append(tiles);
    const share = one.of > 1 ? `${one.back} of ${one.of} ` : "", beside = one.guess === null ? "" : `, a guess ${one.guess.toFixed(2)}`;
    if (one.ssim !== null) item.append(make("p", `SSIM ${one.ssim.toFixed(2)}${beside}${back ? `, ${share}came back` : ""}`, back ? "mark back" : ""));
    if (one.reason) item.append(make("p", one.reason, "soft"));
    return item;
  };

  const show = (state) => {
    const tape = state.seen;
    const headline = !state.federation ? "Waiting for the tape"
      : !tape || !tape.updates ? "No update has arrived yet"
        : `Round ${tape.rounds}: ${tape.updates} updates received, ${tape.left} not attacked yet`;
    set("headline", state.alive ? headline : "The process that attacks has ended; start the watch again");
    set("facts", state.federation ? `Model ${state.federation.model}, defence ${state.federation.defence}` : state.waiting);
    set("flight", state.attack
      ? `${state.attack.attack} on round ${state.attack.round}, client ${short(state.attack.node)}` : "None");
    at("share").hidden = !state.attack;
    at("share").value = state.attack ? state.attack.done : 0;
    const note = state.federation ? state.federation.truth : "";
    set("truth", note ? `Similarity is not known. ${note}` : "Dashed: from here on an image counts as come back, where no guess without the update comes as close.");
    at("none").hidden = state.results.length > 0;
    // Progress changes often, pictures do not.
    const results = state.results.map((one) => `${one.id} ${one.ssim}`).join();
    if (results !== drawnResults) {
      drawnResults = results;
      chart(state.points, state.threshold);
      at("newest").replaceChildren(...state.results.map(entry));
    }
    at("problems-part").hidden = !state.problems.length;
    at("problems").replaceChildren(...state.problems.map((text) => make("li", text)));
  };

  const ask = async () => {
    try {
      const answer = await fetch(`/state?seen=${seen}`, { headers: { "X-Watch-Token": token } });
      if (answer.status === 200) {
        const state = await answer.json();
        seen = state.version;
        show(state);
      } else if (answer.status !== 204) set("headline", "This page needs the address that fl-precode watch printed");
    } catch {
      set("headline", "The watch has ended");
    }
    setTimeout(ask, 1000);
  };
  ask();
})();

"use strict";
(() => {
  const body = document.body;
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));

  // Layers: one state for the gallery and the viewer.
  const toggleLayer = (name) => {
    const off = body.classList.toggle("no-" + name);
    for (const button of all(`[data-layer="${name}"]`)) button.setAttribute("aria-pressed", String(!off));
  };
  byId("layers").hidden = false;
  for (const button of all("[data-layer]")) button.addEventListener("click", () => toggleLayer(button.dataset.layer));

  // Viewer: a copy of a case's picture whose viewBox is what moves.
  const viewer = byId("viewer"), stage = byId("stage");
  const cases = all(".case").filter((entry) => entry.querySelector(".view"));
  const LARGEST = 40;
  let current = 0, picture = null, whole = null, view = null;

  const show = () => {
    picture.setAttribute("viewBox", [view.x, view.y, view.width, view.height].map((value) => value.toFixed(2)).join(" "));
    const screenPixels = stage.clientWidth / (view.width / 2);
    stage.classList.toggle("pixels", screenPixels > 6);
  };
  const clamp = () => {
    view.width = Math.min(view.width, whole.width);
    view.height = Math.min(view.height, whole.height);
    view.x = Math.min(Math.max(view.x, whole.x), whole.x + whole.width - view.width);
    view.y = Math.min(Math.max(view.y, whole.y), whole.y + whole.height - view.height);
  };
  const unitsPerPixel = () => Math.max(view.width / stage.clientWidth, view.height / stage.clientHeight);
  const place = (clientX, clientY) => {
    const point = new DOMPoint(clientX, clientY).matrixTransform(picture.getScreenCTM().inverse());
    return [point.x, point.y];
  };
  const zoom = (factor, clientX, clientY) => {
    const box = stage.getBoundingClientRect();
    const [x, y] = place(clientX ?? box.left + box.width / 2, clientY ?? box.top + box.height / 2);
    const size = Math.min(Math.max(view.width / factor, whole.width / LARGEST), whole.width) / view.width;
    view = { x: x - (x - view.x) * size, y: y - (y - view.y) * size, width: view.width * size, height: view.height * size };
    clamp();
    show();
  };
  const move = (across, down) => {
    view.x += across;
    view.y += down;
    clamp();
    show();
  };
  const fit = () => {
    view = { ...whole };
    show();
  };
  const turnTo = (index) => {
    current = (index + cases.length) % cases.length;
    const entry = cases[current];
    picture = entry.querySelector(".view").cloneNode(true);
    // The copies of the paths need no names of their own: <use> finds the first.
    for (const path of all("defs", picture)) path.remove();
    stage.replaceChildren(picture);
    const box = picture.viewBox.baseVal;
    whole = { x: box.x, y: box.y, width: box.width, height: box.height };
    byId("viewer-rank").textContent = `${entry.dataset.rank} · ${current + 1} of ${cases.length}`;
    byId("viewer-title").textContent = entry.querySelector(".id").textContent;
    byId("viewer-told").replaceChildren(entry.querySelector(".told").cloneNode(true));
    fit();
  };

  cases.forEach((entry, index) => {
    const button = entry.querySelector(".open");
    button.hidden = false;
    button.addEventListener("click", () => {
      viewer.showModal();
      turnTo(index);
      stage.focus();
    });
  });
  viewer.addEventListener("close", () => {
    body.classList.remove("tissue-alone");
    stage.replaceChildren();
    cases[current].querySelector(".open").focus();
  });
  byId("viewer-close").addEventListener("click", () => viewer.close());
  byId("closer").addEventListener("click", () => zoom(1.5));
  byId("farther").addEventListener("click", () => zoom(1 / 1.5));
  byId("fit").addEventListener("click", fit);
  byId("before").addEventListener("click", () => turnTo(current - 1));
  byId("after").addEventListener("click", () => turnTo(current + 1));

  const keys = {
    ArrowRight: () => turnTo(current + 1), ArrowLeft: () => turnTo(current - 1),
    ArrowDown: () => turnTo(current + 1), ArrowUp: () => turnTo(current - 1),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
    i: () => toggleLayer("image"), t: () => toggleLayer("truth"), p: () => toggleLayer("prediction"), e: () => toggleLayer("errors"),
    h: () => body.classList.add("tissue-alone"),
  };
  const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.shiftKey && steps[key]) move((steps[key][0] * view.width) / 8, (steps[key][1] * view.height) / 8);
    else if (keys[key]) keys[key]();
    else return;
    event.preventDefault();
  });
  viewer.addEventListener("keyup", (event) => {
    if (event.key.toLowerCase() === "h") body.classList.remove("tissue-alone");
  });
  addEventListener("blur", () => body.classList.remove("tissue-alone"));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), event.clientX, event.clientY);
  }, { passive: false });

  // One finger or the mouse moves, two fingers also zoom.
  const fingers = new Map();
  const spread = () => {
    const [a, b] = fingers.values();
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const apart = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, event);
    const units = unitsPerPixel() / fingers.size;
    move((before.clientX - event.clientX) * units, (before.clientY - event.clientY) * units);
    if (apart) {
      const [a, b] = fingers.values();
      zoom(spread() / apart, (a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2);
    }
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => fingers.delete(event.pointerId));
})();

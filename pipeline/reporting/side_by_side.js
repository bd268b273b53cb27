"use strict";
(() => {
  const body = document.body;
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));

  // Layers of the gallery.
  byId("layers").hidden = false;
  for (const button of all("[data-layer]")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(!body.classList.toggle("no-" + button.dataset.layer)));
    });
  }

  // Viewer: one method after the other in the same place, so that the eye sees what moves.
  const viewer = byId("viewer"), stage = byId("stage"), choices = byId("choices"), asDifference = byId("as-difference");
  const cases = all(".comparison").filter((entry) => entry.querySelector(".tile"));
  let current = 0, method = 0, difference = false, held = false;
  stage.classList.add("blink");
  const tilesOf = (entry) => all(".tile", entry);

  const show = () => {
    const entry = cases[current], tiles = tilesOf(entry);
    method = (method + tiles.length) % tiles.length;
    // The target stands last; where there is none, the input stands first.
    const reference = tiles.findIndex((tile) => !tile.querySelector(".difference"));
    const tile = tiles[held ? Math.max(reference, 0) : method];
    const picture = ((difference && !held && tile.querySelector(".difference")) || tile.querySelector(".made")).cloneNode();
    const width = Number(entry.dataset.width), height = Number(entry.dataset.height);
    const fits = Math.min(stage.clientWidth / width, stage.clientHeight / height);
    // Whole multiples keep every pixel as large as its neighbour.
    const scale = fits >= 1 ? Math.floor(fits) : fits;
    picture.width = Math.round(width * scale);
    picture.height = Math.round(height * scale);
    stage.replaceChildren(picture);
    byId("viewer-rank").textContent = `${entry.dataset.rank} · ${current + 1} of ${cases.length}`;
    byId("viewer-title").textContent = `${entry.querySelector(".id").textContent} · ${tile.dataset.name}`;
    all("button", choices).forEach((button, index) => button.setAttribute("aria-pressed", String(index === method)));
    asDifference.setAttribute("aria-pressed", String(difference));
  };
  const turnTo = (index) => {
    current = (index + cases.length) % cases.length;
    choices.replaceChildren(...tilesOf(cases[current]).map((tile, index) => {
      const button = document.createElement("button"), key = document.createElement("kbd");
      button.type = "button";
      key.textContent = String(index + 1);
      button.append(tile.dataset.name, " ", key);
      button.addEventListener("click", () => turnMethod(index));
      return button;
    }));
    show();
  };
  const turnMethod = (index) => {
    method = index;
    show();
  };
  const turnDifference = () => {
    difference = !difference;
    show();
  };

  cases.forEach((entry, index) => {
    tilesOf(entry).forEach((tile, number) => {
      tile.querySelector(".open").addEventListener("click", () => {
        viewer.showModal();
        method = number;
        turnTo(index);
        stage.focus();
      });
    });
  });
  viewer.addEventListener("close", () => {
    held = false;
    stage.replaceChildren();
    tilesOf(cases[current])[method].querySelector(".open").focus();
  });
  addEventListener("resize", () => viewer.open && show());
  byId("viewer-close").addEventListener("click", () => viewer.close());
  asDifference.addEventListener("click", turnDifference);
  byId("before").addEventListener("click", () => turnTo(current - 1));
  byId("after").addEventListener("click", () => turnTo(current + 1));

  const keys = {
    ArrowRight: () => turnMethod(method + 1), ArrowLeft: () => turnMethod(method - 1),
    ArrowDown: () => turnTo(current + 1), ArrowUp: () => turnTo(current - 1), d: turnDifference,
  };
  const hold = (down) => {
    if (held === down || !viewer.open) return;
    held = down;
    show();
  };
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (keys[key]) keys[key]();
    else if (key === "h") hold(true);
    else if (/^[1-9]$/.test(key) && Number(key) <= choices.children.length) turnMethod(Number(key) - 1);
    else return;
    event.preventDefault();
  });
  viewer.addEventListener("keyup", (event) => {
    if (event.key.toLowerCase() === "h") hold(false);
  });
  addEventListener("blur", () => hold(false));
})();

"use strict";
// A slide to look at: its overview, pieces of tissue as sharp as they were predicted, outlines of objects over both.
const canvas = document.getElementById("slide"), pen = canvas.getContext("2d"), outlined = document.getElementById("outlined");
const overview = new Image(), pieces = new Map();
let scale = 1, left = 0, top_ = 0, drawn = false; // scale: pixels of the screen for one of the slide

function ask() { if (!drawn) { drawn = true; requestAnimationFrame(draw); } }
function whole() {
  scale = Math.min(canvas.clientWidth / SLIDE.width, canvas.clientHeight / SLIDE.height) * 0.95;
  left = (SLIDE.width - canvas.clientWidth / scale) / 2; top_ = (SLIDE.height - canvas.clientHeight / scale) / 2; ask();
}
function zoom(factor, x, y) {
  const wanted = Math.min(16, Math.max(scale * factor, 0.2 * Math.min(canvas.clientWidth / SLIDE.width, canvas.clientHeight / SLIDE.height)));
  left += x / scale - x / wanted; top_ += y / scale - y / wanted; scale = wanted; ask();
}
function piece(block) {
  if (!pieces.has(block.file)) { const image = new Image(); image.onload = ask; image.src = block.file; pieces.set(block.file, image); }
  return pieces.get(block.file);
}
function rings(block) {
  if (!(block.name in SLIDE.rings)) {
    SLIDE.rings[block.name] = [];
    const script = document.createElement("script"); script.src = block.outlines; script.onload = ask; document.head.append(script);
  }
  return SLIDE.rings[block.name];
}
function draw() {
  drawn = false;
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0); pen.fillStyle = "#eef1f4"; pen.fillRect(0, 0, width, height);
  pen.setTransform(ratio * scale, 0, 0, ratio * scale, -left * scale * ratio, -top_ * scale * ratio);
  pen.imageSmoothingEnabled = scale < 4;
  if (overview.complete) pen.drawImage(overview, 0, 0, SLIDE.width, SLIDE.height);
  const seen = SLIDE.blocks.filter((b) => b.left < left + width / scale && b.left + b.width > left && b.top < top_ + height / scale && b.top + b.height > top_);
  const sharp = scale * ratio > 0.9 * overview.naturalWidth / SLIDE.width && seen.length <= 64;
  if (sharp) for (const block of seen) { const image = piece(block); if (image.complete && image.naturalWidth) pen.drawImage(image, block.left, block.top, block.width, block.height); }
  if (outlined.checked) {
    pen.strokeStyle = "#14e0a0"; pen.lineWidth = Math.max(1.2 / scale, 0.6); pen.beginPath();
    // Where a pixel holds several objects, a few points of each say as much.
    const step = scale < 0.15 ? 4 : 1;
    for (const block of seen.length <= 256 ? seen : []) for (const ring of rings(block)) {
      pen.moveTo(ring[0], ring[1]);
      for (let at = 2 * step; at < ring.length; at += 2 * step) pen.lineTo(ring[at], ring[at + 1]);
      pen.closePath();
    }
    pen.stroke();
  }
  if (SLIDE.mpp) {
    const micrometres = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000].find((length) => length / SLIDE.mpp * scale >= 60) || 20000;
    document.getElementById("bar").style.width = (micrometres / SLIDE.mpp * scale) + "px";
    document.getElementById("length").textContent = micrometres < 1000 ? micrometres + " µm" : micrometres / 1000 + " mm";
  }
}
const held = new Map();
canvas.addEventListener("pointerdown", (event) => { held.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); });
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => held.delete(event.pointerId));
canvas.addEventListener("pointermove", (event) => {
  const before = held.get(event.pointerId);
  if (!before) return;
  const other = [...held.values()].find((one) => one.pointerId !== event.pointerId);
  if (other) {
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    zoom(apart(event) / Math.max(1, apart(before)), other.clientX, other.clientY);
  } else { left -= (event.clientX - before.clientX) / scale; top_ -= (event.clientY - before.clientY) / scale; ask(); }
  held.set(event.pointerId, event);
});
canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), event.clientX, event.clientY); }, { passive: false });
canvas.addEventListener("dblclick", (event) => zoom(2, event.clientX, event.clientY));
canvas.addEventListener("keydown", (event) => {
  const middle = [canvas.clientWidth / 2, canvas.clientHeight / 2], far = 120 / scale;
  const keys = { "+": () => zoom(1.5, ...middle), "=": () => zoom(1.5, ...middle), "-": () => zoom(1 / 1.5, ...middle), "0": whole,
    ArrowLeft: () => { left -= far; ask(); }, ArrowRight: () => { left += far; ask(); }, ArrowUp: () => { top_ -= far; ask(); }, ArrowDown: () => { top_ += far; ask(); } };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
outlined.addEventListener("change", ask);
window.addEventListener("resize", ask);
overview.onload = ask; overview.src = SLIDE.overview;
whole();
const place = /^#(\d+),(\d+),([\d.]+)$/.exec(location.hash);
if (place) { scale = +place[3]; left = place[1] - canvas.clientWidth / 2 / scale; top_ = place[2] - canvas.clientHeight / 2 / scale; ask(); }

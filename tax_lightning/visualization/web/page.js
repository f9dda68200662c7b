// What the reader does, and what the page shows then.

const element = (id) => document.getElementById(id);
const on = (id, event, act) => element(id).addEventListener(event, act);
const stage = element("stage");
const everybody = () => new Set(report.annotators.keys());

// What is shown: a picture, a layer, and a spot of it, which follows the pointer unless it is held.
const shown = {
  wanted: 0,
  maps: null,
  seen: null,
  layer: "who",
  spot: null,
  held: false,
  zoom: 1,
  outlines: everybody(),
  panel: everybody(),
};

// ---------------------------------------------------------------------------- pictures

async function showImage(number) {
  const image = report.images[number];
  shown.wanted = number;
  const maps = await readMaps(number);
  if (shown.wanted !== number) return; // another was asked for meanwhile
  const { height, width } = maps;
  Object.assign(shown, { maps, held: false, spot: [height >> 1, width >> 1] });
  if (image.spots.length) shown.spot = inMaps(image.spots[0].at);
  element("image").value = String(number);
  element("previous").disabled = number === 0;
  element("next").disabled = number === report.images.length - 1;
  element("picture").src = element(`picture-${number}`).textContent;
  stage.setAttribute("aria-label", `Picture ${image.id}`);
  stage.style.setProperty("--shape", width / height);
  stage.classList.toggle("coarse", Math.max(width, height) < 600);
  setZoom(1);
  showSpots(image);
  showPanel();
}

function showSpots(image) {
  const buttons = image.spots.map(({ at, annotator, kernel }) => {
    const mark = chip(report.annotators[annotator].shades[kernel]);
    const name = `${nameOf(annotator)}, prototype ${kernel}`;
    const button = made("button", { type: "button" }, mark, name);
    button.addEventListener("click", () => moveSpot(inMaps(at), true));
    return button;
  });
  element("spots").replaceChildren(made("h4", {}, "Look here first"), ...buttons);
  element("spots").hidden = !buttons.length;
}

// ---------------------------------------------------------------------------- layers

// Work out anew who counts, then draw.
function showPanel() {
  const panel = [...shown.panel].sort((a, b) => a - b);
  const seen = (shown.seen = viewOf(shown.maps, panel));
  const changed = seen.result.filter((label, i) => label !== shown.maps.result[0][i]).length;
  element("panel").textContent = seen.everybody
    ? "Everybody counts."
    : `Only ${panel.map(nameOf).join(", ")} count${panel.length === 1 ? "s" : ""}: the result ` +
      `changes on ${perCent(changed / seen.result.length)} of the pixels.`;
  document.body.classList.toggle("partial", !seen.everybody);
  draw();
}

function draw() {
  const { maps, seen, layer } = shown;
  const hatched = element("with-unanimous").checked && TELLS_WHO.has(layer);
  const outlined = element("with-outlines").checked;
  const lines = {
    hatched,
    seams: layer === "why",
    outlines: outlined ? [...shown.outlines].sort((a, b) => a - b) : [],
    result: element("with-result").checked,
  };
  put(element("colours"), coloursOf(layer, maps, seen, hatched));
  put(element("lines"), linesOf(maps, seen, lines));
  // What is coloured by annotator lies on the image in grey, so that its colours are theirs.
  stage.classList.toggle("grey", layer !== "image" && layer !== "result");
  element("colours").style.opacity = layer === "result" ? 1 : 0.75;
  showLegend(hatched);
  readSpot();
}

function put(canvas, pixels) {
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

const HATCHED = " Hatched: all would say the same; who decides means nothing there.";
const LEGEND_NOTES = {
  who: "Colour: the annotator who decides. The fainter, the more others have a say.",
  why: "Colour: the annotator who decides. Shade: which of their prototypes. Black: between two.",
};
const SCALE_ENDS = {
  entropy: ["Sure of the class 0", "1 unsure: all classes alike"],
  certainty: ["Unclear who decides 0", "1 clear: one decides alone"],
};

function showLegend(hatched) {
  const { layer, seen } = shown;
  const entry = ({ colour, name }, text = "") => made("span", {}, chip(colour), name, text);
  const entries = [];
  if (layer === "result") {
    const found = [...new Set(seen.result)].sort((a, b) => a - b);
    entries.push(...found.map((label) => entry(report.classes[label])));
  } else if (layer === "who" || layer === "why") {
    const leading = leaders();
    for (const [annotator, share] of leading.slice(0, report.most_named)) {
      entries.push(entry(report.annotators[annotator], ` ${perCent(share)}`));
    }
    const rest = leading.slice(report.most_named);
    const share = rest.reduce((sum, [, own]) => sum + own, 0);
    if (rest.length) entries.push(made("span", {}, `${rest.length} others ${perCent(share)}`));
  } else if (layer in SCALE_ENDS) {
    const bar = made("span", { className: "scale" });
    const colours = report.scale.filter((_, i) => i % 15 === 0).map(css);
    bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
    const [from, to] = SCALE_ENDS[layer];
    entries.push(made("span", {}, from), bar, made("span", {}, to));
  }
  element("legend").replaceChildren(...entries);
  element("legend-note").textContent = (LEGEND_NOTES[layer] || "") + (hatched ? HATCHED : "");
}

// Annotators who decide some of the picture, with their share of the decided pixels.
function leaders() {
  const led = new Map();
  const decided = shown.seen.leader.filter((_, i) => !shown.seen.unanimous[i]);
  for (const annotator of decided) led.set(annotator, (led.get(annotator) || 0) + 1);
  const shares = [...led].map(([annotator, count]) => [annotator, count / decided.length]);
  return shares.sort((a, b) => b[1] - a[1]);
}

// ---------------------------------------------------------------------------- a spot

// Row and column in other sizes: the maps may show fewer pixels than the image has.
function scaled(place, from, to) {
  return place.map((at, axis) => Math.floor(((at + 0.5) * to[axis]) / from[axis]));
}

function inMaps(place) {
  const image = report.images[shown.maps.number];
  return scaled(place, image.size, image.shown);
}

// Go to a row and column of the maps, and say so to a screen reader where the reader asked for it.
function moveSpot([y, x], held, told = true) {
  const { height, width } = shown.maps;
  shown.held = held;
  shown.spot = [Math.min(height - 1, Math.max(0, y)), Math.min(width - 1, Math.max(0, x))];
  readSpot();
  if (told) tell();
}

function readSpot() {
  const { maps, seen, spot } = shown;
  const image = report.images[maps.number];
  const marker = element("marker");
  marker.hidden = false;
  marker.classList.toggle("held", shown.held);
  marker.style.top = `${(100 * (spot[0] + 0.5)) / maps.height}%`;
  marker.style.left = `${(100 * (spot[1] + 0.5)) / maps.width}%`;
  shown.place = scaled(spot, image.shown, image.size);
  shown.reading = readingOf(maps, seen, spot[0] * maps.width + spot[1]);
  shown.words = showReading(shown.reading, shown.place);
}

// Say the last spot only, where several follow one another.
let telling = 0;
function tell() {
  clearTimeout(telling);
  telling = setTimeout(() => (element("said").textContent = shown.words), 250);
}

function pointed(event) {
  const box = stage.getBoundingClientRect();
  const { height, width } = shown.maps;
  return [
    Math.floor(((event.clientY - box.top) / box.height) * height),
    Math.floor(((event.clientX - box.left) / box.width) * width),
  ];
}

on("stage", "pointermove", (event) => {
  const follows = shown.maps && !shown.held && event.pointerType !== "touch";
  if (follows) moveSpot(pointed(event), false, false);
});
on("stage", "click", (event) => {
  if (shown.maps) moveSpot(pointed(event), !shown.held);
});
on("stage", "keydown", (event) => {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = steps[event.key];
  if (!step || !shown.maps) return;
  event.preventDefault();
  moveSpot(shown.spot.map((at, axis) => at + (event.shiftKey ? 10 : 1) * step[axis]), true);
  element("marker").scrollIntoView({ block: "nearest", inline: "nearest" });
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && shown.maps) moveSpot(shown.spot, false, false);
});

// ---------------------------------------------------------------------------- who counts

const boxes = (name) => document.querySelectorAll(`input[name=${name}]`);

function setPanel(annotators) {
  if (annotators.size) shown.panel = annotators; // somebody must count
  boxes("counts").forEach((box) => (box.checked = shown.panel.has(Number(box.value))));
  showPanel();
  tell();
}

function setOutlines(annotators) {
  shown.outlines = annotators;
  boxes("outline").forEach((box) => (box.checked = annotators.has(Number(box.value))));
  element("with-outlines").checked = annotators.size > 0;
  draw();
}

const chosen = (name) =>
  new Set([...boxes(name)].filter((box) => box.checked).map((box) => Number(box.value)));
on("people", "change", ({ target }) => {
  if (target.name === "counts") setPanel(chosen("counts"));
  else setOutlines(chosen("outline"));
});
on("all-count", "click", () => setPanel(everybody()));
on("all-outlines", "click", () => setOutlines(everybody()));
on("no-outlines", "click", () => setOutlines(new Set()));

// ---------------------------------------------------------------------------- controls

function setZoom(zoom) {
  shown.zoom = Math.min(8, Math.max(1, zoom));
  stage.style.setProperty("--zoom", shown.zoom);
  element("zoom").textContent = `${100 * shown.zoom}%`;
  element("smaller").disabled = shown.zoom === 1;
  element("larger").disabled = shown.zoom === 8;
}

function zoomBy(factor) {
  setZoom(factor * shown.zoom);
  element("marker").scrollIntoView({ block: "nearest", inline: "center" });
}

on("smaller", "click", () => zoomBy(1 / 2));
on("larger", "click", () => zoomBy(2));
on("layers", "change", (event) => {
  shown.layer = event.target.value;
  draw();
});
["with-result", "with-outlines", "with-unanimous"].forEach((id) => on(id, "change", draw));

// The number of the picture stands in the address, so that a picture can be pointed to.
function openImage(number) {
  location.hash = `picture=${number}`;
}

function fromAddress() {
  const target = element(location.hash.slice(1));
  const folded = target && target.closest("details");
  if (folded) {
    folded.open = true;
    target.scrollIntoView();
  }
  const found = /^#picture=(\d+)$/.exec(location.hash);
  if (!found || !report.images[found[1]]) return false;
  showImage(Number(found[1]));
  const { top, bottom } = stage.getBoundingClientRect();
  if (bottom < 0 || top > innerHeight / 2) {
    element("pictures").scrollIntoView();
    stage.focus({ preventScroll: true });
  }
  return true;
}

on("image", "change", (event) => openImage(event.target.value));
on("previous", "click", () => openImage(shown.maps.number - 1));
on("next", "click", () => openImage(shown.maps.number + 1));
addEventListener("hashchange", fromAddress);
if (!fromAddress()) showImage(0);

// What the reader does, and what the page shows then.

const element = (id) => document.getElementById(id);
const on = (id, event, act) => element(id).addEventListener(event, act);
const stage = element("stage");

// What is shown: a picture, a layer, and a spot of it, which follows the pointer unless it is held.
const shown = {
  wanted: 0,
  maps: null,
  layer: "who",
  spot: null,
  held: false,
};

// ---------------------------------------------------------------------------- pictures

async function showImage(number) {
  const image = report.images[number];
  shown.wanted = number;
  const maps = await readMaps(number);
  if (shown.wanted !== number) return; // another was asked for meanwhile
  const { height, width } = maps;
  Object.assign(shown, { maps, held: false, spot: [height >> 1, width >> 1] });
  if (image.spot) shown.spot = scaled(image.spot, image.size, image.shown); // where much is decided
  element("image").value = String(number);
  element("picture").src = element(`picture-${number}`).textContent;
  stage.setAttribute("aria-label", `Picture ${image.id}`);
  stage.style.setProperty("--shape", width / height);
  stage.classList.toggle("coarse", Math.max(width, height) < 600);
  draw();
}

// ---------------------------------------------------------------------------- layers

function draw() {
  const { maps, layer } = shown;
  const hatched = element("with-unanimous").checked && TELLS_WHO.has(layer);
  const lines = {
    hatched,
    outlines: element("with-outlines").checked,
    result: element("with-result").checked,
  };
  put(element("colours"), coloursOf(layer, maps, hatched));
  put(element("lines"), linesOf(maps, lines));
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
  why: "Colour: the annotator who decides. Shade: which of their prototypes.",
};

function showLegend(hatched) {
  const { layer, maps } = shown;
  const entry = ({ colour, name }, text = "") => made("span", {}, chip(colour), name, text);
  const entries = [];
  if (layer === "result") {
    const found = [...new Set(maps.result)].sort((a, b) => a - b);
    entries.push(...found.map((label) => entry(report.classes[label])));
  } else if (TELLS_WHO.has(layer)) {
    entries.push(...leaders().map(([annotator, share]) => entry(annotator, ` ${perCent(share)}`)));
  } else if (layer === "uncertainty") {
    const bar = made("span", { className: "scale" });
    bar.style.background = `linear-gradient(to right, ${report.scale.map(css).join(", ")})`;
    entries.push(made("span", {}, "0 sure"), bar, made("span", {}, "1 all classes alike"));
  }
  element("legend").replaceChildren(...entries);
  element("legend-note").textContent = (LEGEND_NOTES[layer] || "") + (hatched ? HATCHED : "");
}

// Annotators who decide some of the picture, with their share of the decided pixels.
function leaders() {
  const { decides } = report.images[shown.maps.number];
  const shares = report.annotators.map((annotator) => [annotator, decides[annotator.name]]);
  return shares.filter(([, share]) => share > 0).sort((a, b) => b[1] - a[1]);
}

// ---------------------------------------------------------------------------- a spot

// Row and column in other sizes: the maps may show fewer pixels than the image has.
function scaled(place, from, to) {
  return place.map((at, axis) => Math.floor(((at + 0.5) * to[axis]) / from[axis]));
}

function moveSpot([y, x], held) {
  const { height, width } = shown.maps;
  shown.held = held;
  shown.spot = [Math.min(height - 1, Math.max(0, y)), Math.min(width - 1, Math.max(0, x))];
  readSpot();
}

function readSpot() {
  const { maps, spot } = shown;
  const image = report.images[maps.number];
  const marker = element("marker");
  marker.hidden = false;
  marker.classList.toggle("held", shown.held);
  marker.style.top = `${(100 * (spot[0] + 0.5)) / maps.height}%`;
  marker.style.left = `${(100 * (spot[1] + 0.5)) / maps.width}%`;
  shown.place = scaled(spot, image.shown, image.size);
  shown.reading = readingOf(maps, spot[0] * maps.width + spot[1]);
  showReading(shown.reading, shown.place);
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
  if (follows) moveSpot(pointed(event), false);
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
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && shown.maps) moveSpot(shown.spot, false);
});

// ---------------------------------------------------------------------------- controls

on("layers", "change", (event) => {
  shown.layer = event.target.value;
  draw();
});
["with-result", "with-outlines", "with-unanimous"].forEach((id) => on(id, "change", draw));

// The number of the picture stands in the address, so that a picture can be pointed to.
function fromAddress() {
  const found = /^#picture=(\d+)$/.exec(location.hash);
  if (!found || !report.images[found[1]]) return false;
  showImage(Number(found[1]));
  element("pictures").scrollIntoView();
  return true;
}

on("image", "change", (event) => (location.hash = `picture=${event.target.value}`));
addEventListener("hashchange", fromAddress);
if (!fromAddress()) showImage(0);

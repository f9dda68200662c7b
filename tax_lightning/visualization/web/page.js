// What the reader does, and what the page shows then.

const element = (id) => document.getElementById(id);
const on = (id, event, act) => element(id).addEventListener(event, act);
const stage = element("stage");

// What is shown: a picture, a layer, and a spot of it, which follows the pointer unless it is held.
const shown = { wanted: 0, maps: null, layer: "result", spot: null, held: false };

// ---------------------------------------------------------------------------- pictures

async function showImage(number) {
  const image = report.images[number];
  shown.wanted = number;
  const maps = await readMaps(number);
  if (shown.wanted !== number) return; // another was asked for meanwhile
  const { height, width } = maps;
  Object.assign(shown, { maps, held: false, spot: [height >> 1, width >> 1] });
  if (image.spots.length) shown.spot = scaled(image.spots[0], image.size, image.shown);
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
  const hatched = element("with-hatching").checked && HATCHED_LAYERS.has(layer);
  const [outlines, result] = ["with-outlines", "with-result"].map((id) => element(id).checked);
  put(element("colours"), coloursOf(layer, maps, hatched));
  put(element("lines"), linesOf(maps, { hatched, outlines, result }));
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

const PEOPLE = report.annotators.length;
const EVEN = Math.round(100 * (1 - 1 / report.classes.length));
const LEGEND_NOTES = {
  votes: "How many annotators would say the result, as the model expects.",
  why: report.trust.kind === "image"
    ? "Colour: the annotator whose prototype is the first reason. Shade: which prototype."
    : "Colour: who most surely says the result; all count the same. Shade: which prototype.",
  dispute: "How many of all pairs of annotators would differ, as the model expects.",
  uncertainty: "How unsure the result is of its class. It says nothing of who is right.",
  trust: "Colour: the annotator who weighs most. The fainter, the more the others weigh.",
};
const SCALE_ENDS = {
  votes: [`${PEOPLE} of ${PEOPLE}`, `${PEOPLE / 2} of ${PEOPLE} or fewer`],
  dispute: ["0%", `${EVEN}% or more`],
  uncertainty: ["0 sure", "1 all classes alike"],
};

function showLegend(hatched) {
  const { layer, maps } = shown;
  const entry = ({ colour, name }) => made("span", {}, chip(colour), name);
  const entries = [];
  if (layer === "result") {
    const found = [...new Set(maps.result[0])].sort((a, b) => a - b);
    entries.push(...found.map((label) => entry(report.classes[label])));
  } else if (layer === "why" || layer === "trust") {
    const found = new Set(layer === "why" ? maps.reason[0] : maps.leader[0]);
    const named = report.annotators.filter((_, n) => found.has(n));
    entries.push(...named.slice(0, report.most_named).map((annotator) => entry(annotator)));
    const rest = named.length - report.most_named;
    if (rest > 0) entries.push(made("span", {}, `${rest} others`));
  } else if (layer in SCALE_ENDS) {
    const bar = made("span", { className: "scale" });
    const colours = report.scale.filter((_, i) => i % 15 === 0).map(css);
    bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
    const [from, to] = SCALE_ENDS[layer];
    entries.push(made("span", {}, from), bar, made("span", {}, to));
  }
  element("legend").replaceChildren(...entries);
  const notes = [LEGEND_NOTES[layer] || ""];
  if (hatched) notes.push(`Hatched: ${report.undisputed_words}.`);
  if (element("with-outlines").checked) {
    const drawn = maps.masks ? "each annotator drew" : "the model expects each to draw";
    notes.push(`Outlines: as ${drawn}.`);
  }
  const { disputed, disputed_in_masks: real } = report.images[maps.number];
  notes.push(`Disputed, as the model expects: ${perCent(disputed)} of the pixels.`);
  if (real !== null) notes.push(`In the masks: ${perCent(real)}.`);
  element("legend-note").textContent = notes.join(" ").trim();
}

// ---------------------------------------------------------------------------- a spot

// Row and column in other sizes: the maps may show fewer pixels than the image has.
function scaled(place, from, to) {
  return place.map((at, axis) => Math.floor(((at + 0.5) * to[axis]) / from[axis]));
}

// Go to a row and column of the maps.
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
  element("marker").scrollIntoView({ block: "nearest", inline: "nearest" });
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && shown.maps) moveSpot(shown.spot, false);
});

// ---------------------------------------------------------------------------- controls

on("layers", "change", (event) => {
  shown.layer = event.target.value;
  draw();
});
["with-result", "with-outlines", "with-hatching"].forEach((id) => on(id, "change", draw));

// The number of the picture stands in the address, so that a picture can be pointed to.
function fromAddress() {
  const found = /^#picture=(\d+)$/.exec(location.hash);
  if (found && report.images[found[1]]) showImage(Number(found[1]));
  return found !== null;
}

on("image", "change", ({ target }) => (location.hash = `picture=${target.value}`));
addEventListener("hashchange", fromAddress);
if (!fromAddress()) showImage(0);

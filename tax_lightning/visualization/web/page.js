// What the reader does, and what the page shows then.

const report = JSON.parse(document.getElementById("report").textContent);
const element = (id) => document.getElementById(id);
const stage = element("stage");

// What is shown: a picture, a layer, and a spot of it, which is held until it is let go.
const shown = {
  wanted: 0,
  maps: null,
  seen: null,
  layer: "who",
  spot: null,
  held: false,
  zoom: 1,
  outlines: new Set(report.annotators.keys()),
  panel: new Set(report.annotators.keys()),
};

// ---------------------------------------------------------------------------- pictures

async function showImage(number) {
  const image = report.images[number];
  shown.wanted = number;
  const maps = await readMaps(number, report);
  if (shown.wanted !== number) return; // another was asked for meanwhile
  shown.maps = maps;
  element("image").value = String(number);
  element("previous").disabled = number === 0;
  element("next").disabled = number === report.images.length - 1;
  element("picture").src = element(`picture-${number}`).textContent;
  stage.setAttribute("aria-label", `Picture ${image.id}`);
  stage.style.setProperty("--shape", maps.width / maps.height);
  stage.classList.toggle("coarse", Math.max(maps.width, maps.height) < 600);
  setZoom(1);
  showSpots(image);
  showPanel();
  const [first] = image.spots;
  holdSpot(first ? first.at : [maps.height >> 1, maps.width >> 1], false);
}

function showSpots(image) {
  const list = element("spots");
  list.replaceChildren();
  if (!image.spots.length) return;
  list.append(made("h4", {}, "Look here first"));
  for (const { at, annotator, kernel } of image.spots) {
    const button = made("button", { type: "button", className: "spot" });
    button.append(chip(report.annotators[annotator].shades[kernel]));
    button.append(`${nameOf(annotator)}, prototype ${kernel}`);
    button.addEventListener("click", () => holdSpot(at, true));
    list.append(button);
  }
}

// ---------------------------------------------------------------------------- layers

// Work out anew who counts, then draw.
function showPanel() {
  const panel = [...shown.panel].sort((a, b) => a - b);
  shown.seen = viewOf(shown.maps, panel, report);
  const names = panel.map(nameOf).join(", ");
  const changed = shown.seen.result.reduce(
    (sum, label, i) => sum + (label !== shown.maps.result[0][i]),
    0,
  );
  element("panel").textContent = shown.seen.everybody
    ? "Everybody counts."
    : `Only ${names} count${panel.length === 1 ? "s" : ""}: the result changes on ` +
      `${perCent(changed / shown.seen.result.length)} of the pixels.`;
  document.body.classList.toggle("partial", !shown.seen.everybody);
  showShares();
  draw();
}

function draw() {
  const { maps, seen, layer } = shown;
  const hatched = element("with-unanimous").checked && TELLS_WHO.has(layer);
  put(element("colours"), coloursOf(layer, maps, seen, report, hatched));
  const outlined = element("with-outlines").checked;
  const lines = linesOf(maps, seen, report, {
    hatched,
    seams: layer === "why",
    outlines: outlined ? [...shown.outlines].sort((a, b) => a - b) : [],
    result: element("with-result").checked,
  });
  put(element("lines"), lines);
  // What is coloured by annotator lies on the image in grey, so that its colours are theirs.
  stage.classList.toggle("grey", layer !== "image" && layer !== "result");
  element("colours").style.opacity = layer === "result" ? 1 : element("strength").value / 100;
  showLegend();
  readSpot();
}

function put(canvas, pixels) {
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function showLegend() {
  const legend = element("legend");
  legend.replaceChildren();
  const { layer, seen } = shown;
  if (layer === "result") {
    const found = [...new Set(seen.result)].sort((a, b) => a - b);
    for (const label of found) legend.append(entry(report.classes[label].colour, className(label)));
  } else if (layer === "who" || layer === "why") {
    for (const [annotator, share] of leaders().slice(0, report.most_named)) {
      const text = `${nameOf(annotator)} ${perCent(share)}`;
      legend.append(entry(report.annotators[annotator].colour, text));
    }
    const rest = leaders().slice(report.most_named);
    if (rest.length) {
      const share = rest.reduce((sum, [, own]) => sum + own, 0);
      legend.append(made("span", {}, `${rest.length} others ${perCent(share)}`));
    }
  } else if (layer === "entropy" || layer === "certainty") {
    const bar = made("span", { className: "scale" });
    const colours = report.ramp.filter((_, i) => i % 15 === 0).map(css);
    bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
    const [from, to] = SCALE_ENDS[layer];
    legend.append(made("span", {}, from), bar, made("span", {}, to));
  }
  const hatched = element("with-unanimous").checked && TELLS_WHO.has(layer) ? HATCHED : "";
  element("legend-note").textContent = (LEGEND_NOTES[layer] || "") + hatched;
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

// Annotators who decide some of the picture, with their share of the decided pixels.
function leaders() {
  const { seen } = shown;
  const led = new Map();
  let decided = 0;
  for (let i = 0; i < seen.leader.length; i++) {
    if (seen.unanimous[i]) continue;
    decided += 1;
    led.set(seen.leader[i], (led.get(seen.leader[i]) || 0) + 1);
  }
  const shares = [...led].map(([annotator, count]) => [annotator, count / decided]);
  return shares.sort((a, b) => b[1] - a[1]);
}

function showShares() {
  const shares = new Map(leaders());
  document.querySelectorAll("#people [data-share]").forEach((cell) => {
    cell.textContent = perCent(shares.get(Number(cell.dataset.share)) || 0);
  });
}

// ---------------------------------------------------------------------------- a spot

// Row and column of the image from those of the maps, which may show fewer.
function inImage(place) {
  const image = report.images[shown.maps.number];
  return place.map((at, axis) => Math.floor(((at + 0.5) * image.size[axis]) / image.shown[axis]));
}

function inMaps(place) {
  const image = report.images[shown.maps.number];
  return place.map((at, axis) => Math.floor(((at + 0.5) * image.shown[axis]) / image.size[axis]));
}

// Hold a spot, given by its row and column in the image.
function holdSpot(place, told) {
  shown.held = true;
  moveSpot(inMaps(place), told);
}

function moveSpot([y, x], told) {
  const { height, width } = shown.maps;
  shown.spot = [Math.min(height - 1, Math.max(0, y)), Math.min(width - 1, Math.max(0, x))];
  readSpot();
  if (told) tell();
}

function readSpot() {
  const { maps, seen, spot } = shown;
  if (!spot) return;
  const marker = element("marker");
  marker.hidden = false;
  marker.classList.toggle("held", shown.held);
  marker.style.top = `${(100 * (spot[0] + 0.5)) / maps.height}%`;
  marker.style.left = `${(100 * (spot[1] + 0.5)) / maps.width}%`;
  showReading(readingOf(maps, seen, spot[0] * maps.width + spot[1], report), inImage(spot));
}

// Say the spot to a screen reader, but not every one that a pointer passes.
let telling = 0;
function tell() {
  clearTimeout(telling);
  telling = setTimeout(() => (element("said").textContent = element("spot").dataset.said), 250);
}

function pointed(event) {
  const box = stage.getBoundingClientRect();
  const { height, width } = shown.maps;
  return [
    Math.floor(((event.clientY - box.top) / box.height) * height),
    Math.floor(((event.clientX - box.left) / box.width) * width),
  ];
}

stage.addEventListener("pointermove", (event) => {
  if (shown.maps && !shown.held && event.pointerType !== "touch") moveSpot(pointed(event), false);
});
stage.addEventListener("click", (event) => {
  if (!shown.maps) return;
  shown.held = true;
  moveSpot(pointed(event), true);
});
stage.addEventListener("keydown", (event) => {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = steps[event.key];
  if (event.key === "Escape") {
    shown.held = false;
    readSpot();
  } else if (step && shown.spot) {
    event.preventDefault();
    const far = event.shiftKey ? 10 : 1;
    shown.held = true;
    moveSpot([shown.spot[0] + far * step[0], shown.spot[1] + far * step[1]], true);
    element("marker").scrollIntoView({ block: "nearest", inline: "nearest" });
  }
});

// ---------------------------------------------------------------------------- who counts

function switched(boxes, chosen) {
  boxes.forEach((box) => (box.checked = chosen.has(Number(box.value))));
}

const counting = document.querySelectorAll("input[name=counts]");
const outlining = document.querySelectorAll("input[name=outline]");

counting.forEach((box) =>
  box.addEventListener("change", () => {
    const annotator = Number(box.value);
    if (box.checked) shown.panel.add(annotator);
    else if (shown.panel.size > 1) shown.panel.delete(annotator);
    else box.checked = true; // somebody must count
    showPanel();
    tell();
  }),
);
outlining.forEach((box) =>
  box.addEventListener("change", () => {
    shown.outlines[box.checked ? "add" : "delete"](Number(box.value));
    if (box.checked) element("with-outlines").checked = true;
    draw();
  }),
);
element("all-count").addEventListener("click", () => {
  shown.panel = new Set(report.annotators.keys());
  switched(counting, shown.panel);
  showPanel();
});
element("all-outlines").addEventListener("click", () => setOutlines(report.annotators.keys()));
element("no-outlines").addEventListener("click", () => setOutlines([]));

function setOutlines(annotators) {
  shown.outlines = new Set(annotators);
  switched(outlining, shown.outlines);
  element("with-outlines").checked = shown.outlines.size > 0;
  draw();
}

// ---------------------------------------------------------------------------- controls

function setZoom(zoom) {
  shown.zoom = Math.min(8, Math.max(1, zoom));
  stage.style.setProperty("--zoom", shown.zoom);
  element("zoom").textContent = `${100 * shown.zoom}%`;
  element("smaller").disabled = shown.zoom === 1;
  element("larger").disabled = shown.zoom === 8;
  if (shown.spot) element("marker").scrollIntoView({ block: "nearest", inline: "center" });
}

element("smaller").addEventListener("click", () => setZoom(shown.zoom / 2));
element("larger").addEventListener("click", () => setZoom(shown.zoom * 2));
element("strength").addEventListener("input", () => {
  element("colours").style.opacity = shown.layer === "result" ? 1 : element("strength").value / 100;
});
element("layers").addEventListener("change", (event) => {
  shown.layer = event.target.value;
  draw();
});
["with-result", "with-outlines", "with-unanimous"].forEach((id) =>
  element(id).addEventListener("change", draw),
);

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

element("image").addEventListener("change", (event) => openImage(event.target.value));
element("previous").addEventListener("click", () => openImage(shown.maps.number - 1));
element("next").addEventListener("click", () => openImage(shown.maps.number + 1));
addEventListener("hashchange", fromAddress);
if (!fromAddress()) showImage(0);

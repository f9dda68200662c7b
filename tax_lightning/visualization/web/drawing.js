// Layers as pixels: a canvas of colours, a value an image pixel, and a finer one of lines.

const WASH = [230, 230, 230, 130];
const HATCH = [110, 110, 110, 120];
const HATCHED_LAYERS = new Set(["votes", "why", "trust"]);
const RESULT_STRENGTH = 140; // of 255, as in the panels

// The colours of a layer, RGBA.
function coloursOf(layer, maps, washed) {
  const pixels = new Uint8ClampedArray(4 * maps.height * maps.width);
  for (let i = 0; i < maps.result[0].length; i++) {
    const colour = washed && maps.undisputed[0][i] ? WASH : COLOUR_AT[layer](i, maps);
    if (colour) pixels.set(colour, 4 * i);
  }
  return new ImageData(pixels, maps.width, maps.height);
}

const COLOUR_AT = {
  image: () => null,
  result: (i, { result }) =>
    result[0][i] ? [...report.classes[result[0][i]].colour, RESULT_STRENGTH] : null,
  votes: (i, { votes }) => scaleAt(2 * (1 - votes[0][i] / report.levels)),
  why: (i, maps) => [
    ...report.annotators[maps.reason[0][i]].shades[maps.reason_kernel[0][i]],
    255,
  ],
  dispute: (i, { dispute }) =>
    scaleAt(dispute[0][i] / report.levels / (1 - 1 / report.classes.length)),
  uncertainty: (i, { uncertainty }) => scaleAt(uncertainty[0][i] / report.levels),
  trust: (i, { leader, who }) => {
    const even = 1 / report.annotators.length;
    const most = who[leader[0][i]][i] / report.levels;
    const certainty = even === 1 ? 1 : Math.max(0, (most - even) / (1 - even));
    return [...report.annotators[leader[0][i]].colour, Math.round(255 * certainty)];
  },
};

function scaleAt(value) {
  return [...report.scale[Math.round(Math.min(1, value) * (report.scale.length - 1))], 255];
}

// A canvas of lines over maps: `zoom` pixels for each of theirs, lines `line` pixels thick.
function lineSizes(maps) {
  const longest = Math.max(maps.height, maps.width);
  const zoom = Math.max(1, Math.ceil(1200 / longest));
  return { zoom, line: Math.min(zoom, Math.max(1, Math.round((zoom * longest) / 450))) };
}

// Hatching, outlines of annotators and of the result, RGBA.
function linesOf(maps, { hatched, outlines, result }) {
  const { zoom, line } = lineSizes(maps);
  const canvas = { width: maps.width * zoom, height: maps.height * zoom };
  canvas.pixels = new Uint8ClampedArray(4 * canvas.width * canvas.height);
  if (hatched) hatch(canvas, maps.undisputed[0], zoom);
  if (outlines) {
    const own = report.annotators.map(({ colour }, n) => [drawnBy(maps, n), colour]);
    drawOutlines(canvas, maps, own, zoom, line);
  }
  if (result) {
    const dashes = [[255, 255, 255], [0, 0, 0]].map((colour) => [maps.result[0], colour]);
    drawOutlines(canvas, maps, dashes, zoom, Math.ceil((2 * line) / 3));
  }
  return new ImageData(canvas.pixels, canvas.width, canvas.height);
}

function hatch(canvas, where, zoom) {
  const period = Math.round(canvas.width / 60) + 6;
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.floor(y / zoom) * (canvas.width / zoom);
    for (let x = 0; x < canvas.width; x++) {
      if ((x + y) % period < period / 6 && where[row + Math.floor(x / zoom)]) {
        canvas.pixels.set(HATCH, 4 * (y * canvas.width + x));
      }
    }
  }
}

// The places of the canvas pixels at the inner edge of every region of a class but the background,
// as far as `line` from the edge.
function edgeOf(labels, { height, width }, zoom, line) {
  const places = [];
  for (let i = 0; i < labels.length; i++) {
    if (!labels[i]) continue;
    const [y, x] = [Math.floor(i / width), i % width];
    const up = y > 0 && labels[i] !== labels[i - width];
    const down = y < height - 1 && labels[i] !== labels[i + width];
    const left = x > 0 && labels[i] !== labels[i - 1];
    const right = x < width - 1 && labels[i] !== labels[i + 1];
    if (!(up || down || left || right)) continue;
    for (let v = 0; v < zoom; v++) {
      for (let u = 0; u < zoom; u++) {
        const row = (up && v < line) || (down && v >= zoom - line);
        const edge = row || (left && u < line) || (right && u >= zoom - line);
        if (edge) places.push((y * zoom + v) * width * zoom + x * zoom + u);
      }
    }
  }
  return places;
}

// Outlines, each of labels and a colour. Where several coincide, their colours take turns.
function drawOutlines(canvas, maps, outlines, zoom, line) {
  const drawn = outlines.map(([labels, colour]) => [edgeOf(labels, maps, zoom, line), colour]);
  const count = new Uint8Array(canvas.width * canvas.height);
  for (const [places] of drawn) for (const at of places) count[at] += 1;
  const rank = new Uint8Array(count.length);
  for (const [places, colour] of drawn) {
    for (const at of places) {
      const along = (at % canvas.width) + Math.floor(at / canvas.width);
      const turn = Math.floor(along / (4 * line)) % count[at];
      if (turn === rank[at]) canvas.pixels.set([...colour, 255], 4 * at);
      rank[at] += 1;
    }
  }
}

// Layers as pixels: a canvas of colours, a value an image pixel, and a finer one of lines.

const UNANIMOUS_WASH = [230, 230, 230, 130];
const HATCH = [110, 110, 110, 120];
const TELLS_WHO = new Set(["who", "why", "certainty"]);
const RESULT_STRENGTH = 140; // of 255, as in the panels

// The colours of a layer, RGBA.
function coloursOf(layer, maps, seen, washed) {
  const pixels = new Uint8ClampedArray(4 * maps.height * maps.width);
  for (let i = 0; i < seen.result.length; i++) {
    const hidden = washed && seen.unanimous[i];
    const colour = hidden ? UNANIMOUS_WASH : COLOUR_AT[layer](i, maps, seen);
    if (colour) pixels.set(colour, 4 * i);
  }
  return new ImageData(pixels, maps.width, maps.height);
}

const COLOUR_AT = {
  image: () => null,
  result: (i, maps, seen) =>
    seen.result[i] ? [...report.classes[seen.result[i]].colour, RESULT_STRENGTH] : null,
  who: (i, maps, seen) => [
    ...report.annotators[seen.leader[i]].colour,
    Math.round(255 * seen.certainty[i]),
  ],
  why: (i, maps, seen) => {
    const leader = seen.leader[i];
    return [...report.annotators[leader].shades[maps.why[leader][i]], 255];
  },
  entropy: (i, maps, seen) => scaleAt(seen.entropy[i]),
  certainty: (i, maps, seen) => scaleAt(seen.certainty[i]),
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

// Hatching, seams between prototypes, outlines of annotators and of the result, RGBA.
function linesOf(maps, seen, { hatched, seams, outlines, result }) {
  const { zoom, line } = lineSizes(maps);
  const canvas = { width: maps.width * zoom, height: maps.height * zoom };
  canvas.pixels = new Uint8ClampedArray(4 * canvas.width * canvas.height);
  if (hatched) hatch(canvas, seen.unanimous, zoom);
  if (seams) drawSeams(canvas, maps, seen, zoom);
  if (outlines.length) drawOutlines(canvas, maps, outlines, zoom, line);
  if (result) drawDashed(canvas, maps, seen.result, zoom, Math.ceil((2 * line) / 3));
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

// Call `mark` with the places of the canvas pixels at the edges between image pixels, as far as
// `line` from the edge, on the side of every pixel `i` that is `parted(i, j)` from its neighbour.
function alongEdges({ height, width }, parted, zoom, line, mark) {
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      const up = y > 0 && parted(i, i - width);
      const down = y < height - 1 && parted(i, i + width);
      const left = x > 0 && parted(i, i - 1);
      const right = x < width - 1 && parted(i, i + 1);
      if (!(up || down || left || right)) continue;
      for (let v = 0; v < zoom; v++) {
        for (let u = 0; u < zoom; u++) {
          const row = (up && v < line) || (down && v >= zoom - line);
          const edge = row || (left && u < line) || (right && u >= zoom - line);
          if (edge) mark((y * zoom + v) * width * zoom + x * zoom + u);
        }
      }
    }
  }
}

// Between two regions that have different prototypes; none towards where nobody decides.
function drawSeams(canvas, maps, seen, zoom) {
  const kernel = (i) => maps.why[seen.leader[i]][i];
  const same = (i, j) => seen.leader[i] === seen.leader[j] && kernel(i) === kernel(j);
  const parted = (i, j) => !seen.unanimous[i] && !seen.unanimous[j] && !same(i, j);
  const thin = Math.max(1, Math.round(zoom / 6));
  alongEdges(maps, parted, zoom, thin, (at) => canvas.pixels.set([0, 0, 0, 255], 4 * at));
}

// The inner edge of every region of a class but the background.
function outlined(labels) {
  return (i, j) => labels[i] > 0 && labels[i] !== labels[j];
}

// Where several outlines coincide, their colours take turns along the line.
function drawOutlines(canvas, maps, annotators, zoom, line) {
  const shares = new Float64Array(report.classes.length);
  const count = new Uint8Array(canvas.width * canvas.height);
  const drawn = annotators.map((annotator) => {
    const labels = maps.result[0].map((_, pixel) => labelAt(maps, annotator, pixel, shares));
    const places = [];
    alongEdges(maps, outlined(labels), zoom, line, (at) => {
      count[at] += 1;
      places.push(at);
    });
    return places;
  });
  const rank = new Uint8Array(count.length);
  drawn.forEach((places, order) => {
    const colour = [...report.annotators[annotators[order]].colour, 255];
    for (const at of places) {
      const turn = Math.floor(along(at, canvas) / (4 * line)) % count[at];
      if (turn === rank[at]) canvas.pixels.set(colour, 4 * at);
      rank[at] += 1;
    }
  });
}

function drawDashed(canvas, maps, labels, zoom, line) {
  alongEdges(maps, outlined(labels), zoom, line, (at) => {
    const grey = Math.floor(along(at, canvas) / (3 * line)) % 2 === 0 ? 255 : 0;
    canvas.pixels.set([grey, grey, grey, 255], 4 * at);
  });
}

// A number that grows along any line that is not a falling diagonal.
function along(at, canvas) {
  return (at % canvas.width) + Math.floor(at / canvas.width);
}
